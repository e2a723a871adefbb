"""The importance matrix: the mean square of the inputs of every column, which weighs it in quantization.

Computed by llama.cpp itself, through the callback of its evaluation, as its imatrix tool does: the same activations,
the same float32 sums in the same order (`tools/imatrix/imatrix.cpp`). So the numbers are of the very model and
arithmetic that will run, no torch is needed, and memory is one batch. The price is a 16-bit GGUF on the disk meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.errors import ExportError, ModelError
from ggufy.export.families.family import Planned
from ggufy.llamacpp import gguf_reader, library
from ggufy.llamacpp.evaluate_gguf import Forward
from ggufy.system import progress

CHUNK = 512
"""Tokens of a chunk, in which llama.cpp counts."""
FEWEST = 16
"""Texts of fewer tokens are not counted, as in llama.cpp's tool."""
_DATASETS, _CHUNKS = "imatrix.datasets", "imatrix.chunk_count"
_HUGE = 1e15
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """Importance by tensor of the GGUF: float32 (columns,), and what the quantizer notes about where it comes from."""

    means: dict[str, Any]
    chunks: int
    dataset: str
    file: str

    def check(self, planned: Sequence[Planned]) -> None:
        """Refuse a matrix of another model: llama.cpp would quantize what it does not find without it, unseen."""
        self.check_names(
            {t.name: t.shape[1] for t in planned if len(t.shape) == 2 and t.name.startswith("blk.")},
            {t.name for t in planned},
        )

    def check_names(self, matrices: Mapping[str, int | None], have: Container[str]) -> None:
        """The same of the names in a file: of its matrices, with their columns where those are to be checked."""
        for name, columns in matrices.items():
            found = self.means.get(name)
            if found is None:
                raise ExportError(f"{self.file}: the importance matrix has no entry for {name}", _OTHER)
            if columns is not None and found.size != columns:
                raise ExportError(
                    f"{self.file}: {name} has {columns} columns, and the importance matrix {found.size}", _OTHER
                )
        if extra := [name for name in self.means if name.startswith("blk.") and name not in have]:
            raise ExportError(
                f"{self.file}: the importance matrix has an entry for {extra[0]}, which the model does not have", _OTHER
            )

    def for_llama_cpp(self) -> Any:
        """The array that `llama_model_quantize` takes. It holds the memory it points to."""
        import llama_cpp

        kind = llama_cpp.llama_model_imatrix_data
        entries = (kind * (len(self.means) + 1))()
        for entry, (name, values) in zip(entries, self.means.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return entries

    @property
    def notes(self) -> dict[str, str | int]:
        """The keys that llama.cpp's quantize tool adds to a file made with an importance matrix."""
        notes: dict[str, str | int] = {"quantize.imatrix.file": _short(self.file)}
        if self.dataset:
            notes["quantize.imatrix.dataset"] = _short(self.dataset)
        notes["quantize.imatrix.entries_count"] = len(self.means)
        if self.chunks:
            notes["quantize.imatrix.chunks_count"] = self.chunks
        return notes


def _short(text: str) -> str:
    """At most the 127 bytes that llama.cpp takes."""
    return text.encode()[:127].decode("utf-8", "ignore")


_OTHER = "use an importance matrix of this model, or let --imatrix compute one"


def compute(model: Path, texts: Sequence[Sequence[int]], dataset: str, out: Path, threads: int) -> None:
    """Run a 16-bit GGUF over texts (token ids, each a text of its own) and write the matrix as llama.cpp's tool does.

    Raises ExportError where a text makes the model overflow, or there is none that counts.
    """
    import numpy as np

    texts = [text for text in texts if len(text) >= FEWEST]
    if not texts:
        raise ExportError(f"{dataset}: no text of {FEWEST} tokens or more", "give more text for the importance matrix")
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}
    buffers: dict[int, Any] = {}

    def watch(name: str, rows: Any) -> None:
        count, columns = rows.shape
        total = sums.setdefault(name, np.zeros(columns, np.float32))
        counts[name] = counts.get(name, 0) + count
        # The sum so far is the first row, so that every row is added in turn, as the tool's loop adds them.
        buffer = buffers.setdefault(columns, np.empty((0, columns), np.float32))
        if len(buffer) <= count:
            buffer = buffers[columns] = np.empty((count + 1, columns), np.float32)
        buffer[0] = total
        np.multiply(rows, rows, out=buffer[1 : count + 1])
        np.add.reduce(buffer[: count + 1], axis=0, out=total)
        if not np.isfinite(total).all():
            raise ExportError(
                f"{name}: its inputs are not finite numbers on the text of {dataset}",
                "the model overflows 16 bits, or training diverged: train again with a lower learning rate",
            )

    total, done = sum(len(text) for text in texts), 0
    with (
        Forward(model, max(len(text) for text in texts), threads, watch) as forward,
        progress.bar(f"importance matrix from {total:,} tokens", total) as bar,
    ):
        for text in texts:
            for logits in forward.logits(text):
                done += len(logits)
                bar.update(done)
    _check_counts(counts, total)
    _write(out, sums, counts, dataset)


def _check_counts(counts: Mapping[str, int], total: int) -> None:
    """Every token went through every matrix: once, or in some architectures as often as there are heads."""
    for name, count in counts.items():
        if count % total:
            raise ExportError(
                f"the importance matrix is incomplete: {name} was given {count:,} tokens of {total:,}", "export again"
            )


def _write(out: Path, sums: dict[str, Any], counts: dict[str, int], dataset: str) -> None:
    import gguf
    import numpy as np

    class Writer(gguf.GGUFWriter):
        def add_architecture(self) -> None:
            """There is none in such a file."""

    writer = Writer(path=None, arch="imatrix")
    writer.add_type("imatrix")
    writer.add_array(_DATASETS, [dataset])
    writer.add_uint32(_CHUNKS, max(1, max(counts.values()) // CHUNK))
    writer.add_uint32("imatrix.chunk_size", CHUNK)
    for name in sorted(sums):
        writer.add_tensor(name + _SUMS, sums[name])
        writer.add_tensor(name + _COUNTS, np.array([counts[name]], np.float32))
    writer.write_header_to_file(out)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> Imatrix:
    """An importance matrix in llama.cpp's GGUF format. Raises ModelError for anything else."""
    import numpy as np

    where, hint = path.as_posix(), "name a file that llama-imatrix or `ggufy export --imatrix` made"
    if not path.is_file():
        raise ModelError(f"no file {where}", hint)
    # llama.cpp's reader checks every length against the file, which gguf-py's does not.
    header = gguf_reader.read_gguf(path, lists=(_DATASETS,), numbers=(_CHUNKS,))
    if _DATASETS not in header.lists:
        raise ModelError(f"{where} is not an importance matrix: it has no {_DATASETS}", hint)
    data = np.memmap(path, np.uint8, "r")
    tensors = {}
    for tensor in header.tensors:
        if tensor.type != library.F32:
            raise ModelError(f"{where}: {tensor.name} is not float32", hint)
        tensors[tensor.name] = np.array(data[tensor.offset : tensor.offset + tensor.size]).view(np.float32)
    named, count = header.lists[_DATASETS], header.numbers.get(_CHUNKS, 0)
    means = {}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        name = name.removesuffix(_SUMS)
        counted = tensors.get(name + _COUNTS)
        if counted is None or not counted.size or sums.size % counted.size or not np.isfinite(counted).all():
            raise ModelError(f"{where}: sums and counts of {name} do not match", hint)
        # llama.cpp ends the process over others.
        if not ((sums >= 0) & (sums < _HUGE)).all():
            raise ModelError(f"{where}: {name} has values that cannot be mean squares", hint)
        # An expert that no text reached weighs every column alike.
        rounded = np.rint(counted).astype(np.float32)[:, None]
        shaped = sums.reshape(len(rounded), -1)
        means[name] = (
            np.where(rounded > 0, shaped / np.maximum(rounded, 1), np.float32(1)).astype(np.float32).reshape(-1)
        )
    if not means:
        raise ModelError(f"{where} holds no importance values", hint)
    return Imatrix(means, count, named[0] if named else "", path.name)


def placeholder(planned: Sequence[Planned]) -> Imatrix:
    """Ones: what a plan needs before the matrix is computed, since llama.cpp only asks whether there is one."""
    import numpy as np

    matrices = [tensor for tensor in planned if len(tensor.shape) == 2 and tensor.name.startswith("blk.")]
    return Imatrix({t.name: np.ones(t.shape[1], np.float32) for t in matrices}, 1, "", "imatrix.gguf")
