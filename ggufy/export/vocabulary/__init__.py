"""The vocabulary of a GGUF: its tokens, types, merges or scores, and whether llama.cpp reads text alike."""
