"""Load API keys from a `.env` file into the environment of this process, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from ggufy.errors import GgufyError

NAMES = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "GGUFY_API_KEY")


def load(path: Path = Path(".env")) -> None:
    """Read `NAME=value` lines; only the names above, and only those that the environment does not set.

    Raises GgufyError, which names the line but never says what is in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return
    except UnicodeDecodeError:
        raise GgufyError(f"{path.as_posix()} is not UTF-8 text", "save it as UTF-8") from None
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not name or name.startswith("#"):
            continue
        if not equals:
            raise GgufyError(f"{path.as_posix()}:{number}: not a line NAME=value", "see .env.example")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if name.strip() in NAMES and value:
            os.environ.setdefault(name.strip(), value)


def for_clients(file: Path | None) -> str | None:
    """The key that clients of `ggufy serve` have to send: of a file, else of GGUFY_API_KEY, else none.

    Raises GgufyError, which never says what is in the file.
    """
    if file is None:
        return os.environ.get("GGUFY_API_KEY", "").strip() or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable() or len(key.split()) > 1:
        raise GgufyError(f"{file.as_posix()} does not hold one API key", "write only the key into it")
    return key


def values() -> list[str]:
    """The keys that this process knows: what must not be in any file that leaves the machine."""
    names = (*NAMES, "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
    return [value for name in names if len(value := os.environ.get(name, "").strip()) >= 8]
