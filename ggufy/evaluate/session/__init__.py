"""One run of `ggufy eval`: its models, each measured once, and the sections of its report."""
