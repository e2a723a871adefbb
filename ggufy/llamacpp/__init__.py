"""The interface to llama.cpp: its C library by ctypes, GGUF files, logits."""
