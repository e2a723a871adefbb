"""Export of the architectures of no family in `ggufy/export/families/`, through llama.cpp's own converter."""
