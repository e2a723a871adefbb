"""What is said of a recipe's rows before one is trained on: files left out, rows held out and trained on too."""
