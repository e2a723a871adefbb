"""Whether a finished GGUF is sound, and speaks as its base does: before it gets its final name, and whenever asked.

The data of every tensor is checked with llama.cpp's validator, llama.cpp loads the file, and then llama.cpp's
tokenizer and the file's own chat template are compared with those of the model folder it was made from.
"""

from __future__ import annotations

import ctypes
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufy import ggml
from ggufy.errors import ModelError, Unverified
from ggufy.forward import Forward
from ggufy.template import ChatTemplate, Message, text_of

if TYPE_CHECKING:
    from ggufy.export.reference import Reference

TEMPLATE = "tokenizer.chat_template"
PROBES = (
    "Hello, world!",
    "  two  spaces, a tab\tand\n\n\nlines  ",
    "1 12 123 1234 12345678 3.14",
    "I'm sure they're here; WE'VE DON'T",
    "naïve café Straße ﬁ",
    "Привет, мир! Γειά σου",
    "مرحبا بالعالم שלום",
    "你好，世界。こんにちは 안녕하세요",
    "ที่นี่ हिन्दी বাংলা",
    "🌻👩‍👩‍👧 ✅ ½ ∑",
    "def f(x):\n    return x**2  # ok\n",
    "<html>&amp;</html> {json: [1, 2]}",
)
TURNS: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 🌻"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
)
DAY = date(2026, 1, 2)


@dataclass(frozen=True)
class Closeness:
    """How near a file's logits are to the training model's, over all positions of the probe texts."""

    positions: int
    relative: float
    """Length of the difference over the length of the logits, each position's mean taken out."""
    agreement: float
    """Share of positions with the same most likely token."""
    divergence: float
    """Mean KL divergence from the training model, in nats."""
    correlation: float
    """Of all logits with the training model's."""

    def text(self) -> str:
        return (
            f"logits off by {100 * self.relative:.3g}%, {100 * self.agreement:.1f}% same top token, "
            f"KL {self.divergence:.2g} over {self.positions} positions"
        )


# A file of these types is the training model itself, rounded. Llama.cpp computes with 16-bit activations beside them.
_EXACT = {"f32": 1e-2, "f16": 1e-2, "bf16": 4e-2}
# Any quant, however coarse: below this the logits have nothing to do with each other.
_RELATED = 0.1


@dataclass(frozen=True)
class Verified:
    """What was found: all of it good, or verify would have raised."""

    path: Path
    tensors: int
    probes: int
    """Texts and conversations that llama.cpp reads as the base's tokenizer does; 0 where no base was given."""
    closeness: Closeness | None = None

    def text(self) -> str:
        compared = f", {self.probes} probe texts tokenized as the base does" if self.probes else ""
        near = f"; against the training model: {self.closeness.text()}" if self.closeness else ""
        return f"{self.path.name}: {self.tensors} tensors valid, loads in llama.cpp{compared}{near}"


def verify(path: Path, base: Path | None, threads: int, reference: Reference | None = None) -> Verified:
    """Check one GGUF: a file, or a folder of the files it is split into.

    Raises Unverified, naming the cause: data, loading, tokenizer, template or weights.
    """
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    try:
        headers = [ggml.read_gguf(file, (TEMPLATE, "general.type")) for file in files]
    except ModelError as error:
        raise Unverified(error.message, error.hint) from None
    for file, header in zip(files, headers, strict=True):
        _check_data(file, header, threads)
    tensors = [tensor for header in headers for tensor in header.tensors]
    texts = headers[0].texts
    if texts.get("general.type") in ("adapter", "imatrix"):
        return Verified(path, len(tensors), 0)
    context = max((len(text) for text in reference.texts), default=_CONTEXT) if reference else _CONTEXT
    try:
        model = Forward(files[0], max(context, _CONTEXT), threads)
    except ModelError as error:
        raise Unverified(error.message, error.hint) from None
    with model:
        probes = _compare(model, texts.get(TEMPLATE, ""), base, path) if base else 0
        near = closeness(model, reference) if reference and reference.texts else None
    if near:
        _judge(path, near, {ggml.type_name(tensor.type) for tensor in tensors})
    return Verified(path, len(tensors), probes, near)


_CONTEXT = 64


def closeness(model: Forward, reference: Reference) -> Closeness:
    """Run a file over the reference's texts. One batch of logits is held at a time."""
    import numpy as np

    off = length = own = product = divergence = 0.0
    same = positions = 0
    for text, expected in zip(reference.texts, reference.logits, strict=True):
        start = 0
        for found in model.logits(text):
            ours = found.astype(np.float64)
            theirs = expected[start : start + len(found)].astype(np.float64)
            start += len(found)
            ours -= ours.mean(axis=1, keepdims=True)
            theirs -= theirs.mean(axis=1, keepdims=True)
            off += float(np.square(ours - theirs).sum())
            length += float(np.square(theirs).sum())
            own += float(np.square(ours).sum())
            product += float((ours * theirs).sum())
            same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
            log_ours, log_theirs = _log_softmax(ours), _log_softmax(theirs)
            divergence += float((np.exp(log_theirs) * (log_theirs - log_ours)).sum())
            positions += len(found)
    relative, correlation = (off / max(length, 1e-30)) ** 0.5, product / max((length * own) ** 0.5, 1e-30)
    return Closeness(positions, relative, same / positions, divergence / positions, correlation)


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _judge(path: Path, near: Closeness, types: set[str]) -> None:
    """Raise Unverified where the weights are not those that were trained."""
    exact = max(_EXACT[name] for name in types) if types <= _EXACT.keys() else None
    # Written so that a value that is not a number fails.
    good = near.relative <= exact if exact else near.correlation >= _RELATED
    if not good:
        raise Unverified(
            f"{path.as_posix()}: its weights are not those of the training model: {near.text()}",
            f"at most {100 * exact:.0f}% is expected" if exact else "they have nothing in common; please report it",
        )


def _check_data(path: Path, header: ggml.GgufFile, threads: int) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data:
        start = ctypes.addressof(anchor := ctypes.c_char.from_buffer(data))

        def broken(tensor: ggml.GgufTensor) -> str | None:
            return None if ggml.valid_rows(tensor.type, start + tensor.offset, tensor.size) else tensor.name

        with ggml.quiet(), ThreadPoolExecutor(threads) as pool:
            found = [name for name in pool.map(broken, header.tensors) if name]
        del anchor
    if found:
        raise Unverified(f"{path.as_posix()}: the data of {found[0]} is not valid", "export it again")


def _compare(model: Forward, template: str, base: Path, path: Path) -> int:
    from tokenizers import Tokenizer

    if template != text_of(base):
        raise Unverified(f"{path.as_posix()}: its chat template is not the base's", "export it again")
    tokenizer = Tokenizer.from_file((base / "tokenizer.json").as_posix())
    rendered = []
    if template:
        expected = ChatTemplate.from_folder(base)
        rendered = [expected.render(TURNS[:stop], DAY, generate=stop != 3) for stop in (2, 3, 4)]
    for text in (*PROBES, *rendered):
        theirs = tokenizer.encode(text, add_special_tokens=False).ids
        ours = model.tokenize(text, special=True)
        if ours != theirs:
            at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
            raise Unverified(
                f"{path.as_posix()}: llama.cpp splits {text[:30]!r} differently from the base's tokenizer, "
                f"at token {at}",
                "the tokenizer is not one that llama.cpp knows under this name",
            )
    for text in rendered:
        count = model.tokenize(text, special=True).count(model.bos) if model.bos is not None else 0
        if count > 1:
            raise Unverified(f"{path.as_posix()}: its chat template writes {count} BOS tokens", "it must be one")
    return len(PROBES) + len(rendered)
