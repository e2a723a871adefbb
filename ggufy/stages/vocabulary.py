"""Whether llama.cpp will read a run's own data as it was tokenized for training: looked at before anything long."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ggufy.errors import MissingExtra
from ggufy.export import families
from ggufy.export.converter import conversion
from ggufy.model.tokenizer import folder

_TEXTS = 200


def check(base: Path, data: Path | None) -> None:
    """Raise ExportError where llama.cpp reads a text otherwise than the base's tokenizer: a probe, or one of the data.

    `data` is the folder with the prepared train.arrow; of it 200 rows are compared. Of architectures that llama.cpp's
    own converter writes, nothing is.
    """
    if conversion.is_foreign(base):
        return
    rows = data / "train.arrow" if data is not None else None
    families.read(base).check_vocab(list(_texts(base, rows)) if rows and rows.is_file() else [])


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
