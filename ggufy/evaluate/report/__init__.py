"""The report of an evaluation: its sections, as a page and as JSON."""
