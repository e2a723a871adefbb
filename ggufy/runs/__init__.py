"""The directory of a run: its lock, its outputs and their stamps, and the history of runs."""
