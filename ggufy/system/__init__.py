"""This machine: files, hashes, signals, memory, progress."""
