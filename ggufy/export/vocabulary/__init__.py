"""The vocabulary of a GGUF: tokens, types, merges or scores, and the proof that llama.cpp reads text as the base does."""
