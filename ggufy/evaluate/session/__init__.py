"""Which models an evaluation is about, each measured once, and the parts of its report."""
