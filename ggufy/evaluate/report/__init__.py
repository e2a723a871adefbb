"""The page and the JSON that an evaluation ends in."""
