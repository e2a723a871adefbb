"""Other families: merged into a folder that llama.cpp's own converter reads."""
