"""Talking to a GGUF with llama.cpp."""
