"""Lossy work: proposed here, kept only where it is measured faster and inside the error budget."""
