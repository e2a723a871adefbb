"""Chat with a GGUF through llama.cpp."""
