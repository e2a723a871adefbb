"""The Hugging Face Hub: push and pull of runs, checkpoints, data sets and Spaces."""
