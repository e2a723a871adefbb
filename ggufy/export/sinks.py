"""The outputs of the pass over the weights: a GGUF file, or a merged checkpoint in Hugging Face's layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ggufy.export.adapter.adapter import EMBEDDING
from ggufy.export.families.family import Planned
from ggufy.export.gguf.layout import Layout, Slot
from ggufy.export.imatrix import Imatrix
from ggufy.export.kernels import native
from ggufy.export.merge import Rows, Slab
from ggufy.llamacpp import library
from ggufy.model import architecture, safetensors, text_part
from ggufy.model.safetensors import SIZES
from ggufy.model.tokenizer.folder import MADE

_SHARD = 5_000_000_000
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    # What the tokenizers of other families are made of.
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


class GgufSink:
    """One GGUF, written at the offsets of its layout: a file, or a folder of files where it is split."""

    def __init__(self, path: Path, layout: Layout, imatrix: Imatrix | None = None, *, split: bool = False) -> None:
        self.layout, self.size = layout, layout.size
        self.folder = path if split else None
        count = len(layout.parts)
        self.paths = [path / f"{path.name}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)] if split else [path]
        self.slots = {slot.tensor.name: slot for slot in layout.slots}
        self.importance = imatrix.means if imatrix else {}
        self.native = False
        """Whether ggufy's own kernels quantize, for the types that they have."""
        # What has the range of the checkpoint is not to go through float16.
        self.wide = layout.quant in ("f32", "bf16")
        self.handles: list[int] = []

    def open(self) -> None:
        if self.folder:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir()
        for path, part in zip(self.paths, self.layout.parts, strict=True):
            self.handles.append(_create(path, part.size))
            _pwrite(self.handles[-1], part.head, 0)

    def parts(self, tensor: Planned) -> Collection[str]:
        kind = self.slots[tensor.name].type
        if self.wide:
            return ["bf16" if kind == library.BF16 else "exact"]
        return ["permuted_half" if kind == library.F16 else "permuted"]

    def put(self, slab: Slab, rows: Rows) -> None:
        slot = self.slots[slab.tensor.name]
        flat = len(slab.tensor.shape) == 1
        offset = slot.offset + slab.start * (SIZES["F32"] if flat else slot.row_bytes)
        _pwrite(self.handles[slot.part], self._encode(slot, slab, rows), offset)

    def close(self) -> None:
        for handle in self.handles:
            _close(handle)

    def _encode(self, slot: Slot, slab: Slab, rows: Rows) -> Any:
        import numpy as np

        if self.wide:
            return _in_llama_cpps_order(rows.bf16 if slot.type == library.BF16 else rows.exact, slab.tensor)
        if slot.type == library.F32:
            return rows.permuted.data
        if slot.type == library.F16:
            return rows.permuted_half.data
        out = np.empty(len(rows.permuted) * slot.row_bytes, np.uint8)
        importance = self.importance.get(slot.tensor.name)
        if not (self.native and native.quantize(slot.type, rows.permuted, out, importance)):
            library.quantize(slot.type, rows.permuted, out, importance)
        return out.data


def _in_llama_cpps_order(rows: Any, tensor: Planned) -> Any:
    """Whole heads, of which llama.cpp pairs the halves: (heads, 2, half, columns) -> (heads, half, 2, columns)."""
    import numpy as np

    if not tensor.heads:
        return rows.data
    halves = rows.reshape(-1, 2, tensor.shape[0] // tensor.heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).data


class MergedSink:
    """A folder with config, tokenizer and 16-bit safetensors, sharded with an index above 5 GB."""

    def __init__(
        self, folder: Path, base: Path, planned: Sequence[Planned], dtype: str, tokenizer: Path | None = None
    ) -> None:
        self.folder, self.base, self.dtype = folder, base, dtype
        self.tokenizer = tokenizer or base
        # An adapter may bring an embedding with more rows.
        self.vocab_size = next((t.shape[0] for t in planned if t.source == EMBEDDING), None)
        self.part = {"F16": "half", "BF16": "bf16"}[dtype]
        shapes = {str(tensor.source): tensor.shape for tensor in planned if tensor.source}
        self.shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
        filled = 0
        for name, shape in shapes.items():
            size = _elements(shape) * SIZES[dtype]
            if filled + size > _SHARD and self.shards[-1]:
                self.shards.append({})
                filled = 0
            self.shards[-1][name] = (dtype, shape)
            filled += size
        self.size = sum(_elements(shape) * SIZES[dtype] for shape in shapes.values())
        self.handles: list[int] = []
        self.places: dict[str, tuple[int, int]] = {}

    def open(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        count = len(self.shards)
        index: dict[str, str] = {}
        for number, shard in enumerate(self.shards, 1):
            name = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
            head, offsets = safetensors.header(shard)
            last, (dtype, shape) = list(shard.items())[-1]
            handle = _create(self.folder / name, offsets[last] + _elements(shape) * SIZES[dtype])
            _pwrite(handle, head, 0)
            self.handles.append(handle)
            self.places |= {tensor: (handle, offset) for tensor, offset in offsets.items()}
            index |= dict.fromkeys(shard, name)
        if count > 1:
            _dump(
                self.folder / "model.safetensors.index.json",
                {"metadata": {"total_size": self.size}, "weight_map": index},
            )
        # Of a model that also reads images, the language model alone.
        config = text_part.settings(json.loads((self.base / "config.json").read_text(encoding="utf-8")))
        config["torch_dtype"] = {"F16": "float16", "BF16": "bfloat16"}[self.dtype]
        config.pop("dtype", None)
        # A base in 4 bits becomes one in 16.
        config.pop("quantization_config", None)
        if (known := architecture.of(config)) != "none":
            config["architectures"] = [known, *config.get("architectures", [])[1:]]
        if config.get("vocab_size") and self.vocab_size:
            config["vocab_size"] = self.vocab_size
        if config.get("tie_word_embeddings") and "lm_head.weight" in self.places:
            config["tie_word_embeddings"] = False
        _dump(self.folder / "config.json", config)
        # What was made of other files is left out, so that llama.cpp's converter reads there what it reads in the base.
        left = "tokenizer.json" if (self.tokenizer / MADE).is_file() else ""
        for name in _COPIED:
            if name != left and (self.tokenizer / name).is_file():
                shutil.copyfile(self.tokenizer / name, self.folder / name)

    def parts(self, tensor: Planned) -> Collection[str]:
        return [self.part] if tensor.source else []

    def put(self, slab: Slab, rows: Rows) -> None:
        if slab.tensor.source is None:
            return
        handle, start = self.places[slab.tensor.source]
        offset = start + slab.start * slab.shape[1] * SIZES[self.dtype]
        _pwrite(handle, getattr(rows, self.part).data, offset)

    def close(self) -> None:
        for handle in self.handles:
            _close(handle)


def _create(path: Path, size: int) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    # Reserving the blocks fails here and now where the disk is full, and makes the writes cheaper.
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.ftruncate(handle, size)
    except OSError as error:
        os.close(handle)
        error.filename = path.as_posix()
        raise
    return handle


def _close(handle: int) -> None:
    if handle >= 0:
        os.close(handle)


def _pwrite(handle: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
