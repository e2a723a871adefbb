"""All error classes of ggufy, as the user sees them.

    GgufyError             what happened and where; .hint says what to do about it
    ├── RecipeError        a recipe file or a --set
    ├── DataError          a data file, its rows, or what became of them
    ├── ModelError         a base model, an adapter or a GGUF file
    ├── RunError           the directory of a run
    ├── TrainError         training itself
    ├── Diverged           a TrainError: a loss or a weight is no longer a finite number
    ├── OutOfMemory        a TrainError: the recipe is too large for the memory that is there
    ├── SweepError         a sweep or its storage
    ├── ExportError        making GGUF files
    ├── Unverified         a finished file is not what it was made from
    ├── ChatError          loading or running a GGUF
    ├── EvalError          an evaluation
    ├── HubError           the Hugging Face Hub could not be used
    ├── JudgeError         the model that judges answers could not be asked
    └── MissingExtra       a package that comes with an extra is not installed
    Interrupted            the user or the system asked to stop, and work was saved

Errors of lower layers (the file system, the Hub's client, torch) become one of these where their meaning is known,
or at the latest in `from_lower`, which the command line calls on whatever reaches it.
"""

from __future__ import annotations

import errno
from pathlib import Path

from ggufy import installed


class GgufyError(Exception):
    """One line that says what happened and where, and a hint that says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show in the place of a traceback: the two lines of the command line."""
        return [f"error: {self.message}", *([f"hint: {self.hint}"] if self.hint else [])]


class RecipeError(GgufyError):
    pass


class DataError(GgufyError):
    pass


class ModelError(GgufyError):
    pass


class RunError(GgufyError):
    pass


class TrainError(GgufyError):
    pass


class Diverged(TrainError):
    pass


class OutOfMemory(TrainError):
    pass


class SweepError(GgufyError):
    pass


class ExportError(GgufyError):
    pass


class Unverified(GgufyError):
    pass


class ChatError(GgufyError):
    pass


class EvalError(GgufyError):
    pass


class HubError(GgufyError):
    pass


class JudgeError(GgufyError):
    pass


class MissingExtra(GgufyError):
    def __init__(self, what: str, extra: str, package: str) -> None:
        super().__init__(f"{what} needs the package {package}, which is not installed", installed.command(extra))


class Interrupted(GgufyError):
    """Stopped by SIGINT (exit code 130) or SIGTERM (143) after saving what there was to save."""

    def __init__(self, message: str, hint: str | None = None, *, code: int = 130) -> None:
        super().__init__(message, hint)
        self.code = code


def from_lower(error: BaseException) -> GgufyError:
    """The GgufyError for an error of a lower layer that nobody nearer could name."""
    if isinstance(error, GgufyError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", "run the same command again to continue where it can")
    if isinstance(error, OSError):
        return _from_os_error(error)
    if isinstance(error, MemoryError):
        return GgufyError("out of memory", "close other programs, or choose a smaller recipe")
    if isinstance(error, ModuleNotFoundError):
        return GgufyError(f"the package {error.name} is not installed", installed.command("train"))
    return GgufyError(
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300] or 'no message'}",
        "this is a bug in ggufy; `ggufy --debug ...` shows where it happened",
    )


def _from_os_error(error: OSError) -> GgufyError:
    place = Path(error.filename).as_posix() if isinstance(error.filename, str) else "a file"
    known = {
        errno.ENOSPC: (
            "no space left on the disk",
            "free some space and run the same command again; finished files stay",
        ),
        errno.EDQUOT: ("disk quota exceeded", "free some space and run the same command again; finished files stay"),
        errno.EFBIG: (
            "the file is larger than the disk or a limit allows",
            "choose another disk, or raise `ulimit -f`",
        ),
        errno.EACCES: ("permission denied", "choose a folder you may write to"),
        errno.EPERM: ("operation not permitted", "choose a folder you may write to"),
        errno.EROFS: ("the file system is read-only", "choose a folder you may write to"),
        errno.ENOENT: ("no such file or folder", "check the path"),
        errno.EISDIR: ("is a folder, not a file", "check the path"),
        errno.ENOTDIR: ("is not a folder", "check the path"),
    }
    what, hint = known.get(
        error.errno or 0,
        (error.strerror or str(error) or type(error).__name__, "run it with `ggufy --debug` to see where"),
    )
    return GgufyError(f"{place}: {what}", hint)
