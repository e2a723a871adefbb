"""Exports of a run, an adapter or a checkpoint: which files, made from what, in which order."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

from ggufy import calibration, digest, ggml, recipe
from ggufy.calibration import Texts
from ggufy.errors import ChatError, ExportError, Unverified
from ggufy.export import foreign, imatrix, layout, modelfile, stage
from ggufy.export.imatrix import Imatrix
from ggufy.export.request import ADAPTER, MERGED, Request
from ggufy.run import Artifact, Run
from ggufy.subject import Subject
from ggufy.template import text_of
from ggufy.verifier import Verifier

log = logging.getLogger("ggufy")

# Types without blocks: an importance matrix says nothing about them.
_PLAIN = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Wish:
    """What somebody asked of `ggufy export`."""

    quants: Sequence[str] | None = None
    merged: str | None = None
    adapter_gguf: bool = False
    imatrix: bool = False
    imatrix_data: Path | None = None
    imatrix_file: Path | None = None
    imatrix_tokens: int | None = None
    split_max_size: int | None = None
    ollama: str | None = None
    kernels: str = "auto"
    threads: int | None = None
    force: bool = False
    check_files: bool = True
    check_logits: bool = True

    @property
    def calibration_tokens(self) -> int:
        return self.imatrix_tokens or calibration.TOKENS

    @property
    def extras(self) -> list[str]:
        names = {"f16": "merged", "bf16": "merged-bf16"}
        return [*([names[self.merged]] if self.merged else []), *([ADAPTER] if self.adapter_gguf else [])]


class Wishes(TypedDict, total=False):
    """The fields of a Wish, as keyword arguments."""

    quants: Sequence[str] | None
    merged: str | None
    adapter_gguf: bool
    imatrix: bool
    imatrix_data: Path | None
    imatrix_file: Path | None
    imatrix_tokens: int | None
    split_max_size: int | None
    ollama: str | None
    kernels: str
    threads: int | None
    force: bool
    check_files: bool
    check_logits: bool


def check(wish: Wish, room: Run) -> None:
    """What can be said against a wish before anything is touched. Raises ExportError."""
    weighed = wish.imatrix or wish.imatrix_data or wish.imatrix_file or room.exists
    for quant in layout.check_quants(wish.quants) if wish.quants else ():
        if not weighed and ggml.needs_imatrix(quant):
            raise ExportError(
                f"{quant} needs an importance matrix (imatrix)", "give --imatrix-data, or choose another quant"
            )
    if wish.imatrix_file and (wish.imatrix or wish.imatrix_data):
        raise ExportError("--imatrix-file is a finished matrix, and --imatrix computes one", "give one of the two")


def make(this: Subject, wish: Wish) -> dict[str, Artifact]:
    """Make what is asked for, or find it made, by name. The caller holds the lock of the room."""
    this.claim(force=wish.force)
    return _Export(this, wish).make()


def plan(this: Subject, wish: Wish, scratch: Path) -> list[str]:
    """What an export would write, in lines for people."""
    names = [*_wanted_quants(this, wish), *wish.extras]
    outputs = {name: scratch / name for name in names}
    matrix = imatrix.read(wish.imatrix_file) if wish.imatrix_file else None
    request = Request(this.base.path, this.adapter, outputs, this.notes, matrix, wish.split_max_size, wish.kernels)
    weighed = matrix is None and _wants_imatrix(this, wish)
    ready = stage.plan(request, scratch, weighed=weighed)
    lines = ready.describe(wish.threads or stage.cores())
    if weighed:
        tokens = wish.calibration_tokens
        calibration.texts(this, wish.imatrix_data, tokens)
        lines.append(f"and before it an importance matrix from about {tokens:,} tokens, on an f16 file")
    return lines


class _Export:
    """One call of `make`."""

    def __init__(self, this: Subject, wish: Wish) -> None:
        self.this, self.wish = this, wish
        self.threads = wish.threads or stage.cores()
        self.inputs = {**this.inputs, "llama_cpp": metadata.version("llama-cpp-python")}
        if foreign.is_foreign(this.base.path):
            self.inputs["converter"] = foreign.fingerprint()
        self.quants = _wanted_quants(this, wish)
        self.matrix: Imatrix | None = None
        self.verifier = Verifier(this, self.threads, logits=wish.check_logits)

    def make(self) -> dict[str, Artifact]:
        tags = modelfile.tags(self.wish.ollama, self.quants, split=self.wish.split_max_size is not None)
        made: dict[str, Artifact] = {}
        if self.wish.imatrix_file:
            self.matrix, weighed = imatrix.read(self.wish.imatrix_file), digest.of_file(self.wish.imatrix_file)
        elif _wants_imatrix(self.this, self.wish):
            self._refuse_early()
            if "f16" in self.quants and not self.wish.split_max_size:
                # It is needed now, so it is made now.
                made |= self._make({self._file("f16"): {**self.inputs, "quant": "f16"}})
            made |= self._make_imatrix()
            self.matrix, weighed = imatrix.read(made["imatrix"].path), made["imatrix"].sha256
        files: dict[str, dict[str, Any]] = {}
        for name in (*self.quants, *self.wish.extras):
            inputs = files[self._file(name)] = {**self.inputs, "quant": name}
            if self.matrix and name in self.quants and name not in _PLAIN:
                inputs["imatrix"] = weighed
            if self.wish.split_max_size and name in self.quants:
                inputs["split"] = self.wish.split_max_size
        files |= self._modelfiles()
        # What was made first, because the others need it, is not "up to date".
        made = {**self._make(files), **made}
        for quant, tag in tags.items():
            _create_in_ollama(tag, made[f"{quant} Modelfile"].path)
        return made

    def _refuse_early(self) -> None:
        """What would be refused after the importance matrix is refused before it, which takes minutes."""
        this, room = self.this, self.this.room.path
        outputs = {name: room / name for name in (*self.quants, *self.wish.extras)}
        request = Request(this.base.path, this.adapter, outputs, this.notes, None, self.wish.split_max_size)
        with TemporaryDirectory(prefix="ggufy-") as scratch:
            sizes = stage.plan(request, Path(scratch), weighed=True).sizes
        there = [self._file(name) for name in outputs if self.this.room.valid(self._file(name))]
        if not there:
            stage.check_space(room, sizes)

    def _make(self, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Artifact]:
        def build(places: dict[str, Path]) -> None:
            for output, place in places.items():
                if text := files[output].get("modelfile"):
                    place.write_text(text, encoding="utf-8")
            by_name = {str(files[o]["quant"]): place for o, place in places.items() if "modelfile" not in files[o]}
            if not by_name:
                return
            request = Request(
                self.this.base.path,
                self.this.adapter,
                by_name,
                self.this.notes,
                self.matrix,
                self.wish.split_max_size,
                self.wish.kernels,
            )
            stage.export(request, self.threads)
            for name, place in by_name.items() if self.wish.check_files else ():
                if name not in MERGED:
                    log.info("verified %s", self.verifier.verify(place).text())

        self._verify_there(files)
        unverified = () if self.wish.check_files else [o for o, inputs in files.items() if _can_verify(inputs)]
        made = self.this.room.make(files, build, force=self.wish.force, unverified=unverified)
        return {_label(files[output]): artifact for output, artifact in made.items()}

    def _verify_there(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Verify what an earlier export made without it. What is not sound is made again."""
        room = self.this.room
        for output, inputs in files.items() if self.wish.check_files else ():
            there = room.valid(output, inputs) if room.unverified(output) else None
            if there is None:
                continue
            try:
                log.info("verified %s", self.verifier.verify(there.path).text())
            except Unverified as error:
                log.warning("%s; it was made with --no-verify, and is made again", error.message)
                room.note_verified(output, sound=False)
            else:
                room.note_verified(output, sound=True)

    def _make_imatrix(self) -> dict[str, Artifact]:
        texts = calibration.texts(self.this, self.wish.imatrix_data, self.wish.calibration_tokens)
        output = self._file("imatrix")
        self._verify_there({self._file("f16", split=False): {**self.inputs, "quant": "f16"}})
        inputs = {**self.inputs, "texts": [texts.name, texts.fingerprint], "tokens": self.wish.calibration_tokens}
        made = self.this.room.make(
            {output: inputs}, lambda places: self._compute(texts, places[output]), force=self.wish.force
        )
        return {"imatrix": made[output]}

    def _compute(self, texts: Texts, out: Path) -> None:
        tokens = texts.tokens()
        there = self.this.room.valid(self._file("f16", split=False), {**self.inputs, "quant": "f16"})
        model = there.path if there else out.with_name("model-f16.gguf")
        try:
            if not there:
                log.info("writing an f16 file for the importance matrix; it is removed afterwards")
                stage.export(
                    Request(self.this.base.path, self.this.adapter, {"f16": model}, self.this.notes), self.threads
                )
            imatrix.compute(model, tokens, texts.name, out, self.threads)
        finally:
            if not there:
                model.unlink(missing_ok=True)

    def _modelfiles(self) -> dict[str, dict[str, Any]]:
        """For each GGUF what Ollama has to know about it, where its template can be said in Ollama's language."""
        if not self.quants or self.wish.split_max_size:
            return {}
        if not text_of(self.this.base.path):
            if self.wish.ollama:
                raise ExportError(f"the base {self.this.base.name} has no chat template", "leave out --ollama")
            return {}
        try:
            text = modelfile.write(self.this.base.path, self.this.day)
        except ExportError as error:
            if self.wish.ollama:
                raise
            log.info("no Modelfile for Ollama: %s", error.message)
            return {}
        found = {}
        for quant in self.quants:
            gguf = Path(self._file(quant)).name
            found[f"{self.this.folder}{self.this.name}-{quant}.Modelfile"] = {
                "modelfile": f"FROM ./{gguf}\n{text}",
                "quant": quant,
            }
        return found

    def _file(self, name: str, *, split: bool | None = None) -> str:
        folder = name in MERGED or (
            name in self.quants and (self.wish.split_max_size is not None if split is None else split)
        )
        return f"{self.this.folder}{self.this.name}-{name}" + ("" if folder else ".gguf")


def _can_verify(inputs: Mapping[str, Any]) -> bool:
    return "modelfile" not in inputs and inputs["quant"] not in MERGED


def _label(inputs: Mapping[str, Any]) -> str:
    return f"{inputs['quant']} Modelfile" if "modelfile" in inputs else str(inputs["quant"])


def _wanted_quants(this: Subject, wish: Wish) -> list[str]:
    if wish.quants:
        return layout.check_quants(wish.quants)
    if wish.extras:
        return []
    if this.folder:
        return layout.check_quants(recipe.from_values(this.room.frozen["recipe"]).export.quants)
    return ["q4_k_m"]


def _wants_imatrix(this: Subject, wish: Wish) -> bool:
    if wish.imatrix or wish.imatrix_data:
        return True
    # A recipe's wish is for the quants that it can be of use to.
    weighed = [quant for quant in _wanted_quants(this, wish) if quant not in _PLAIN]
    return bool(this.folder and weighed) and recipe.from_values(this.room.frozen["recipe"]).export.imatrix


def models(this: Run) -> dict[str, str]:
    """The GGUF models among the outputs of a run or a folder of exports, oldest first: output -> quant."""
    found = {}
    for output in this.stamped():
        inputs = (this.stamp(output) or {}).get("inputs") or {}
        if inputs.get("quant") in ggml.ftypes() and "modelfile" not in inputs:
            found[output] = str(inputs["quant"])
    return found


def first_file(path: Path) -> Path:
    """The file to load of a model that may be split into several."""
    return sorted(path.glob("*-00001-of-*.gguf"))[0] if path.is_dir() else path


def gguf_of(this: Run, quant: str | None = None) -> Path:
    """The GGUF file to talk to, of a run or a folder of exports: the newest, or the one of that quant.

    Raises ChatError where there is none.
    """
    wanted = layout.check_quants([quant])[0] if quant else None
    outputs = [output for output, kind in models(this).items() if wanted in (None, kind)]
    for output in reversed(outputs):
        if artifact := this.valid(output):
            return first_file(artifact.path)
    again = f"`ggufy export {this.name}{f' --quant {quant}' if quant else ''}`"
    if not this.exists:
        again = "the `ggufy export` that wrote there"
    if outputs:
        damaged = (this.path / outputs[-1]).as_posix()
        raise ChatError(f"{damaged} was removed or damaged since it was made, or is not sound", f"{again} mends it")
    named = f" in {quant}" if quant else ""
    raise ChatError(f"{this.path.as_posix()} has no GGUF file{named} yet", f"{again} makes one")


def _create_in_ollama(tag: str, path: Path) -> None:
    log.info("ollama create %s", tag)
    command = [str(shutil.which("ollama")), "create", tag, "-f", path.name]
    done = subprocess.run(command, cwd=path.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("Error")), said[-1] if said else "no reason given")
        raise ExportError(f"ollama create {tag} failed: {reason}", "is the Ollama server running? The files are kept")
