"""Metrics of an evaluation: losses, divergence, answers, numbers."""
