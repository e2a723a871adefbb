"""The training backends: one file each."""
