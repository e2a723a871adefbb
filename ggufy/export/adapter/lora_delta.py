"""The low-rank change that a LoRA adapter makes to one matrix, computed as PEFT does.

LoRA: W + (B @ A) * scaling, with scaling alpha/r, or alpha/sqrt(r) with rsLoRA, where r and alpha may differ by module
(rank_pattern, alpha_pattern). DoRA: rows of that, brought to the learnt length. As in peft 0.21, `lora/layer.py` and
`lora/dora.py`; everything in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.adapter.config import AdapterConfig

DAMAGED = "the adapter is damaged: copy it again, or train it again"
PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
"""How the names of an adapter's tensors end."""


@dataclass
class LoraDelta:
    """The low-rank change of one matrix: float32 arrays a (r, columns) and b (rows, r)."""

    a: Any
    b: Any
    scaling: float
    magnitude: Any = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)

    unties = True
    """Whether on one of a tied pair it makes two matrices of them."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a change of a matrix of this shape."""
        return self.shape == shape

    @property
    def plain(self) -> bool:
        """Whether the change is only added: scaling times `product`."""
        return not self.transposed and self.magnitude is None

    @property
    def is_nothing(self) -> bool:
        """Whether it leaves the base as it is."""
        return self.magnitude is None and not (self.scaling and self.a.any() and self.b.any())

    def product(self, start: int, stop: int, scratch: Any) -> Any:
        """Rows [start, stop) of B @ A, in `scratch`: float32 (n, columns)."""
        import numpy as np

        if self.transposed:
            np.copyto(scratch, (self.b @ self.a[:, start:stop]).T)
            return scratch
        return np.matmul(self.b[start:stop], self.a, out=scratch)

    def apply(self, rows: Any, start: int, scratch: Any) -> None:
        """Change rows [start, start + len(rows)) of the base, float32 (n, columns), in place.

        `scratch` is a float32 array of the same shape, for the product.
        """
        import numpy as np

        stop = start + len(rows)
        delta = self.product(start, stop, scratch)
        delta *= np.float32(self.scaling)
        rows += delta
        if self.magnitude is not None:
            lengths = np.linalg.norm(rows, axis=1).astype(np.float32)
            rows *= (self.magnitude[start:stop] / lengths)[:, None]


def deltas_of(module: str, parts: dict[str, Any], config: AdapterConfig, where: str) -> Iterator[tuple[str, LoraDelta]]:
    """The changes of a module's weight and, with lora_bias, of its bias."""
    embedding = "embedding_a" in parts or "embedding_b" in parts
    if embedding:
        if {"a", "b"} & parts.keys():
            raise ExportError(f"{where}: {module}.lora_embedding_A is there beside a lora_A or lora_B", DAMAGED)
        # delta = (B @ A).T, which is what a transposed one has.
        parts = {name.removeprefix("embedding_"): part for name, part in parts.items()}
    if missing := {"a", "b"} - parts.keys():
        kind = "lora_embedding_" if embedding else "lora_"
        raise ExportError(f"{where}: {module} has no {kind}{missing.pop().upper()}", DAMAGED)
    delta = _delta(module, parts, config, where, embedding)
    yield "weight", delta
    if "bias" in parts:
        import numpy as np

        yield "bias", LoraDelta(parts["bias"][None], np.ones((1, 1), np.float32), delta.scaling, transposed=True)


def _delta(module: str, parts: dict[str, Any], config: AdapterConfig, where: str, embedding: bool) -> LoraDelta:
    _check_shapes(module, parts, config, where)
    transposed = embedding or config.fan_in_fan_out
    if transposed and "magnitude" in parts:
        what = f"of {module}" if embedding else "with fan_in_fan_out"
        raise ExportError(f"{where}: DoRA {what} is a kind that ggufy does not merge", "merge it with peft")
    if config.use_dora != ("magnitude" in parts):
        has = "no lora_magnitude_vector" if config.use_dora else "a lora_magnitude_vector"
        says = str(config.use_dora).lower()
        raise ExportError(
            f"{where}: {module} has {has}, but adapter_config.json says use_dora: {says}",
            "weights and adapter_config.json are of different adapters: copy both again",
        )
    return LoraDelta(parts["a"], parts["b"], config.scaling(module), parts.get("magnitude"), transposed)


def _check_shapes(module: str, parts: dict[str, Any], config: AdapterConfig, where: str) -> None:
    """Raise ExportError unless A is (rank, columns), B (rows, rank), and the magnitudes are one a row."""
    a, b, rank = parts["a"], parts["b"], config.rank(module)
    shapes = f"lora_A is {list(a.shape)} and lora_B {list(b.shape)}"
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ExportError(f"{where}: {module}: {shapes}, which do not make a matrix", DAMAGED)
    if a.shape[0] != rank:
        raise ExportError(
            f"{where}: {module} has rank {a.shape[0]}, but adapter_config.json says {rank}",
            "weights and adapter_config.json are of different adapters: copy both again",
        )
    if "magnitude" in parts and parts["magnitude"].shape != b.shape[:1]:
        found = list(parts["magnitude"].shape)
        raise ExportError(f"{where}: {module}: lora_B is {list(b.shape)}, its magnitude vector {found}", DAMAGED)
