"""Check options on the types of tensors against a model, before a weight is read.

llama.cpp takes a pattern that matches nothing in silence, and ends the process over a type that does not fit a tensor's
width or lacks an importance matrix. Which tensors a pattern matches is asked of llama.cpp, on a skeleton of the model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufy.errors import ExportError
from ggufy.export.gguf import quant_support
from ggufy.export.gguf.tensor_types import EMBEDDING, OUTPUT, TypeOptions, known
from ggufy.export.imatrix import Imatrix
from ggufy.llamacpp import gguf_reader, library
from ggufy.llamacpp.mixture import Mixture

_PROBE = "q8_0"
"""A quant in whose files no tensor is float32 that llama.cpp quantizes at all."""


@dataclass(frozen=True)
class Skeleton:
    """A GGUF in F16 with a model's names and widths, the model's real shapes, and a folder for answers."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    scratch: Path

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output too."""
        return OUTPUT not in self.shapes

    def matched(self, pattern: str) -> set[str]:
        """The tensors that llama.cpp quantizes and in whose names it finds a pattern. Raises ExportError."""
        answer = self.scratch / "skeleton-matched.gguf"
        mixture = Mixture(((pattern, library.F32),), pure=True)
        try:
            library.quantize_file(self.path, answer, library.ftypes()[_PROBE], mixture=mixture)
            before, after = (gguf_reader.read_gguf(path).tensors for path in (self.path, answer))
        finally:
            answer.unlink(missing_ok=True)
        whole = {tensor.name for tensor in before if tensor.type == library.F32}
        return {tensor.name for tensor in after if tensor.type == library.F32} - whole


@dataclass(frozen=True)
class Asked:
    """The type that the options say for one tensor."""

    option: str
    type: int
    falls_back: bool
    """Whether llama.cpp takes another where this one does not fit the width."""


class Checked:
    """Options on types, checked against a model. Raises ExportError where they do not fit it."""

    def __init__(self, options: TypeOptions, model: Skeleton) -> None:
        self.options, self.model = options, model
        self.notes: list[str] = []
        """What has no effect, in lines for people."""
        self.asked = self._asked()
        if options.published:
            [architecture] = gguf_reader.read_gguf(model.path, ("general.architecture",)).texts.values()
            # Files from before llama.cpp had it lack the tensor.
            options.published.check(architecture, model.shapes, ("rope_freqs.weight",))
            where = f"--types-from {options.published.path.as_posix()}"
            for name, number in options.published.types.items():
                if name == OUTPUT and options.leave_output:
                    continue
                self.asked.setdefault(name, Asked(where, number, falls_back=True))
        self._check_widths()
        self._note_what_has_no_effect()

    def check_imatrix(self, quant: str, matrix: Imatrix | None) -> None:
        """Raise ExportError where a type needs an importance matrix that is not there."""
        for name, asked in self.asked.items():
            kind = library.type_name(asked.type)
            if self.model.shapes[name][-1] % _block(asked.type) or (matrix and name in matrix.means):
                continue
            hint = "give --imatrix, --imatrix-data or --imatrix-file, or another type"
            if name in (EMBEDDING, OUTPUT):
                if library.library().ggml_quantize_requires_imatrix(asked.type):
                    hint = "give another type, such as q6_k: an importance matrix seldom has values for it"
                    raise ExportError(f"{asked.option}: {kind} needs an importance matrix with values for {name}", hint)
            elif matrix is None and quant_support.type_needs_imatrix(asked.type):
                raise ExportError(f"{asked.option}: {quant} with {name} in {kind} needs an importance matrix", hint)

    def check_answer(self, types: Mapping[str, int]) -> None:
        """Raise ExportError where llama.cpp gives a tensor another type than the published file has."""
        published = self.options.published
        for name, number in published.types.items() if published else ():
            asked = self.asked.get(name)
            if asked and types.get(name, number) != number and asked.option.startswith("--types-from"):
                theirs, ours = library.type_name(number), library.type_name(types[name])
                raise ExportError(
                    f"{asked.option}: its {name} is {theirs}, and llama.cpp only makes {ours} of it here",
                    "give --tensor-type for what can be chosen, instead of --types-from",
                )

    def _asked(self) -> dict[str, Asked]:
        """By tensor, what the options say of it, but for a published file: in the order of llama.cpp's quantizer."""
        options, kinds = self.options, known()
        found: dict[str, Asked] = {}
        if options.embedding:
            option = f"--token-embedding-type {options.embedding}"
            found[EMBEDDING] = Asked(option, kinds[options.embedding], falls_back=False)
        if options.output and not self.model.tied:
            found[OUTPUT] = Asked(f"--output-tensor-type {options.output}", kinds[options.output], falls_back=False)
        for pattern, kind in options.patterns:
            option = f"--tensor-type {pattern}={kind}"
            names = self._matched(option, pattern)
            if options.leave_output:
                names -= {OUTPUT}
            if names <= found.keys():
                first = ", ".join(dict.fromkeys(found[name].option for name in sorted(names)))
                self.notes.append(f"{option} has no effect: what it matches is decided before, by {first}")
            for name in names:
                found.setdefault(name, Asked(option, kinds[kind], falls_back=True))
        if options.output and self.model.tied and not (options.pure or options.published):
            asked = Asked(f"--output-tensor-type {options.output}", kinds[options.output], falls_back=True)
            found.setdefault(EMBEDDING, asked)
        return found

    def _matched(self, option: str, pattern: str) -> set[str]:
        try:
            names = self.model.matched(pattern)
        except ExportError as error:
            raise ExportError(
                f"{option}: {pattern!r} is not a regular expression: {error.message.rpartition('quantize: ')[2]}",
                r"write it as C++ reads it, such as blk\.[0-3]\.attn_v",
            ) from None
        if names:
            return names
        every = self.model.matched(".")
        hint = f"llama.cpp quantizes {', '.join(dict.fromkeys(_kind(name) for name in sorted(every)))}"
        kept = [name for name in self.model.shapes if name not in every and pattern in name]
        if kept:
            raise ExportError(f"{option}: llama.cpp never quantizes {kept[0]}, nor anything else that it matches", hint)
        near = difflib.get_close_matches(pattern, [*dict.fromkeys(map(_kind, every)), *every], 1, 0)
        raise ExportError(f"{option}: it matches no tensor of the model; the closest is {near[0]}", hint)

    def _check_widths(self) -> None:
        for name, asked in self.asked.items():
            columns, block = self.model.shapes[name][-1], _block(asked.type)
            if columns % block and not asked.falls_back:
                raise ExportError(
                    f"{asked.option}: {name} has {columns} columns, which cannot be divided by the type's {block}",
                    "give a type that has smaller blocks, such as q8_0",
                )

    def _note_what_has_no_effect(self) -> None:
        options, tied = self.options, self.model.tied
        if options.leave_output and tied:
            self.notes.append("--leave-output-tensor has no effect: the embedding is the output too")
        option = f"--output-tensor-type {options.output}"
        if options.output and tied and self.asked.get(EMBEDDING, Asked("", 0, falls_back=False)).option != option:
            why = "--pure" if options.pure and EMBEDDING not in self.asked else "another option decides of it"
            self.notes.append(f"{option} has no effect: the embedding is the output too, and {why}")


def _block(number: int) -> int:
    return int(library.library().ggml_get_type_traits(number).contents.block)


def _kind(name: str) -> str:
    """A tensor without the number of its block: attn_v for blk.0.attn_v.weight."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")
