"""Where ggufy keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """$GGUFY_CACHE, else ggufy's folder in the user's cache directory."""
    if own := os.environ.get("GGUFY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ggufy"
