"""Tests of the fusions beyond the golden cases."""
