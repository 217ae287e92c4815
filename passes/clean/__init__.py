"""Exact clean-up: the same numbers from a simpler graph."""
