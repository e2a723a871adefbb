"""Verify that a finished GGUF is what was trained."""
