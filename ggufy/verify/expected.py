"""Check the weights of a GGUF against base and adapter merged, row by row.

Every value of the header that is not a list has to be the one that is written for the base. A few rows of every tensor
are read back through llama.cpp's own conversion and compared with the merged rows. How far off they may be is measured,
not listed: what the type loses of the very same row. Without torch, and for every type.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufy.errors import Unverified
from ggufy.export import families
from ggufy.export.adapter.adapter import Adapter
from ggufy.export.converter import conversion
from ggufy.export.families.family import Family, Planned
from ggufy.export.gguf import lora_gguf
from ggufy.export.merge import Merge, Slab, matrix
from ggufy.llamacpp import gguf_reader, library
from ggufy.model.safetensors import Checkpoint

# Names and notes, which file of several it is, and which importance matrix was used.
_FREE = ("general.", "split.", "quantize.")
_ROWS = 4
# An importance matrix trades the error of some columns for that of others: up to 2.4 times as much was seen.
_ROOM = 4.0
# A float16 rounded twice, or another build's last bit.
_SLACK = 1e-3
# A row of zeros is off by 1, an unrelated one by more.
_NOTHING = 0.95
# Where a type loses this much of a row by itself, as those of one bit and two do, it is the direction that counts: half
# of what rounding leaves of it.
_COARSE, _DIRECTION = 0.6, 0.5
# The change of training that is in a file is the one that rounding leaves of it, but for this, and for so many times
# what rounding does to it by chance. Where chance alone may do more than _UNSURE, it says nothing.
_LOST, _CHANCE, _UNSURE = 0.25, 8.0, 0.8


@dataclass
class _Change:
    """For some rows: what training changed in them, and how much of the change is in the file."""

    length: float = 0.0
    """Squares of what training changed."""
    along: float = 0.0
    """How far the file is from what rounding would have left, along that change."""
    error: float = 0.0
    """Squares of what rounding changed."""
    count: int = 0

    def add(self, other: _Change) -> None:
        self.length += other.length
        self.along += other.along
        self.error += other.error
        self.count += other.count

    @property
    def missing(self) -> float | None:
        """The share of the change that is not in the file; None where that cannot be told from rounding."""
        if not self.length:
            return None
        chance = _CHANCE * (self.error / self.length / self.count) ** 0.5
        share = -self.along / self.length
        return share if chance < _UNSURE and abs(share) > _LOST + chance else None


class Expected:
    """The merged weights of a family that ggufy knows, read row by row."""

    def __init__(self, planned: Sequence[Planned], merge: Merge, keys: Mapping[str, tuple[int, bytes]]) -> None:
        self.planned, self.merge, self.keys = {tensor.name: tensor for tensor in planned}, merge, keys
        self.before = Merge(merge.base, Adapter.none(), compiled=False)

    @classmethod
    def of(cls, base: Path, adapter: Path | None) -> Expected | None:
        """Of a base and an adapter folder. None for other architectures, whose tensors llama.cpp's converter names."""
        if conversion.is_foreign(base):
            return None
        checkpoint = Checkpoint.open(base)
        change = Adapter.open(adapter) if adapter else Adapter.none()
        family = families.read(base)
        planned = family.plan(checkpoint, untied=change.unties(family.tied))
        return cls(planned, Merge(checkpoint, change, compiled=False), _keys(family))

    def check(self, path: Path, files: Sequence[gguf_reader.GgufFile], threads: int) -> int:
        """Compare rows of every tensor of a GGUF, which may be several files: how many. Raises Unverified, naming it.

        `path` is what it is called by.
        """
        self._check_keys(path, files[0].scalars)
        held = {tensor.name: (file.path, tensor) for file in files for tensor in file.tensors}
        for names, what in (
            (self.planned.keys() - held.keys(), "is not in it"),
            (held.keys() - self.planned.keys(), "is not one of the model's"),
        ):
            if names:
                raise Unverified(f"{path.as_posix()}: the tensor {min(names)} {what}", "export it again")

        # Where nothing went through float16, nothing is compared as if it had.
        kinds = {tensor.type for _, tensor in held.values()}
        part = "exact" if kinds <= {library.F32, library.BF16} else "permuted"

        def compare(name: str) -> tuple[_Change, int]:
            return self._tensor(self.planned[name], *held[name], part)

        whole, rows = _Change(), 0
        with ThreadPoolExecutor(threads) as pool:
            for name, (change, count) in zip(held, pool.map(compare, held), strict=True):
                self._judge(path, name, change)
                whole.add(change)
                rows += count
        self._judge(path, "all tensors", whole)
        return rows

    def _judge(self, path: Path, name: str, change: _Change) -> None:
        if (missing := change.missing) is not None:
            raise Unverified(
                f"{path.as_posix()}: its weights are not those of the training model: {name}: "
                f"{100 * (1 - missing):.0f}% of what training changed",
                "the adapter is not in it as it was trained; please report it with the command that made it",
            )

    def check_adapter(self, path: Path, file: gguf_reader.GgufFile) -> int:
        """Compare all tensors of an adapter's GGUF, and its alpha: how many. Raises Unverified."""
        import numpy as np

        adapter = self.merge.adapter
        held = {tensor.name: tensor for tensor in file.tensors}
        wanted = dict(lora_gguf.tensors(adapter, list(self.planned.values())))
        alpha = file.scalars.get("adapter.lora.alpha", (0, b""))[1]
        wrong = "its alpha" if alpha != struct.pack("<f", adapter.alpha) else None
        wrong = wrong or next(iter(sorted(wanted.keys() ^ held.keys())), None)
        with path.open("rb") as opened:
            for name, values in wanted.items() if wrong is None else ():
                tensor = held[name]
                data = os.pread(opened.fileno(), tensor.size, tensor.offset)
                if tensor.type != library.F32 or data != np.ascontiguousarray(values, np.float32).tobytes():
                    wrong = name
                    break
        if wrong:
            raise Unverified(f"{path.as_posix()}: {wrong} is not the adapter's", "export it again")
        return len(wanted)

    def _check_keys(self, path: Path, found: Mapping[str, tuple[int, bytes]]) -> None:
        """The numbers that the model runs by, and what is said of its tokenizer."""
        ours = {key: value for key, value in found.items() if not key.startswith(_FREE)}
        for key in sorted(self.keys.keys() | ours.keys()):
            if self.keys.get(key) != ours.get(key):
                what = "is not the base's" if key in self.keys and key in ours else "is missing"
                what = what if key in self.keys else "is not written for this base"
                raise Unverified(f"{path.as_posix()}: the value of {key} {what}", "export it again")

    def _tensor(self, tensor: Planned, file: Path, found: gguf_reader.GgufTensor, part: str) -> tuple[_Change, int]:
        import numpy as np

        rows, columns = matrix(tensor.shape)
        flat = len(tensor.shape) == 1
        size = library.row_size(found.type, rows if flat else columns)
        if found.size != (size if flat else rows * size):
            raise Unverified(
                f"{file.as_posix()}: {tensor.name} has {found.size:,} bytes, not those of {list(tensor.shape)} weights",
                "export it again",
            )
        changed = bool(tensor.source in self.merge.adapter.deltas or tensor.source in self.merge.adapter.whole)
        sums, count = _Change(), 0
        with file.open("rb") as opened:
            for row, slab in _slabs(tensor):
                data = os.pread(opened.fileno(), size, found.offset + row * size)
                wanted = getattr(self.merge.rows(slab, [part]), part).reshape(1, -1).copy()
                ours = library.dequantize(found.type, data, wanted.size).astype(np.float64)
                rounded = _rounded(found.type, wanted).astype(np.float64)
                _compare(file, tensor.name, row, ours, rounded, wanted[0])
                if changed:
                    before = getattr(self.before.rows(slab, [part]), part).reshape(-1)
                    change = wanted[0].astype(np.float64) - before
                    sums.add(
                        _Change(
                            float(change @ change),
                            float((ours - rounded) @ change),
                            float(np.square(rounded - wanted[0]).sum()),
                            change.size,
                        )
                    )
                count += 1
        return sums, count


def _keys(family: Family) -> dict[str, tuple[int, bytes]]:
    """The values that an export writes for a base and that are no lists, as `gguf_reader.GgufFile.scalars` has them."""
    import gguf

    writer = gguf.GGUFWriter(path=None, arch=family.arch)
    family.add_keys(writer, 0, {})
    found = {}
    for key, value in writer.kv_data[0].items():
        if value.type == gguf.GGUFValueType.STRING:
            found[key] = int(value.type), value.value.encode()
        elif value.type != gguf.GGUFValueType.ARRAY:
            found[key] = int(value.type), bytes(writer._pack_val(value.value, value.type, add_vtype=False))
    return {key: value for key, value in found.items() if not key.startswith(_FREE)}


def _slabs(tensor: Planned) -> Iterator[tuple[int, Slab]]:
    """Rows of the file from the first to the last, and where the checkpoint has them: a vector whole."""
    rows, _ = matrix(tensor.shape)
    if len(tensor.shape) == 1:
        yield 0, Slab(tensor, 0, rows)
        return
    for row in sorted({(rows - 1) * n // (_ROWS - 1) for n in range(_ROWS)}):
        source = row
        if tensor.heads:
            # llama.cpp pairs the rotary halves of a head that the checkpoint keeps apart.
            size = rows // tensor.heads
            inside = row % size
            source = row - inside + inside % 2 * (size // 2) + inside // 2
        yield row, Slab(replace(tensor, heads=0), source, source + 1)


def _rounded(kind: int, row: Any) -> Any:
    """What a type makes of a float32 row (1, columns)."""
    import numpy as np

    if kind == library.F32:
        return row[0]
    # Without one, llama.cpp ends the process for the types that need it.
    importance = np.ones(row.size, np.float32) if library.library().ggml_quantize_requires_imatrix(kind) else None
    out = np.empty(library.row_size(kind, row.size), np.uint8)
    library.quantize(kind, row, out, importance)
    return library.dequantize(kind, out.tobytes(), row.size)


def _compare(file: Path, name: str, row: int, ours: Any, rounded: Any, wanted: Any) -> None:
    import numpy as np

    length, own, off = (float(np.linalg.norm(values)) for values in (wanted, rounded - wanted, ours - wanted))
    # Written so that a value that is not a number fails.
    if own > _COARSE * length:
        same = _cosine(ours, wanted) >= _DIRECTION * _cosine(rounded, wanted)
    else:
        same = off <= min(_ROOM * own + _SLACK * length, _NOTHING * length)
    if not same:
        length = max(length, 1e-30)
        raise Unverified(
            f"{file.as_posix()}: its weights are not those of the training model: row {row} of {name} is off by "
            f"{100 * off / length:.3g}%, where rounding takes {100 * own / length:.2g}%",
            "please report it with the command that made it",
        )


def _cosine(one: Any, other: Any) -> float:
    import numpy as np

    return float(one @ other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-30)
