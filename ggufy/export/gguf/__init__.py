"""The GGUF file format: layout, keys, quantization types."""
