"""Regression tests of rewrites: one text file per case, see cases/README.md."""
