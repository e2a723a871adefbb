"""The version of ggufy."""

__version__ = "0.1.0"
