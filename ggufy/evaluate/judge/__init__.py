"""The judge, another model that grades answers: its client, its prompt, and what its grades say."""
