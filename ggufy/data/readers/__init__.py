"""Readers of one kind of file each, from a path to numbered rows."""
