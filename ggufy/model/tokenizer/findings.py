"""What was found out about a tokenizer, kept in the user's cache: to open one of 128,256 tokens takes 0.4 s."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ggufy.system import digest, user_folders
from ggufy.system.version import __version__

_VERSIONS = ("tokenizers", "llama-cpp-python")


class Findings:
    """Of the tokenizer in some files, as they are: of others, and by another version of ggufy, nothing is known.

    What cannot be read or kept is found out again.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        contents = {file.name: digest.of_file(file) for file in files if file.is_file()}
        versions = {name: metadata.version(name) for name in _VERSIONS}
        key = digest.of_values([contents, versions, __version__, code(Path(__file__).parent)])
        self._place = user_folders.cache() / "tokenizers" / f"{key[:32]}.json"
        self._known: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError):
            self._known = dict(json.loads(self._place.read_bytes()))

    def get(self, what: str, find: Callable[[], Any]) -> Any:
        """What is known under a name, else what `find` returns, which JSON can hold. What that raises is not kept."""
        if what not in self._known:
            self._known[what] = find()
            with suppress(OSError):
                self._place.parent.mkdir(parents=True, exist_ok=True)
                # Not forced to the disk: what a crash leaves of it is no JSON, or what was there before.
                beside = self._place.with_name(f".{self._place.name}.{os.getpid()}")
                beside.write_text(json.dumps(self._known), encoding="utf-8")
                beside.replace(self._place)
        return self._known[what]


@cache
def code(folder: Path) -> str:
    """A hash of the modules and data of a package."""
    return digest.of_folder(folder, ("*.py", "*.json"), whole=True)
