"""No error of a lower layer reaches a user as a traceback."""

from __future__ import annotations

import errno
import inspect

import click
import pytest

from ggufy import cli, errors
from ggufy.errors import GgufyError, Interrupted, from_lower

LOWER = [
    OSError(errno.ENOSPC, "No space left on device", "runs/x/partial/a.gguf"),
    OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x"),
    PermissionError(errno.EACCES, "Permission denied", "runs"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
    IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"),
    OSError("no number and no name"),
    MemoryError(),
    ModuleNotFoundError("No module named 'torch'", name="torch"),
    RuntimeError("something nobody foresaw"),
    ZeroDivisionError(),
]


@pytest.mark.parametrize("lower", LOWER, ids=lambda e: f"{type(e).__name__}-{getattr(e, 'errno', None)}")
def test_lower_errors_say_what_and_what_to_do(lower: Exception) -> None:
    shown = from_lower(lower)
    assert isinstance(shown, GgufyError)
    assert shown.message
    assert shown.hint
    assert "\n" not in shown.message


def test_the_place_is_named() -> None:
    assert from_lower(LOWER[0]).message == "runs/x/partial/a.gguf: no space left on the disk"


@pytest.mark.parametrize("lower", [*LOWER, KeyboardInterrupt(), click.Abort(), GgufyError("what", "do")])
def test_the_command_line_shows_every_error_in_a_line(
    lower: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise lower

    monkeypatch.setattr(cli, "main", failing)
    code = cli._run([])
    # After ^C click begins a new line.
    shown = capsys.readouterr().err.strip().splitlines()
    stopped = isinstance(lower, KeyboardInterrupt | click.Abort)
    assert code == (130 if stopped else 1)
    assert shown[0].startswith("interrupted" if stopped else "error: ")
    assert len(shown) == 2
    assert shown[1].startswith("hint: ")


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = {line.split()[1] for line in (errors.__doc__ or "").splitlines() if line.strip().startswith(("├──", "└──"))}
    kinds = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, GgufyError)}
    assert kinds == drawn | {"GgufyError", Interrupted.__name__}
