"""llama-quantize's options on the types of tensors, and the types of a published GGUF as a plan.

`--tensor-type`, `--tensor-type-file`, `--output-tensor-type`, `--token-embedding-type`, `--leave-output-tensor` and
`--pure` mean what they mean in llama.cpp's `tools/quantize/quantize.cpp`: they are handed to the same quantizer.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import ExportError, ModelError
from ggufy.llamacpp import gguf_reader, library
from ggufy.llamacpp.mixture import Mixture

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@functools.cache
def known() -> dict[str, int]:
    """The types that llama.cpp can quantize to, by their names in lower case: {"f32": 0, "f16": 1, "q4_0": 2, ...}."""
    import llama_cpp

    lib, found = library.library(), {}
    for number in range(llama_cpp.llama_model_quantize_default_params().output_tensor_type):
        traits = lib.ggml_get_type_traits(number).contents
        # What it computes with only, such as q8_1, cannot be read back; old types have no size.
        if number in (library.F32, library.F16, library.BF16) or (traits.quantized and traits.size and traits.to_float):
            found[library.type_name(number)] = number
    return found


@dataclass(frozen=True)
class Published:
    """The type and the shape of every tensor of a GGUF."""

    path: Path
    architecture: str
    types: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    quant: str | None
    """What it says it is as a whole; None where that is nothing that can be quantized to."""

    @classmethod
    def read(cls, path: Path) -> Published:
        """A GGUF, or the first file of one in several. Raises ExportError or ModelError."""
        if not path.is_file():
            raise ExportError(f"--types-from: no file {path.as_posix()}", "name a GGUF of the same model")
        parts = [path]
        if split := _SPLIT.search(path.name):
            names = [_SPLIT.sub(f"-{n:05}-of-{split[2]}.gguf", path.name) for n in range(1, int(split[2]) + 1)]
            parts = [path.with_name(name) for name in names]
            if missing := [part for part in parts if not part.is_file()]:
                raise ExportError(
                    f"--types-from: {missing[0].as_posix()} is missing; the GGUF is in {len(parts)} files",
                    "put all of them into one folder",
                )
        keys = ("general.architecture", "general.type")
        headers = [gguf_reader.read_gguf(part, keys, numbers=("general.file_type",)) for part in parts]
        if (kind := headers[0].texts.get("general.type", "model")) != "model":
            raise ModelError(f"--types-from: {path.as_posix()} holds an {kind}, not a model", "name a GGUF of a model")
        types = {tensor.name: tensor.type for header in headers for tensor in header.tensors}
        shapes = {name: shape for part in parts for name, shape in gguf_reader.shapes(part).items()}
        number = headers[0].numbers.get("general.file_type")
        quant = next((name for name, ftype in library.ftypes().items() if ftype == number), None)
        return cls(path, headers[0].texts.get("general.architecture", ""), types, shapes, quant)

    def check(self, architecture: str, shapes: Mapping[str, tuple[int, ...]], vectors: Sequence[str]) -> None:
        """Raise ExportError where it is not of a model with these tensors. It may lack the `vectors`."""
        where = f"--types-from {self.path.as_posix()}"
        hint = "name a GGUF of the same model, or give --tensor-type"
        if self.architecture != architecture:
            raise ExportError(f"{where}: it is of the architecture {self.architecture}, not {architecture}", hint)
        for name, shape in shapes.items():
            if name not in self.types and name not in vectors:
                raise ExportError(f"{where}: it has no {name}, and the model has one", hint)
            if self.shapes.get(name, shape) != shape:
                theirs = list(self.shapes[name])
                raise ExportError(f"{where}: its {name} is {theirs}, and the model's is {list(shape)}", hint)
        if extra := [name for name in self.types if name not in shapes]:
            raise ExportError(f"{where}: it has a tensor {extra[0]}, and the model has none", hint)
        for name, number in self.types.items():
            if number not in known().values():
                kind = library.type_name(number)
                raise ExportError(f"{where}: its {name} is {kind}, which llama.cpp cannot quantize to", hint)

    def patterns(self) -> tuple[tuple[str, int], ...]:
        """For each type one expression that is found in the names of its tensors, and in no other."""
        by_type: dict[int, list[str]] = {}
        for name, number in self.types.items():
            by_type.setdefault(number, []).append(re.sub(r"([^\w-])", r"\\\1", name))
        return tuple((f"^({'|'.join(names)})$", number) for number, names in by_type.items())


@dataclass(frozen=True)
class TypeOptions:
    """What is asked about the types of tensors, beside the quant."""

    patterns: tuple[tuple[str, str], ...] = ()
    """An expression, and the name of the type for what it is found in."""
    output: str | None = None
    embedding: str | None = None
    leave_output: bool = False
    pure: bool = False
    published: Published | None = None

    @classmethod
    def of(
        cls,
        tensor_types: Sequence[str] = (),
        tensor_type_file: Path | None = None,
        output_tensor_type: str | None = None,
        token_embedding_type: str | None = None,
        leave_output_tensor: bool = False,
        pure: bool = False,
        types_from: Path | None = None,
    ) -> TypeOptions | None:
        """Read the options, as the command line has them. None where nothing is asked. Raises ExportError."""
        given = [("--tensor-type", text) for text in tensor_types]
        if tensor_type_file is not None:
            given += [(f"--tensor-type-file {tensor_type_file.as_posix()}", text) for text in _words(tensor_type_file)]
        if types_from is not None and pure:
            raise ExportError(
                "--pure has no effect with --types-from, which says the type of every tensor", "give one of the two"
            )
        found = cls(
            tuple(_pair(option, text) for option, text in given),
            _type("--output-tensor-type", output_tensor_type),
            _type("--token-embedding-type", token_embedding_type),
            leave_output_tensor,
            pure,
            Published.read(types_from) if types_from is not None else None,
        )
        if found.leave_output and found.output:
            raise ExportError(
                "--leave-output-tensor leaves output.weight as it is, and --output-tensor-type quantizes it",
                "give one of the two",
            )
        return found if found != cls() else None

    @property
    def names(self) -> list[str]:
        """The options that are given."""
        given = {
            "--tensor-type": self.patterns,
            "--output-tensor-type": self.output,
            "--token-embedding-type": self.embedding,
            "--leave-output-tensor": self.leave_output,
            "--pure": self.pure,
            "--types-from": self.published,
        }
        return [option for option, value in given.items() if value]

    @property
    def inputs(self) -> dict[str, Any]:
        """What the bytes of a quant depend on."""
        found: dict[str, Any] = {"patterns": self.patterns, "output": self.output, "embedding": self.embedding}
        found |= {"leave_output": self.leave_output, "pure": self.pure}
        if self.published:
            found["published"] = {name: library.type_name(kind) for name, kind in sorted(self.published.types.items())}
        return {key: value for key, value in found.items() if value}

    @property
    def mixture(self) -> Mixture:
        """The same for llama.cpp's quantizer."""
        kinds = known()
        return Mixture(
            tuple((pattern, kinds[kind]) for pattern, kind in self.patterns)
            + (self.published.patterns() if self.published else ()),
            kinds[self.output] if self.output else None,
            kinds[self.embedding] if self.embedding else None,
            self.leave_output,
            self.pure,
        )


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise ExportError(
            f"--tensor-type-file: {path.as_posix()} cannot be read: {error}", "name a text file of PATTERN=TYPE"
        ) from None


def _pair(option: str, text: str) -> tuple[str, str]:
    pattern, equals, kind = text.partition("=")
    if not (pattern and equals and kind):
        raise ExportError(f"{option}: {text!r} is not PATTERN=TYPE", "for example attn_v=q6_k")
    # llama-quantize's way; only of ASCII, as there.
    lower = "".join(letter.lower() if letter.isascii() else letter for letter in pattern)
    return lower, str(_type(f"{option} {text}", kind))


def _type(option: str, name: str | None) -> str | None:
    if name is None:
        return None
    kinds = known()
    if name.lower() in kinds:
        return name.lower()
    close = difflib.get_close_matches(name.lower(), kinds, 1)
    meant = f"; did you mean {close[0]}?" if close else f"; those are {', '.join(kinds)}"
    raise ExportError(
        f"{option}: llama.cpp quantizes no tensor to {name!r}{meant}",
        f"a tensor's type is one of {', '.join(kinds)}" if close else "for example q6_k",
    )
