"""What is measured: losses, divergence, answers, numbers."""
