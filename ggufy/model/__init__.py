"""Base models: find or download them, read their weights lazily, render their chat templates; the built-in ones."""
