"""Prepare training data: from rows in a known format to token ids and labels."""
