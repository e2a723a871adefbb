"""Export: from a 16-bit base and an adapter to GGUF files, in one pass over the weights."""
