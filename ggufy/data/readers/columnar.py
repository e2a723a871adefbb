"""Rows of Parquet files, and of the Arrow files that the datasets library saves, a few hundred at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufy.data.readers.row import Joined
from ggufy.errors import DataError, MissingExtra

_BATCH = 256


def parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows with their numbers. Raises DataError and MissingExtra."""
    file = _parquet(path)
    return _numbered(path, "Parquet", lambda: file.iter_batches(batch_size=_BATCH))


def arrow(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of an Arrow stream or file with their numbers. Raises DataError and MissingExtra."""
    return _numbered(path, "Arrow", lambda: _arrow(path))


def count_parquet(path: Path) -> int:
    return int(_parquet(path).metadata.num_rows)


def count_arrow(path: Path) -> int:
    return sum(batch.num_rows for batch in _arrow(path))


def _numbered(path: Path, kind: str, batches: Any) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches():
            texts = [field.name for field in batch.schema if _is_bytes(pa, field.type)]
            # pandas writes NaN for what is not there.
            numbers = [field.name for field in batch.schema if _has_floats(pa, field.type)]
            turned = [field.name for field in batch.schema if _is_lists(pa, field.type)]
            for row in batch.to_pylist():
                number += 1
                for name in texts:
                    row[name] = _as_text(row[name])
                for name in turned:
                    row[name] = _as_dicts(row[name])
                for name in numbers:
                    row[name] = _without_nan(row[name])
                yield number, Joined(row)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _bad(path, kind, error, f" after row {number}" if number else "") from None


def _is_bytes(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _as_text(cell: bytes | None) -> str | bytes | None:
    """Text that was written without saying that it is one; what cannot be is left as it is."""
    try:
        return cell.decode("utf-8") if cell is not None else None
    except UnicodeDecodeError:
        return cell


def _has_floats(pa: Any, kind: Any) -> bool:
    if pa.types.is_nested(kind):
        return any(_has_floats(pa, kind.field(number).type) for number in range(kind.num_fields))
    return bool(pa.types.is_floating(kind))


def _without_nan(cell: Any) -> Any:
    """With null for each number that is none."""
    if isinstance(cell, dict):
        return {name: _without_nan(value) for name, value in cell.items()}
    if isinstance(cell, list | tuple):
        return type(cell)(map(_without_nan, cell))
    return None if isinstance(cell, float) and cell != cell else cell


def _is_lists(pa: Any, kind: Any) -> bool:
    inner = [kind.field(number).type for number in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    return bool(inner) and all(pa.types.is_list(one) or pa.types.is_large_list(one) for one in inner)


def _as_dicts(cell: dict[str, list[Any] | None] | None) -> Any:
    """A list of dicts, which the datasets library writes as a dict of lists, the right way round again."""
    lists = list(cell.values()) if cell is not None else []
    if cell is None or any(one is None or len(one) != len(lists[0] or ()) for one in lists):
        return cell
    return [dict(zip(cell, values, strict=True)) for values in zip(*map(list, lists), strict=True)]  # type: ignore[arg-type]


def _parquet(path: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtra("reading Parquet", "train", "pyarrow") from None
    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _bad(path, "Parquet", error) from None


def _arrow(path: Path) -> Iterator[Any]:
    """The record batches, in pieces of at most some hundred rows."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MissingExtra("reading Arrow files", "train", "pyarrow") from None
    try:
        with path.open("rb") as head:
            is_file = head.read(6) == b"ARROW1"
        with pa.memory_map(path.as_posix()) as mapped:
            if is_file:
                whole = pa.ipc.open_file(mapped)
                batches = (whole.get_batch(number) for number in range(whole.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(mapped))
            for batch in batches:
                yield from (batch.slice(at, _BATCH) for at in range(0, batch.num_rows, _BATCH))
    except (pa.ArrowException, OSError) as error:
        raise _bad(path, "Arrow", error) from None


def _bad(path: Path, kind: str, error: Exception, where: str = "") -> DataError:
    if isinstance(error, FileNotFoundError | PermissionError):
        raise error
    reason = " ".join(str(error).split())[:160]
    return DataError(
        f"{path.as_posix()}: cannot be read as {kind}{where}: {reason}",
        "it may have been cut short: copy or download it again",
    )
