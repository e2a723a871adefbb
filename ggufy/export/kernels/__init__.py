"""ggufy's own quantization kernels, in C, and whether they make the bytes of llama.cpp's."""
