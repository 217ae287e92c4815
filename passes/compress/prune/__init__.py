"""Structured pruning: removing whole channels, heads and blocks, so that what is left is a smaller dense model."""
