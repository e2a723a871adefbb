"""The contents of a push: the files of a run, the model card, the manifest."""
