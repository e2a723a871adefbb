"""Whether llama.cpp will read a run's own data as it was tokenized for training: looked at before anything long."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ggufy.errors import ExportError, MissingExtra
from ggufy.export import families, vocab
from ggufy.export.converter import conversion
from ggufy.export.vocabulary import special
from ggufy.model import config_files, stops
from ggufy.model.template import ChatTemplate, text_of
from ggufy.model.tokenizer import folder
from ggufy.verify.probes import rendered

_TEXTS = 200
# Of what llama.cpp stops at by its name, whatever the file says: it need not be asked.
_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<|end|>")


def check(base: Path, data: Path | None) -> None:
    """Raise ExportError where llama.cpp reads a text otherwise than the base's tokenizer: a probe, or one of the data.

    `data` is the folder with the prepared train.arrow; of it 200 rows are compared. Of architectures that llama.cpp's
    own converter writes, nothing is.
    """
    if conversion.is_foreign(base):
        return
    size = config_files.read(base / "config.json").get("vocab_size")
    if isinstance(size, int):
        rows = data / "train.arrow" if data is not None else None
        vocab.check(base, size, list(_texts(base, rows)) if rows and rows.is_file() else [])


def check_conversation(base: Path, tokenizer: Path) -> None:
    """Raise ExportError where conversations would begin with more than one BOS, or answers not end.

    `tokenizer` is the folder with the tokenizer and the template of the training.
    """
    if conversion.is_foreign(base):
        return
    found = folder.of(tokenizer)
    named = special.of(found).ids
    for text in rendered(ChatTemplate.from_folder(tokenizer)) if text_of(tokenizer) else []:
        ids = found.backend.encode(text, add_special_tokens=False).ids
        count = next((at for at, token in enumerate(ids) if token != named.get("bos")), len(ids))
        if count > 1:
            raise ExportError(
                f"{tokenizer.as_posix()}: its chat template writes {count} BOS tokens at the start",
                "leave one of them in the template, as the model was trained; --no-verify exports it as it is",
            )
    ids, file = stops.named(tokenizer)
    unknown = [n for n in ids if n in found.names and n != named.get("eos") and found.names[n] not in _ENDS]
    if file != "generation_config.json" or not unknown:
        return
    family = families.read(base)
    lost = vocab.first_that_goes_on(tokenizer, family.vocab_size, unknown, as_llama=family.as_llama)
    if lost is not None:
        raise ExportError(
            f"{(base / file).as_posix()}: token {lost} ({found.names[lost]!r}) ends an answer, and llama.cpp would go "
            "on after it, as it is not the tokenizer's EOS",
            "remove it from eos_token_id there, or name it eos_token in tokenizer_config.json, if answers were "
            "trained to end with it; --no-verify exports it as it is",
        )


def _texts(base: Path, rows: Path) -> Iterator[str]:
    backend = folder.of(base).backend
    for ids in islice(_rows(rows), _TEXTS):
        yield backend.decode(ids, skip_special_tokens=False)


def _rows(path: Path) -> Iterator[list[int]]:
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MissingExtra("reading the training data", "train", "pyarrow") from None
    with pa.OSFile(path.as_posix(), "rb") as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield from batch.column("input_ids").to_pylist()
