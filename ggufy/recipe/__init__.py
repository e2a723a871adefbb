"""What can be asked: the schema of a recipe, and recipes read, checked and shown."""
