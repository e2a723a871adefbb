"""What of a run goes to the Hub, and what is said of it."""
