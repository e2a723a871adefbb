"""Where ggufy keeps what belongs to a person and cannot be made again."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """$GGUFY_STATE, else ggufy's folder in the user's state directory."""
    if own := os.environ.get("GGUFY_STATE"):
        return Path(own)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ggufy"
