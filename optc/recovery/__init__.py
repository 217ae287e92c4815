"""Recovery: a compressed model learns from its original, block by block, what least squares cannot give back."""
