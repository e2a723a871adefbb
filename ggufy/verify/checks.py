"""Verify a GGUF: its data, that it loads, its tokenizer and chat template, its weights and logits.

The data of every tensor is checked with llama.cpp's validator, llama.cpp loads the file, and then llama.cpp's
tokenizer and the file's own chat template are compared with those of the model folder it was made from, rows of its
weights with the merged ones, and its logits with those of the training model. Then it answers a few
training prompts.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import ModelError, Unverified
from ggufy.llamacpp import gguf_reader, library
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.model.template import ChatTemplate, text_of
from ggufy.verify import answers, closeness
from ggufy.verify.answers import Answers, Questions
from ggufy.verify.closeness import Closeness
from ggufy.verify.expected import Expected
from ggufy.verify.probes import PROBES, rendered
from ggufy.verify.reference import Reference

TEMPLATE = "tokenizer.chat_template"
# As llama.cpp names the files of a model in several.
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_CONTEXT = 64


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
    adapter_tensors: int = 0
    """Tensors of an adapter's file that are those of the adapter, byte for byte."""
    loaded: bool = True
    answers: Answers | None = None
    """To prompts that it was trained on; nothing bad is raised. None: there were none."""

    def text(self) -> str:
        compared = f", {self.probes} probe texts tokenized as the base does" if self.probes else ""
        near = f"; against the training model: {self.closeness.text()}" if self.closeness else ""
        loads = ", loads in llama.cpp" if self.loaded else ""
        same = f", {self.rows} rows of weights as merged" if self.rows else ""
        same += f", {self.adapter_tensors} of them the adapter's, byte for byte" if self.adapter_tensors else ""
        ends = f"; {said}" if self.answers and (said := self.answers.text()) else ""
        return f"{self.path.name}: {self.tensors} tensors valid{loads}{compared}{same}{near}{ends}"


def verify(
    path: Path,
    base: Path | None,
    threads: int,
    reference: Reference | None = None,
    expected: Expected | None = None,
    questions: Questions = answers.NOTHING,
) -> Verified:
    """Check one GGUF: a file, a folder of the files it is split into, or one of these, which stands for them all.

    Raises Unverified, naming the cause: data, loading, tokenizer, template or weights. What it answers to `questions`
    is told, and never refused: a short training may not have learnt to stop.
    """
    parts = files(path)
    try:
        headers = [gguf_reader.read_gguf(file, (TEMPLATE, "general.type")) for file in parts]
    except ModelError as error:
        raise Unverified(error.message, error.hint) from None
    for file, header in zip(parts, headers, strict=True):
        _check_data(file, header, threads)
    tensors = [tensor for header in headers for tensor in header.tensors]
    texts = headers[0].texts
    if texts.get("general.type") in ("adapter", "imatrix"):
        same = expected.check_adapter(path, headers[0]) if expected and texts["general.type"] == "adapter" else 0
        return Verified(path, len(tensors), 0, adapter_tensors=same, loaded=False)
    read = [len(text) for text in reference.texts] if reference else []
    try:
        model = Forward(parts[0], max(_CONTEXT, questions.context, *read), threads)
    except ModelError as error:
        raise Unverified(error.message, error.hint) from None
    with model:
        probes = _compare(model, texts.get(TEMPLATE, ""), base, path) if base else 0
        rows = expected.check(path, headers, threads) if expected else 0
        near = closeness.measure(model, reference) if reference and reference.texts else None
        if near:
            closeness.judge(path, near, {library.type_name(tensor.type) for tensor in tensors})
        try:
            said = answers.ask(model, questions)
        except ModelError as error:
            raise Unverified(error.message, error.hint) from None
    return Verified(path, len(tensors), probes, near, rows, answers=said)


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


def _check_data(path: Path, header: gguf_reader.GgufFile, threads: int) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data:
        start = ctypes.addressof(anchor := ctypes.c_char.from_buffer(data))

        def broken(tensor: gguf_reader.GgufTensor) -> str | None:
            return None if library.valid_rows(tensor.type, start + tensor.offset, tensor.size) else tensor.name

        try:
            with library.quiet(), ThreadPoolExecutor(threads) as pool:
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
        # Only those that a text begins with: some templates write the token before every turn.
        ids = model.tokenize(text, special=True)
        count = next((at for at, token in enumerate(ids) if token != model.bos), len(ids))
        if count > 1:
            raise Unverified(
                f"{path.as_posix()}: its chat template writes {count} BOS tokens at the start", "it must be one"
            )
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
                "generation_config.json and the tokenizer do not match",
            )
