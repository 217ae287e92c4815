"""Bugs planted on purpose: what verification catches, what a search finds."""
