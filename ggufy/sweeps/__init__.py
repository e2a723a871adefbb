"""Sweeps: train one recipe with different values, and find the one with the lowest held-out loss."""
