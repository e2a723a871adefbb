"""The model families that ggufy exports itself, in one pass: one file each."""
