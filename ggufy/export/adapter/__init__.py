"""A PEFT adapter: its configuration, what it changes, and as a GGUF of its own."""
