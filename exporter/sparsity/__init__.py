"""Sparsity: weights that are zero where a pattern wants them to be, and a network that gives what it gave."""
