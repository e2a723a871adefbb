"""The models of an evaluation and their GGUF files: the exports, and files made on demand for the comparison.

What the tuned files are held against is made from the same weights in the same pass as any export: the F16 file of the
tuned model, and the plain base. Each is an output of the run until the evaluation is done with it.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ggufy.errors import EvalError
from ggufy.export import engine
from ggufy.export.converter import conversion
from ggufy.export.gguf import quant_support
from ggufy.export.request import Request
from ggufy.llamacpp import gguf_reader, library
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.runs.run import Run
from ggufy.stages import exported
from ggufy.stages.model_source import ModelSource
from ggufy.system import digest
from ggufy.verify import checks
from ggufy.verify.expected import Expected

log = logging.getLogger("ggufy")

Role = Literal["base", "tuned", "file"]
F16 = "f16"


@dataclass(frozen=True)
class ModelFile:
    """One model in one precision."""

    name: str
    """For people: "base f16", "q8_0", or a file's name."""
    role: Role
    quant: str
    identity: str
    """Which it is, by content."""
    path: Path | None = None
    """Where its file is; None: it is made when it is needed."""
    output: str = ""
    """What it is called in the run once it is made."""

    @property
    def label(self) -> str:
        """Part of a file's name. Two may share one: what is kept there goes by content."""
        return re.sub(r"[^\w.-]+", "-", self.name)[:80]

    def is_file_of(self, other: ModelFile) -> bool:
        """Whether both are the same model in the same file."""
        if self.path is None or other.path is None:
            return self == other
        return first_file(self).samefile(first_file(other))


@dataclass(frozen=True)
class Facts:
    """What a file is, beside what it says."""

    size: int
    """Bytes, of all its parts."""
    weights: int
    """How many there are."""

    @property
    def bits(self) -> float:
        """Bits a weight, with everything that is in the file."""
        return 8 * self.size / self.weights


class ModelFiles:
    """The models of one run or folder of exports, or lone files. The caller holds the lock of the output folder."""

    def __init__(self, output_folder: Run, source: ModelSource | None, files: Sequence[Path], threads: int) -> None:
        self.output_folder, self.source, self.threads = output_folder, source, threads
        self.files = [_of_file(path) for path in files]
        self._tuned = {one.quant: one for one in self._exported()} if source else {}

    @property
    def quants(self) -> list[ModelFile]:
        """The files that somebody would use, the largest first: exports, but for the F16 one, or the lone files."""
        found = [*(one for quant, one in self._tuned.items() if quant != F16), *self.files]
        return sorted(found, key=lambda one: -facts(first_file(one)).size)

    def tuned_f16(self) -> ModelFile | None:
        """What the quants were rounded from; None where only files are known."""
        if self.source is None:
            return None
        return self._tuned.get(F16) or self._made("tuned", F16, self.source.adapter)

    def base(self, quant: str = F16) -> ModelFile | None:
        """The model before training; None where nothing was trained, or only files are known."""
        if self.source is None or self.source.adapter is None:
            return None
        return self._made("base", base_quant(quant), None)

    def spoken(self) -> ModelFile | None:
        """The file that somebody would talk to: the quant that was exported last, else what there is."""
        quants = [one for quant, one in self._tuned.items() if quant != F16]
        return next(iter([*quants, *self.files]), None) or self.tuned_f16()

    def paths(self, wanted: Sequence[ModelFile]) -> list[Path]:
        """The files to load, making those that are not there."""
        absent = [one for one in wanted if one.path is None]
        for role in ("base", "tuned"):
            group = {one.output: one for one in absent if one.role == role}
            if group:
                self._make(group)
        return [self.output_folder.path / one.output if one.path is None else first_file(one) for one in wanted]

    def discard(self) -> None:
        """Remove the files that were made on demand."""
        for output in self.output_folder.stamped("eval/"):
            if output.endswith(".gguf"):
                self.output_folder.discard(output)

    def _exported(self) -> Iterator[ModelFile]:
        """The newest valid file of each quant, the newest first."""
        assert self.source is not None
        seen = set()
        for output, quant in reversed(list(exported.models(self.output_folder).items())):
            artifact = self.output_folder.valid(output)
            if artifact is None or quant in seen:
                continue
            if why := exported.outdated(self.output_folder, output, self.source):
                log.info("%s is left out: it %s", artifact.path, why)
                continue
            seen.add(quant)
            yield ModelFile(quant, "tuned", quant, artifact.sha256, artifact.path)

    def _made(self, role: Role, quant: str, adapter: Path | None) -> ModelFile:
        inputs = self._inputs(role, quant, adapter)
        name = f"base {quant}" if role == "base" else quant
        return ModelFile(name, role, quant, digest.of_values(inputs), None, f"eval/{role}-{quant}.gguf")

    def _inputs(self, role: Role, quant: str, adapter: Path | None) -> dict[str, Any]:
        assert self.source is not None
        return {**made_of(self.source, adapter), "evaluates": quant, "role": role}

    def _make(self, group: dict[str, ModelFile]) -> None:
        source = self.source
        assert source is not None
        role = next(iter(group.values())).role
        adapter = None if role == "base" else source.adapter
        inputs = {output: self._inputs(role, one.quant, adapter) for output, one in group.items()}

        def build(places: dict[str, Path]) -> None:
            named = ", ".join(group[output].quant for output in places)
            log.info("making %s of %s for the comparison", named, "the base" if role == "base" else "the tuned model")
            make(source, adapter, {group[output].quant: place for output, place in places.items()}, self.threads)

        # Forced: eval/ in a run is ggufy's own, and a file that has lost its stamp is made again.
        if any(self.output_folder.valid(output, wanted) is None for output, wanted in inputs.items()):
            self.output_folder.make(inputs, build, force=True)


@functools.cache
def base_quant(quant: str) -> str:
    """In what a base is made to stand beside a file: the same, but for a quant that needs an importance matrix."""
    if not quant_support.needs_imatrix(quant):
        return quant
    # Once: several parts of an evaluation ask.
    log.info("the base in %s would need an importance matrix of its own; it is made in q8_0 instead", quant)
    return "q8_0"


def made_of(source: ModelSource, adapter: Path | None) -> dict[str, Any]:
    """What the bytes of a file made for a comparison depend on, but for its quant. Without `adapter` it is the base."""
    inputs = {**source.inputs, "llama_cpp": metadata.version("llama-cpp-python")}
    if adapter is None:
        inputs["adapter"] = None
    if conversion.is_foreign(source.base.path):
        inputs["converter"] = conversion.fingerprint()
    return inputs


def make(source: ModelSource, adapter: Path | None, outputs: Mapping[str, Path], threads: int) -> None:
    """Export a model source, or without `adapter` its base, and verify the files, each under its quant."""
    # The base is asked as the tuned model is, where its embedding has the rows for it.
    own = source.own_tokenizer if adapter or not source.resizes else None
    engine.export(Request(source.base.path, adapter, dict(outputs), source.notes, tokenizer=own), threads)
    expected = Expected.of(source.base.path, adapter, own)
    for place in outputs.values():
        checks.verify(place, own or source.base.path, threads, None, expected)


def first_file(one: ModelFile) -> Path:
    """The file to load of a model that may be split into several."""
    assert one.path is not None
    return exported.first_file(one.path)


def facts(path: Path) -> Facts:
    """Size and number of weights of a GGUF, of which `path` is the first file."""
    size = weights = 0
    for file in checks.files(path):
        header = gguf_reader.read_gguf(file)
        size += file.stat().st_size
        # 256 weights make whole blocks of every type.
        weights += sum(tensor.size * 256 // library.row_size(tensor.type, 256) for tensor in header.tensors)
    return Facts(size, weights)


_NO_TEXT = ("bert", "clip", "t5encoder", "wavtokenizer")


def _of_file(path: Path) -> ModelFile:
    """A lone GGUF. Raises EvalError or ModelError where it holds no model that speaks."""
    header = gguf_reader.read_gguf(path, ("general.architecture", "general.type"))
    kind, architecture = header.texts.get("general.type", "model"), header.texts.get("general.architecture", "")
    if kind != "model":
        raise EvalError(f"{path.as_posix()} holds an {kind}, not a model", "name the GGUF of a whole model")
    if any(name in architecture for name in _NO_TEXT):
        raise EvalError(
            f"{path.as_posix()}: a model of the architecture {architecture} does not write text",
            "name the GGUF of a language model",
        )
    # Whatever llama.cpp has against it is said before anything is measured.
    Forward(path, 64, 1).close()
    parts = [digest.of_sample(file) for file in checks.files(path)]
    return ModelFile(path.name, "file", path.stem, digest.of_values(parts), path)
