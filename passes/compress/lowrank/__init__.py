"""Low-rank factorization: a layer's weight as a product of smaller ones, chosen by what its inputs look like."""
