"""The run directory: complete or not there, made once, one writer."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ggufy.errors import RunError
from ggufy.runs.run import Run
from ggufy.stages import model_source


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


def test_what_a_kill_left_goes_also_where_all_is_up_to_date(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    make(run, "one", x=1)

    def killed(places: dict[str, Path]) -> None:
        places["big"].with_name("between").write_text("large")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.make({"big": {"x": 1}}, killed)
    assert (run.path / "partial").exists()
    assert make(run, "never", x=1)
    assert not (run.path / "partial").exists()


def test_another_command_stamps_what_was_moved_before_a_crash(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    make(run, "one", x=1)
    run._finish_move = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        make(run, "other", x=2)
    again = Run(run.path)
    again.make({"b.txt": {}}, build("b"))  # type: ignore[arg-type]
    assert make(again, "never", x=2)
    assert (run.path / "out/a.txt").read_text() == "other"


@pytest.mark.parametrize("x", [1, 2], ids=["same inputs", "other inputs"])
def test_a_file_put_in_the_place_of_ours_is_left_alone(x: int, tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    make(run, "one", x=1)
    path = run.path / "out/a.txt"
    path.write_text("my own")
    os.utime(path, (1, 1))
    with pytest.raises(RunError, match="not the file that ggufy made") as caught:
        make(run, "two", x=x)
    assert "--force" in str(caught.value.hint)
    assert path.read_text() == "my own"
    run.make({"out/a.txt": {"x": x}}, build("two"), force=True)  # type: ignore[arg-type]
    assert path.read_text() == "two"
    assert make(run, "never", x=x)


def parts(*names: str) -> object:
    def build(places: dict[str, Path]) -> None:
        for place in places.values():
            for name in names:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(name)

    return build


def test_a_file_of_somebody_in_a_folder_of_ours_stays(tmp_path: Path) -> None:
    """Without --force nothing is touched; with it ours are replaced, and the others stay beside them."""
    run = Run(tmp_path / "r")
    run.make({"merged": {"x": 1}}, parts("1-of-2", "sub/2-of-2"))  # type: ignore[arg-type]
    mine = run.path / "merged/sub/notes.txt"
    mine.write_text("mine")
    with pytest.raises(RunError, match=r"merged/sub/notes.txt is in the way"):
        run.make({"merged": {"x": 2}}, parts("1-of-1"))  # type: ignore[arg-type]
    assert (run.path / "merged/1-of-2").exists()
    run.make({"merged": {"x": 2}}, parts("1-of-1"), force=True)  # type: ignore[arg-type]
    held = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()}
    assert held == {"merged/1-of-1", "merged/sub/notes.txt", "stamps/merged.json"}
    assert mine.read_text() == "mine"
    assert run.make({"merged": {"x": 2}}, parts("never"))["merged"].reused  # type: ignore[arg-type]


def test_a_folder_made_only_for_its_lock_goes_again(tmp_path: Path) -> None:
    with Run(tmp_path / "a/b/r").lock():
        assert (tmp_path / "a/b/r/lock").read_text()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with Run(tmp_path / "mine/r").lock(), Run(tmp_path / "mine/full").lock():
        (tmp_path / "mine/full/file").write_text("kept")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "mine",
        "mine/full",
        "mine/full/file",
        "mine/full/lock",
    ]


def test_a_lock_that_its_holder_has_removed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking it, another process ended and took its folder away."""
    real, path, calls = fcntl.flock, tmp_path / "r", []

    def flock(file: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            (path / "lock").unlink()
            path.rmdir()
        real(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", flock)
    with Run(path).lock():
        assert len(calls) == 2
        with pytest.raises(RunError, match="in use by another ggufy"), Run(path).lock():
            pass


def test_force_replaces_what_is_written_and_nothing_else(tmp_path: Path) -> None:
    """Of a folder that ggufy has no stamp of."""
    run = Run(tmp_path / "r")
    (run.path / "merged").mkdir(parents=True)
    for name in ("1-of-1", "notes.txt"):
        (run.path / "merged" / name).write_text("mine")
    run.make({"merged": {"x": 1}}, parts("1-of-1"), force=True)  # type: ignore[arg-type]
    held = {p.name: p.read_text() for p in (run.path / "merged").iterdir()}
    assert held == {"1-of-1": "1-of-1", "notes.txt": "mine"}
    (run.path / "merged/old.safetensors").write_text("mine")
    with pytest.raises(RunError, match=r"merged/old\.safetensors would be taken for a part"):
        run.make({"merged": {"x": 2}}, parts("1-of-1"), force=True)  # type: ignore[arg-type]
    assert run.valid("merged", {"x": 1})
    assert (run.path / "merged/old.safetensors").read_text() == "mine"


def test_exports_of_another_source_are_kept(tmp_path: Path) -> None:
    """The same source trained further is made again, and so is a moved one that is the same."""

    def export(source: str, adapter: str, *, force: bool = False) -> bool:
        run = Run(tmp_path / "r")
        run.claim(source, {"adapter": adapter, "base": "b"}, force=force)
        inputs = {"adapter": adapter, "base": "b", "quant": "q8_0"}
        made = run.make({"a.gguf": inputs, "a.Modelfile": {"modelfile": "FROM"}}, build(adapter), force=force)  # type: ignore[arg-type]
        return made["a.gguf"].reused

    assert not export("../g/a", "one")
    assert not export("../g/a", "more")
    assert export("../moved/a", "more")
    with pytest.raises(RunError, match="holds exports of another adapter") as caught:
        export("../g/b", "two")
    assert "--out" in str(caught.value.hint)
    assert (tmp_path / "r/a.gguf").read_text() == "more"
    assert not export("../g/b", "two", force=True)
    assert not export("../g/b", "three")
    assert not (tmp_path / "r/partial").exists()


def test_a_claim_alone_leaves_nothing(tmp_path: Path) -> None:
    Run(tmp_path / "r").claim("../a", {"adapter": "one"})
    assert not (tmp_path / "r").exists()


def test_the_inputs_of_an_export_hold_all_of_the_adapter_and_the_small_files_of_the_base(
    base: Path, tmp_path: Path
) -> None:
    model, adapter = Path(shutil.copytree(base, tmp_path / "model")), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    data = bytearray(16 << 20)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(data)
    seen = []

    def look() -> None:
        found = model_source.of_folder(adapter, str(model), tmp_path / "out")
        seen.append((found.inputs["adapter"], found.inputs["base_files"], found.base.fingerprint))
        assert found.source == "../adapter"

    look()
    # Between two of the pieces that a sample of it has.
    data[100_000] = 1
    weights.write_bytes(data)
    look()
    (model / "generation_config.json").write_text("{}")
    look()
    (model / "merges.txt").write_text("a b")
    look()
    assert [len(set(column)) for column in zip(*seen, strict=True)] == [2, 3, 1]


def test_one_writer(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    take = f"with Run(Path({str(run.path)!r})).lock(): print('held', flush=True); input()"
    hold = f"from ggufy.runs.run import Run; from pathlib import Path\n{take}"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"in use by another ggufy command .process {other.pid}"), run.lock():
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
