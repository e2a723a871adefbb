"""Whether llama.cpp will read a run's own data as it was tokenized for training: looked at before anything long."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ggufy.errors import ExportError, MissingExtra
from ggufy.export import families, vocab
from ggufy.export.converter import conversion
from ggufy.export.vocabulary import proof, special, spm
from ggufy.model import stops
from ggufy.model.template import ChatTemplate, text_of
from ggufy.model.tokenizer import folder
from ggufy.system import digest
from ggufy.verify import probes, tokenizer

log = logging.getLogger("ggufy")

_TEXTS = 200


def check(base: Path, data: Path | None) -> None:
    """Raise ExportError where llama.cpp reads a text otherwise than the base's tokenizer: a probe, or one of the data.

    `data` is the folder with the prepared train.arrow; of it 200 rows are compared. Of architectures that llama.cpp's
    own converter writes, nothing is.
    """
    if conversion.is_foreign(base):
        return
    rows = data / "train.arrow" if data is not None else None
    families.read(base).check_vocab(_texts(base, rows) if rows and rows.is_file() else vocab.OWN)


def check_conversation(base: Path, training: Path) -> None:
    """Raise ExportError where conversations would begin with more than one BOS, or answers not end.

    `training` is the folder with the tokenizer and the template of the training.
    """
    if conversion.is_foreign(base):
        return
    found = folder.of(training)
    family = families.read(base)
    named = special.of(found).ids
    shown = probes.rendered(ChatTemplate.from_folder(training)) if text_of(training) else []
    for text in shown:
        ids = found.backend.encode(text, add_special_tokens=False).ids
        if (count := probes.leading(ids, named.get("bos"))) > 1:
            raise ExportError(
                f"{training.as_posix()}: its chat template writes {count} BOS tokens at the start",
                "leave one of them in the template, as the model was trained; --no-verify exports it as it is",
            )
    if shown and proof.greedy(found):
        rows = max(family.vocab_size, max(found.names) + 1)
        vocab.check(training, rows, vocab.Texts.of(shown), rules=family.vocab_rules)
    ids, file = stops.named(training)
    ends = {number: found.names[number] for number in ids if number in found.names}
    if file != "generation_config.json" or not ends.keys() - {named.get("eos")}:
        return
    over = vocab.those_that_go_on(training, family.vocab_size, list(ends), rules=family.vocab_rules)
    lost = tokenizer.lost_end(ends, over, probes.after_answer(shown))
    if lost is not None:
        raise ExportError(
            f"{(base / file).as_posix()}: token {lost} ({found.names[lost]!r}) ends an answer, and llama.cpp would go "
            "on after it, as it is not the tokenizer's EOS",
            "remove it from eos_token_id there, or name it eos_token in tokenizer_config.json, if answers were "
            "trained to end with it; --no-verify exports it as it is",
        )
    for number in over:
        log.warning(
            "%s says that %r (%d) ends an answer, too; llama.cpp would go on after it, and stops at what the chat "
            "template writes after answers",
            *((base / file).as_posix(), ends[number], number),
        )


def _texts(base: Path, path: Path) -> vocab.Texts:
    rows = list(islice(_rows(path), _TEXTS))

    def read() -> list[str]:
        own = folder.of(base)
        return [spm.bare(own, own.backend.decode(ids, skip_special_tokens=False)) for ids in rows]

    return vocab.Texts(digest.of_values(rows), read)


def _rows(path: Path) -> Iterator[list[int]]:
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MissingExtra("reading the training data", "train", "pyarrow") from None
    with pa.OSFile(path.as_posix(), "rb") as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield from batch.column("input_ids").to_pylist()
