"""Emission: every fused op becomes an operator that the target has a kernel for, or its parts again."""
