"""Sparse weights: zeros in patterns that kernels can skip, chosen by what layers' inputs look like."""
