"""Base models: find one, check it, or make the built-in one."""
