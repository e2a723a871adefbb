"""Asking the Hub, and bringing files to it and from it."""
