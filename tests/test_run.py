"""The run directory: complete or not there, made once, one writer."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ggufy.errors import RunError
from ggufy.run import Run


def build(content: str) -> object:
    return lambda places: [place.write_text(content) for place in places.values()]


def make(run: Run, content: str, **inputs: object) -> bool:
    """Whether it was reused."""
    return run.make({"out/a.txt": inputs}, build(content))["out/a.txt"].reused  # type: ignore[arg-type]


def test_made_once_while_the_inputs_are_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    assert not make(run, "one", x=1)
    assert make(run, "never written", x=1)
    assert (run.path / "out/a.txt").read_text() == "one"
    assert not make(run, "two", x=2)
    assert (run.path / "out/a.txt").read_text() == "two"
    assert not (run.path / "partial").exists()


def test_a_changed_file_is_made_again_and_a_touched_one_is_not(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    make(run, "one", x=1)
    path = run.path / "out/a.txt"
    path.touch()
    assert make(run, "two", x=1)
    path.write_text("ONE")
    assert not make(run, "two", x=1)
    path.unlink()
    assert not make(run, "three", x=1)


def test_a_file_that_ggufy_did_not_make_is_left_alone(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    (run.path / "out").mkdir(parents=True)
    (run.path / "out/a.txt").write_text("mine")
    with pytest.raises(RunError, match="ggufy did not make it"):
        make(run, "one", x=1)
    assert (run.path / "out/a.txt").read_text() == "mine"
    run.make({"out/a.txt": {"x": 1}}, build("one"), force=True)  # type: ignore[arg-type]
    assert (run.path / "out/a.txt").read_text() == "one"


def test_a_crash_between_the_move_and_the_stamp_loses_nothing(tmp_path: Path) -> None:
    """The stamp waits below partial/ until the file has its final name; the next attempt finds both."""
    run = Run(tmp_path / "r")
    moved: list[Path] = []
    finish = run._finish_move

    def crash(output: str, inputs: dict[str, object]) -> None:
        if (run.path / output).exists() and not moved:
            moved.append(run.path / output)
            raise KeyboardInterrupt
        finish(output, inputs)

    run._finish_move = crash  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        make(run, "one", x=1)
    assert moved[0].read_text() == "one"
    assert run.stamp("out/a.txt") is None
    again = Run(run.path)
    assert make(again, "never written", x=1)
    assert not (run.path / "partial").exists()


def test_a_failed_build_leaves_the_old_output(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    make(run, "one", x=1)

    def broken(places: dict[str, Path]) -> None:
        next(iter(places.values())).write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run.make({"out/a.txt": {"x": 2}}, broken)
    assert (run.path / "out/a.txt").read_text() == "one"
    assert make(run, "never", x=1)


def test_unfinished_work_is_found_by_the_same_inputs_and_removed_for_others(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    seen: list[bool] = []

    def interrupted(places: dict[str, Path]) -> None:
        seen.append(places["big"].exists())
        places["big"].write_text("half")
        raise KeyboardInterrupt

    for inputs in ({"x": 1}, {"x": 1}, {"x": 2}):
        with pytest.raises(KeyboardInterrupt):
            run.make({"big": inputs}, interrupted)
    assert seen == [False, True, False]
    assert len(list((run.path / "partial").iterdir())) == 1


def test_one_writer(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    take = f"with Run(Path({str(run.path)!r})).lock(): print('held', flush=True); input()"
    hold = f"from ggufy.run import Run; from pathlib import Path\n{take}"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"in use by another ggufy .process {other.pid}"), run.lock():
            pass
        other.kill()


def test_the_lock_of_a_dead_process_is_taken_over_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path / "r")
    run.path.mkdir()
    (run.path / "lock").write_text("4242\n")
    with caplog.at_level(logging.INFO, "ggufy"), run.lock():
        assert "process 4242" in caplog.text
    assert (run.path / "lock").read_text() == ""


def test_the_record_is_whole_or_not_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    run.freeze({"recipe": {"name": "ä"}})
    assert json.loads((run.path / "run.json").read_text(encoding="utf-8")) == {"recipe": {"name": "ä"}}
    (run.path / "run.json").write_text('{"rec')
    with pytest.raises(RunError, match=r"run\.json cannot be read"):
        assert run.frozen
