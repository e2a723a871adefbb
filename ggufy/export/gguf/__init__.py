"""The GGUF file: its layout, keys and vocabulary, and how it is written."""
