"""Export of architectures outside the Llama family, through llama.cpp's own converter."""
