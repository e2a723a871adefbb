"""The model families that go through the one pass: a file each."""
