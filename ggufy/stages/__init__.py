"""What each stage needs, promises and refuses, above the engines that do the work."""
