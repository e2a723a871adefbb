"""The tokenizer of a model folder, read as transformers loads it, without transformers."""
