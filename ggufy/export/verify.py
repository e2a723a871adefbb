"""Whether a finished GGUF is sound, and speaks as its base does: before it gets its final name, and whenever asked.

The data of every tensor is checked with llama.cpp's validator, llama.cpp loads the file, and then llama.cpp's
tokenizer and the file's own chat template are compared with those of the model folder it was made from, rows of its
weights with the merged ones, and its logits with those of the training model.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufy import distributions, ggml, gguf_file
from ggufy.errors import ModelError, Unverified
from ggufy.forward import Forward
from ggufy.template import ChatTemplate, Message, text_of

if TYPE_CHECKING:
    from ggufy.export.expected import Expected
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
    kept: float | None = None
    """Of what training changed in the logits, how much is in the file: 1 is all of it, 0 is the base. None: unknown."""
    noise: float = 0.0
    """What else is different, as a share of what training changed."""

    def text(self) -> str:
        kept = f", {100 * self.kept:.0f}% of what training changed" if self.kept is not None else ""
        return (
            f"logits off by {100 * self.relative:.3g}%, {100 * self.agreement:.1f}% same top token, "
            f"KL {self.divergence:.2g}{kept}, over {self.positions} positions"
        )


# A file of these types is the training model itself, rounded. Llama.cpp computes with 16-bit activations beside them.
_EXACT = {"f32": 1e-2, "f16": 1e-2, "bf16": 4e-2}
# Finely rounded. A model that a few steps taught its answers, which is as touchy as any, is off by a sixth, a quarter
# and a third of these; a tensor of zeros puts it off by 0.9.
_FINE = {"q8_0": 0.25, "q6_k": 0.5, "q5_0": 0.75, "q5_1": 0.75, "q5_k": 0.75}
# Any quant, however coarse: below this the logits have nothing to do with each other.
_RELATED = 0.1
# Rounding moves the logits every way, and less than this share of that along what training changed: at most half of it
# in the quants tried, down to 1.6 bits. What is missing of the training beyond that, and beyond _LOST, is not there.
_ASTRAY, _LOST = 0.6, 0.1
# Three values a weight leave less than that of the training in the logits; its weights are compared one by one.
_TERNARY = {"tq1_0", "tq2_0"}
# A training that changed less of the logits than this cannot be told from rounding.
_FAINT = 0.01


@dataclass(frozen=True)
class Verified:
    """What was found: all of it good, or verify would have raised."""

    path: Path
    tensors: int
    probes: int
    """Texts and conversations that llama.cpp reads as the base's tokenizer does; 0 where no base was given."""
    closeness: Closeness | None = None
    rows: int = 0
    """Rows of its weights that are those of base and adapter; 0 where there was nothing to compare with."""
    pairs: int = 0
    """Tensors of an adapter's file that are those of the adapter, byte for byte."""
    loaded: bool = True

    def text(self) -> str:
        compared = f", {self.probes} probe texts tokenized as the base does" if self.probes else ""
        near = f"; against the training model: {self.closeness.text()}" if self.closeness else ""
        loads = ", loads in llama.cpp" if self.loaded else ""
        same = f", {self.rows} rows of weights as merged" if self.rows else ""
        same += f", {self.pairs} of them the adapter's, byte for byte" if self.pairs else ""
        return f"{self.path.name}: {self.tensors} tensors valid{loads}{compared}{same}{near}"


def verify(
    path: Path,
    base: Path | None,
    threads: int,
    reference: Reference | None = None,
    expected: Expected | None = None,
) -> Verified:
    """Check one GGUF: a file, a folder of the files it is split into, or one of these, which stands for them all.

    Raises Unverified, naming the cause: data, loading, tokenizer, template or weights.
    """
    parts = files(path)
    try:
        headers = [gguf_file.read_gguf(file, (TEMPLATE, "general.type")) for file in parts]
    except ModelError as error:
        raise Unverified(error.message, error.hint) from None
    for file, header in zip(parts, headers, strict=True):
        _check_data(file, header, threads)
    tensors = [tensor for header in headers for tensor in header.tensors]
    texts = headers[0].texts
    if texts.get("general.type") in ("adapter", "imatrix"):
        same = expected.check_adapter(path, headers[0]) if expected and texts["general.type"] == "adapter" else 0
        return Verified(path, len(tensors), 0, pairs=same, loaded=False)
    context = max((len(text) for text in reference.texts), default=_CONTEXT) if reference else _CONTEXT
    try:
        model = Forward(parts[0], max(context, _CONTEXT), threads)
    except ModelError as error:
        raise Unverified(error.message, error.hint) from None
    with model:
        probes = _compare(model, texts.get(TEMPLATE, ""), base, path) if base else 0
        rows = expected.check(path, headers, threads) if expected else 0
        near = closeness(model, reference) if reference and reference.texts else None
    if near:
        _judge(path, near, {ggml.type_name(tensor.type) for tensor in tensors})
    return Verified(path, len(tensors), probes, near, rows)


def files(path: Path) -> list[Path]:
    """All files of a model. Raises Unverified where one is missing."""
    again = "export it again"
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        if not found:
            raise Unverified(f"{path.as_posix()}: no .gguf file is in it", again)
        models = {_SPLIT.sub(r"-of-\2", file.name) for file in found}
        if len(models) > 1:
            raise Unverified(f"{path.as_posix()}: the files of {len(models)} models are in it", "name one of them")
        path = found[0]
    split = _SPLIT.search(path.name)
    if split is None:
        return [path]
    count = int(split[2])
    parts = [path.with_name(_SPLIT.sub(rf"-{n:05}-of-\2.gguf", path.name)) for n in range(1, count + 1)]
    if missing := [file for file in parts if not file.is_file()]:
        raise Unverified(f"{missing[0].as_posix()} is missing; the model is in {count} files", again)
    return parts


# As llama.cpp names the files of a model in several.
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


_CONTEXT = 64


def closeness(model: Forward, reference: Reference) -> Closeness:
    """Run a file over the reference's texts. One batch of logits is held at a time. Raises Unverified."""
    import numpy as np

    sums = dict.fromkeys(("off", "length", "own", "product", "change", "moved", "along"), 0.0)
    divergence, same, positions = 0.0, 0, 0
    bases = reference.untrained or [None] * len(reference.texts)
    for text, expected, base in zip(reference.texts, reference.logits, bases, strict=True):
        if expected.shape[1] != model.width:
            raise Unverified(
                f"{model.path.as_posix()}: {model.width:,} tokens, and the training model has {expected.shape[1]:,}",
                "the tokenizer and the weights are of different models",
            )
        start = 0
        for found in model.logits(text):
            part = slice(start, start + len(found))
            start += len(found)
            ours, theirs = _centred(found), _centred(expected[part])
            sums["off"] += float(np.square(ours - theirs).sum())
            sums["length"] += float(np.square(theirs).sum())
            sums["own"] += float(np.square(ours).sum())
            sums["product"] += float((ours * theirs).sum())
            if base is not None:
                before = _centred(base[part])
                sums["change"] += float(np.square(theirs - before).sum())
                sums["moved"] += float(np.square(ours - before).sum())
                sums["along"] += float(((ours - before) * (theirs - before)).sum())
            same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
            divergence += float(distributions.divergences(expected[part], found).sum())
            positions += len(found)
    length = max(sums["length"], 1e-30)
    relative = (sums["off"] / length) ** 0.5
    correlation = sums["product"] / max((length * sums["own"]) ** 0.5, 1e-30)
    kept, noise = None, 0.0
    if (sums["change"] / length) ** 0.5 > _FAINT:
        kept = sums["along"] / sums["change"]
        noise = max(0.0, sums["moved"] / sums["change"] - kept * kept) ** 0.5
    return Closeness(positions, relative, same / positions, divergence / positions, correlation, kept, noise)


def _centred(logits: Any) -> Any:
    """In float64 and without each position's mean, which changes no probability."""
    import numpy as np

    wide = logits.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    return wide


def _judge(path: Path, near: Closeness, types: set[str]) -> None:
    """Raise Unverified where the weights are not those that were trained."""
    known = _EXACT | _FINE
    limit = max(known[name] for name in types) if types <= known.keys() else None
    # Written so that a value that is not a number fails.
    if not (near.relative <= limit if limit else near.correlation >= _RELATED):
        expected = f"at most {100 * limit:.0f}% is expected" if limit else "they have nothing in common"
        raise Unverified(
            f"{path.as_posix()}: its weights are not those of the training model: {near.text()}",
            f"{expected}; please report it with the command that made it",
        )
    if near.kept is not None and not types & _TERNARY and not abs(1 - near.kept) <= max(_LOST, _ASTRAY * near.noise):
        raise Unverified(
            f"{path.as_posix()}: its weights are not those of the training model: {near.text()}",
            "the adapter is not in it as it was trained; please report it with the command that made it",
        )


def _check_data(path: Path, header: gguf_file.GgufFile, threads: int) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data:
        start = ctypes.addressof(anchor := ctypes.c_char.from_buffer(data))

        def broken(tensor: gguf_file.GgufTensor) -> str | None:
            return None if ggml.valid_rows(tensor.type, start + tensor.offset, tensor.size) else tensor.name

        try:
            with ggml.quiet(), ThreadPoolExecutor(threads) as pool:
                found = [name for name in pool.map(broken, header.tensors) if name]
        finally:
            # Ctrl-C too: a map that somebody points into cannot be closed.
            del anchor
    if found:
        raise Unverified(f"{path.as_posix()}: the data of {found[0]} is not valid", "export it again")


def _compare(model: Forward, template: str, base: Path, path: Path) -> int:
    from tokenizers import Tokenizer

    if template != text_of(base):
        raise Unverified(f"{path.as_posix()}: its chat template is not the base's", "export it again")
    tokenizer = Tokenizer.from_file((base / "tokenizer.json").as_posix())
    shown = rendered(ChatTemplate.from_folder(base)) if template else []
    for text in (*PROBES, *shown):
        theirs = tokenizer.encode(text, add_special_tokens=False).ids
        ours = model.tokenize(text, special=True)
        if ours != theirs:
            at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
            raise Unverified(
                f"{path.as_posix()}: llama.cpp splits {text[:30]!r} differently from the base's tokenizer, "
                f"at token {at}",
                "the tokenizer is not one that llama.cpp knows under this name",
            )
    for text in shown:
        count = model.tokenize(text, special=True).count(model.bos) if model.bos is not None else 0
        if count > 1:
            raise Unverified(f"{path.as_posix()}: its chat template writes {count} BOS tokens", "it must be one")
    _compare_ends(model, tokenizer, base, path)
    return len(PROBES) + len(shown)


def _compare_ends(model: Forward, tokenizer: Any, base: Path, path: Path) -> None:
    """How texts begin and answers end: BOS, EOS, what is put around a text, and every token that ends a turn."""
    special = ChatTemplate.specials(base)
    for kind, number in (("bos", model.bos), ("eos", model.eos)):
        expected = tokenizer.token_to_id(special.get(f"{kind}_token", ""))
        if expected is not None and expected != number:
            raise Unverified(
                f"{path.as_posix()}: its {kind.upper()} is token {number}, and the base's is {expected}",
                "the tokenizer of the file is not the base's",
            )
    plain = PROBES[0]
    if (ours := model.tokenize(plain, special=False, ends=True)) != (theirs := tokenizer.encode(plain).ids):
        raise Unverified(
            f"{path.as_posix()}: llama.cpp reads a text as {len(ours)} tokens, the base's tokenizer as {len(theirs)}",
            "one of them puts a BOS or an EOS around it, and the other does not",
        )
    generation = base / "generation_config.json"
    ids = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    for number in ids if isinstance(ids, list) else [ids]:
        if isinstance(number, int) and not model.ends_turn(number):
            raise Unverified(
                f"{path.as_posix()}: token {number} ends an answer of the base, and llama.cpp would go on after it",
                "generation_config.json and the tokenizer do not fit",
            )


def rendered(template: ChatTemplate) -> list[str]:
    """The probe conversation at three of its turns, without what this template refuses, such as a system prompt."""
    for turns in (TURNS, TURNS[1:], TURNS[1:2]):
        try:
            stops = sorted({1, len(turns) - 1, len(turns)} - {0})
            return [template.render(turns[:stop], DAY, generate=turns[stop - 1]["role"] == "user") for stop in stops]
        except ModelError:
            continue
    return []
