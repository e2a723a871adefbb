"""A base model on disk: found or downloaded, read lazily, its chat template; and the built-in ones."""
