"""Tests of the clean-up passes."""
