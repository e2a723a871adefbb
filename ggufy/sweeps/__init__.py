"""Many trainings of one recipe with other values, and which of them loses least on the held-out conversations."""
