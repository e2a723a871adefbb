"""ggufy: fine-tune a Llama model from a recipe, and export GGUF files that behave like the trained model.

>>> import ggufy
>>> run = ggufy.train("tiny", max_steps=60)   # doctest: +SKIP
>>> ggufy.export(run, quants=["q8_0"])        # doctest: +SKIP
>>> ggufy.chat(run).ask("Who are you?")       # doctest: +SKIP

The names below are loaded when first used, so that `import ggufy` costs nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ggufy.system.version import __version__

if TYPE_CHECKING:
    from ggufy.errors import GgufyError
    from ggufy.pipeline import chat, evaluate, export, plan, train
    from ggufy.recipe.schema import Recipe
    from ggufy.runs.run import Run
    from ggufy.sweeps.sweep import sweep
    from ggufy.system.progress import show_progress

_NAMES = {
    "GgufyError": "ggufy.errors",
    "Recipe": "ggufy.recipe.schema",
    "Run": "ggufy.runs.run",
    "chat": "ggufy.pipeline",
    "evaluate": "ggufy.pipeline",
    "export": "ggufy.pipeline",
    "plan": "ggufy.pipeline",
    "show_progress": "ggufy.system.progress",
    "sweep": "ggufy.sweeps.sweep",
    "train": "ggufy.pipeline",
}

__all__ = [
    "GgufyError",
    "Recipe",
    "Run",
    "__version__",
    "chat",
    "evaluate",
    "export",
    "plan",
    "show_progress",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        from importlib import import_module

        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'ggufy' has no attribute {name!r}")


class _Package(ModuleType):
    """Importing ggufy/train/ would bind the name `train` to that folder; to users it is the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _NAMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
