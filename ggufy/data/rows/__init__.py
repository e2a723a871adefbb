"""What a row says: formats, turns, tools, as the conversation that a chat template takes."""
