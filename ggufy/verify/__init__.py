"""Whether a finished GGUF is what was trained."""
