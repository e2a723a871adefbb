"""Evaluation: losses, divergence, prompts, answers, and the report they go into."""
