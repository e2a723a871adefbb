"""Send checkpoints to the Hub while a training runs, in a separate process that the training never waits for.

It looks for checkpoints that are sealed, holds the newest by hard links so that the training may remove it, and sends
it as one commit that replaces the one before: the branch always holds one whole checkpoint. What fails is said and
tried again. It ends when the training does, however that ends, after what was saved last has arrived.

    python -m ggufy.hub.checkpoints RUN user/name BRANCH every_save|end
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufy.errors import GgufyError, HubError, from_lower
from ggufy.hub import push
from ggufy.hub.client import access, session, upload
from ggufy.hub.client.upload import Target
from ggufy.hub.contents import bundle, manifest, names, places, receipt
from ggufy.hub.contents.bundle import File
from ggufy.hub.contents.facts import amount
from ggufy.hub.pull import checkpoint_branch, newest_step
from ggufy.recipe.schema import Recipe
from ggufy.runs.run import Run
from ggufy.system import disk

log = logging.getLogger("ggufy")

_LOOK_SECONDS = 0.5
_WAITS = (5.0, 10.0, 20.0, 40.0, 60.0)
# What is tried after the training has ended, before giving up.
_LAST_TRIES = 3
# Peft's README.md and the trainer's pickled arguments name folders of this machine, and no resume reads them.
_NOT_SENT = ("manifest.json", "training_args.bin", "README.md")
_CONFIG = "adapter_config.json"


def target_of(wanted: Recipe, run: Run) -> Target | None:
    """Where the checkpoints of a training go, if they do: beside the results of a push, by the same names.

    Its data is prepared, so that {n} is known.
    """
    hub = wanted.hub
    if hub.checkpoints == "off" or hub.repo is None:
        return None
    frozen, rows = {"recipe": wanted.model_dump(mode="json")}, bundle.conversations(run)
    repo, branch = (names.fill(text, run.name, frozen, rows) for text in (hub.repo, hub.branch))
    return Target(names.check_repository(repo), names.check_ref(checkpoint_branch(branch), "branch"))


@contextmanager
def uploading(run: Run, wanted: Recipe) -> Iterator[None]:
    """While it is entered, checkpoints are sent as the recipe says. Nothing that fails there is raised here."""
    target = target_of(wanted, run)
    if target is None:
        yield
        return
    command = [sys.executable, "-m", "ggufy.hub.checkpoints", str(run.path.resolve()), target.repo, target.branch]
    process = subprocess.Popen(
        [*command, wanted.hub.checkpoints],
        stdin=subprocess.PIPE,
        stdout=_stderr(),
        # ^C stops the training, which saves a checkpoint; that one is to be sent.
        start_new_session=True,
    )
    try:
        yield
    finally:
        if process.stdin is not None:
            process.stdin.close()
        if process.poll() is None:
            log.info("sending the last checkpoint to %s; Ctrl-C leaves that to the background", target.name)
            process.wait()


def _stderr() -> int | None:
    """Where its lines go: with ours. In a notebook standard error may be no file; then as the notebook's own."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None


class Sender:
    """The process beside a training."""

    def __init__(self, run: Run, target: Target, when: str) -> None:
        self.run, self.target, self.when = run, target, when
        self.holding = run.path / "checkpoints" / ".sending"
        self.ended = threading.Event()
        self.ready = False
        self.sent = 0

    def work(self) -> None:
        """Send until the training has ended and its last checkpoint has arrived, or cannot."""
        threading.Thread(target=self._wait_for_the_end, daemon=True).start()
        self.holding.parent.mkdir(parents=True, exist_ok=True)
        # That of a training that was killed may still be sending what was saved last.
        with disk.held(self.holding.parent):
            shutil.rmtree(self.holding, ignore_errors=True)
            self._work()
            shutil.rmtree(self.holding, ignore_errors=True)

    def _work(self) -> None:
        failures = 0
        while True:
            ended = self.ended.is_set()
            newest: Path | None = None
            try:
                newest = self._newest() if ended or self.when == "every_save" else None
                if newest is not None:
                    self._send(newest)
                    failures = 0
                elif ended:
                    break
                else:
                    self.ended.wait(_LOOK_SECONDS)
            except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
                failures += 1
                last = ended and failures >= _LAST_TRIES
                self._say(newest, from_lower(error), last=last)
                if last:
                    break
                # The end of the training interrupts a wait, and is then no reason to hurry more than that.
                if ended:
                    time.sleep(_WAITS[0])
                else:
                    self.ended.wait(_WAITS[min(failures, len(_WAITS)) - 1])

    def _wait_for_the_end(self) -> None:
        sys.stdin.buffer.read()
        self.ended.set()

    def _newest(self) -> Path | None:
        """The newest checkpoint that was not sent yet, held so that nobody can take it away meanwhile."""
        found = [path.parent for path in self.run.path.glob("checkpoints/checkpoint-*/manifest.json")]
        newest = max(found, key=_step, default=None)
        if newest is None or _step(newest) <= self.sent:
            return None
        held = self.holding / newest.name
        if not (held / "manifest.json").is_file():
            shutil.rmtree(self.holding, ignore_errors=True)
            try:
                for folder in {newest, self._best(newest)}:
                    _hold_folder(folder, self.holding / folder.name)
            except FileNotFoundError:
                # Removed at this moment, because a newer one is there.
                return None
        return held

    def _best(self, newest: Path) -> Path:
        """The checkpoint whose weights the adapter gets as things stand: with train.keep_best not the newest."""
        if not self.run.frozen["recipe"]["train"].get("keep_best"):
            return newest
        history = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        evaluated = [entry for entry in history if "eval_loss" in entry]
        best = min(evaluated, key=lambda entry: entry["eval_loss"], default=None)
        return newest.with_name(f"checkpoint-{best['step']}") if best else newest

    def _send(self, folder: Path) -> None:
        files = self._files()
        api = session.client()
        target = self.target
        if not self.ready:
            private = bool(self.run.frozen["recipe"]["hub"].get("private", False))
            may = access.check(api, target.repo, None)
            access.check_private(target.repo, may, private=private)
            if not may.exists:
                push.create(api, target, private=private)
            push.make_branch(api, target)
            self.ready = True
        if ahead := self._ahead(files, upload.look(api, target), _step(folder)):
            self.sent = _step(folder)
            log.info(
                "%s is not sent: %s already has step %d of this run, from another machine",
                folder.name,
                target.name,
                ahead,
            )
            return
        paths = {file.path for file in files}

        def stale(there: Mapping[str, Any]) -> list[str]:
            return [path for path in there if path.startswith("checkpoints/") and path not in paths]

        done = upload.upload(
            api,
            target,
            files,
            f"{self.run.name}: {folder.name}",
            own=lambda: receipt.own(self.run, target.name),
            before=lambda: receipt.begin(self.run, target.name, files),
            stale=stale,
        )
        facts = push.receipt_of(target, None, done)
        receipt.finish(self.run, target.name, files, facts)
        self.sent = _step(folder)
        log.info("%s is on the Hub: %s, %s", folder.name, target.name, amount(sum(file.size for file in files)))

    def _ahead(self, files: list[File], remote: upload.Remote, step: int) -> int | None:
        """The step on the branch, where another machine went on with this run and is as far as this one, or further."""
        theirs = {path for path in remote.files if path.startswith("checkpoints/")}
        there = newest_step(path.split("/")[1] for path in theirs)
        own = receipt.own(self.run, self.target.name)
        ours = all(manifest.identities(remote.files[path]) <= own for path in theirs)
        # The same record; or, where that notes other versions, the same weights.
        records = [file for file in files if file.path == "ggufy/run.json"]
        weights = [file for file in files if file.path.endswith((".safetensors", "optimizer.pt"))]
        same = any(bool(kind) and all(map(remote.holds, kind)) for kind in (records, weights))
        return there if there >= step and not ours and same else None

    def _files(self) -> list[File]:
        """Those of the checkpoints that are held, and of the run what a training needs to go on."""
        sources: dict[str, tuple[Path | bytes, str]] = {}
        sealed: dict[str, str] = {}
        for folder in sorted(path.parent for path in self.holding.glob("*/manifest.json")):
            seal = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            seal["files"] = {name: facts for name, facts in seal["files"].items() if name not in _NOT_SENT}
            at = f"checkpoints/{folder.name}"
            for name, facts in seal["files"].items():
                sources[f"{at}/{name}"] = (folder / names.check_path(name), f"{at}/{name}")
                sealed[f"{at}/{name}"] = facts["sha256"]
            if _CONFIG in seal["files"]:
                data = self._public_config(folder / _CONFIG)
                sha256 = hashlib.sha256(data).hexdigest()
                sources[f"{at}/{_CONFIG}"] = (data, f"{at}/{_CONFIG}")
                sealed[f"{at}/{_CONFIG}"] = sha256
                seal["files"][_CONFIG] = {"size": len(data), "sha256": sha256}
            sources[f"{at}/manifest.json"] = (bundle.as_json(seal), f"{at}/manifest.json")
        sources["ggufy/run.json"] = (bundle.as_json(places.without_places(self.run.frozen)), "run.json")
        metrics = self.run.path / "metrics.jsonl"
        if metrics.is_file():
            # The training may be writing its next line.
            whole = metrics.read_bytes()
            sources["ggufy/metrics.jsonl"] = (whole[: whole.rfind(b"\n") + 1], "metrics.jsonl")
        files = bundle.from_sources({path: source for path, (source, _) in sources.items()}, self.run.path)
        for file in files:
            if sealed.get(file.path, file.sha256) != file.sha256:
                raise HubError(
                    f"{file.path} has changed since the checkpoint was saved", "the next checkpoint will be sent"
                )
        listed = {file.path: {"path": sources[file.path][1], **bundle.facts_of(file)} for file in files}
        noted = manifest.of(receipt.name(self.run, self.target.name), listed, [])
        files += bundle.from_sources({manifest.MANIFEST: bundle.as_json(noted)}, self.run.path)
        return sorted(files, key=lambda file: (file.size, file.path))

    def _public_config(self, path: Path) -> bytes:
        """Peft's configuration, with the base's name in the place of the folder it was loaded from."""
        config = json.loads(path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = self.run.frozen["base"]["name"]
        return bundle.as_json(places.without_places(config))

    def _say(self, folder: Path | None, error: GgufyError, *, last: bool) -> None:
        then = "giving up; it stays on this disk" if last else "trying again"
        hint = "; set hub.branch to another name" if "did not put there" in error.message else ""
        log.warning(
            "%s is not on the Hub yet: %s%s (%s)",
            folder.name if folder else "the newest checkpoint",
            error.message,
            hint,
            then,
        )


def _hold_folder(folder: Path, held: Path) -> None:
    """Hold a sealed checkpoint, its manifest last. Raises FileNotFoundError where it is being removed."""
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    for name in (*listed, "manifest.json"):
        (held / name).parent.mkdir(parents=True, exist_ok=True)
        _hold(folder / name, held / name)


def _hold(path: Path, held: Path) -> None:
    """A second name for a file, or a copy where the disk knows no second names."""
    try:
        os.link(path, held)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, held)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def main(arguments: list[str]) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stdout)
    log.setLevel(logging.INFO)
    os.nice(5)
    path, repo, branch, when = arguments
    Sender(Run(Path(path)), Target(repo, branch), when).work()


if __name__ == "__main__":
    main(sys.argv[1:])
