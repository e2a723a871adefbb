"""Training: from a base model and prepared data to an adapter, restartable at any step."""
