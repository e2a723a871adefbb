"""Helpers for this machine: files, hashes, signals, memory, progress."""
