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
from typing import Any

from ggufy import ggml
from ggufy.errors import ModelError, Unverified
from ggufy.template import ChatTemplate, Message

TEMPLATE = "tokenizer.chat_template"
_PROBES = (
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
_TURNS: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 🌻"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
)
_DAY = date(2026, 1, 2)


@dataclass(frozen=True)
class Verified:
    """What was found: all of it good, or verify would have raised."""

    path: Path
    tensors: int
    probes: int
    """Texts and conversations that llama.cpp reads as the base's tokenizer does; 0 where no base was given."""

    def text(self) -> str:
        compared = f", {self.probes} probe texts tokenized as the base does" if self.probes else ""
        return f"{self.path.name}: {self.tensors} tensors valid, loads in llama.cpp{compared}"


def verify(path: Path, base: Path | None, threads: int) -> Verified:
    """Check one file. Raises Unverified, naming the cause: data, loading, tokenizer or template."""
    try:
        header = ggml.read_gguf(path, (TEMPLATE, "general.type"))
    except ModelError as error:
        raise Unverified(error.message, error.hint) from None
    _check_data(path, header, threads)
    if header.texts.get("general.type") == "adapter":
        return Verified(path, len(header.tensors), 0)
    model = _load(path)
    try:
        probes = _compare(model, header.texts.get(TEMPLATE, ""), base, path) if base else 0
    finally:
        model.close()
    return Verified(path, len(header.tensors), probes)


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


def _load(path: Path) -> Any:
    from llama_cpp import Llama

    with ggml.quiet() as said:
        try:
            return Llama(path.as_posix(), n_ctx=64, verbose=False)
        except (ValueError, RuntimeError, AssertionError) as error:
            reason = said[-1].partition(": ")[2] if said else " ".join(str(error).split())
            raise Unverified(f"{path.as_posix()}: llama.cpp cannot load it: {reason}", "export it again") from None


def _compare(model: Any, template: str, base: Path, path: Path) -> int:
    from tokenizers import Tokenizer

    expected = ChatTemplate.from_folder(base)
    if template != expected.text:
        raise Unverified(f"{path.as_posix()}: its chat template is not the base's", "export it again")
    tokenizer = Tokenizer.from_file((base / "tokenizer.json").as_posix())
    rendered = [expected.render(_TURNS[:stop], _DAY, generate=stop != 3) for stop in (2, 3, 4)]
    for text in (*_PROBES, *rendered):
        theirs = tokenizer.encode(text, add_special_tokens=False).ids
        ours = list(model.tokenize(text.encode(), add_bos=False, special=True))
        if ours != theirs:
            at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
            raise Unverified(
                f"{path.as_posix()}: llama.cpp splits {text[:30]!r} differently from the base's tokenizer, "
                f"at token {at}",
                "the tokenizer is not one that llama.cpp knows under this name",
            )
    bos = int(model.token_bos())
    for text in rendered:
        plain = list(model.tokenize(text.encode(), add_bos=False, special=True))
        count = plain.count(bos)
        if bos >= 0 and count > 1:
            raise Unverified(f"{path.as_posix()}: its chat template writes {count} BOS tokens", "it must be one")
    return len(_PROBES) + len(rendered)
