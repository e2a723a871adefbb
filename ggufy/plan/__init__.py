"""Plans of what a recipe needs (memory, disk, time), and checks of what this machine has."""
