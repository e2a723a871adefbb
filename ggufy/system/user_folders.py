"""The user's cache and state folders, where ggufy keeps what does not belong to a run."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """What can be made or fetched again: $GGUFY_CACHE, else ggufy's folder in the user's cache directory."""
    if own := os.environ.get("GGUFY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ggufy"


def state() -> Path:
    """What is the user's own and cannot be made again: $GGUFY_STATE, else ggufy's folder in the state directory."""
    if own := os.environ.get("GGUFY_STATE"):
        return Path(own)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ggufy"
