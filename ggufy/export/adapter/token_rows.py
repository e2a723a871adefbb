"""Rows of an embedding that were trained one by one: peft's `trainable_token_indices`.

The adapter holds the rows themselves, not a difference (`peft/tuners/trainable_tokens/layer.py`). Of a tied model they
are rows of the output matrix, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.adapter.config import AdapterConfig

TOKENS = ".token_adapter.trainable_tokens_delta"
_DAMAGED = "the adapter is damaged: copy it again, or train it again"


@dataclass
class TokenRows:
    """Rows that replace those of a matrix: `tokens` are their numbers, `values` float32 (tokens, columns)."""

    tokens: list[int]
    values: Any
    magnitude = None
    transposed = True
    plain = False
    unties = False
    is_nothing = False
    scaling = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """The least that a matrix must have."""
        return max(self.tokens) + 1, self.values.shape[1]

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and shape[1] == self.shape[1] and shape[0] >= self.shape[0]

    def same(self, other: TokenRows) -> bool:
        import numpy as np

        return self.tokens == other.tokens and np.array_equal(self.values, other.values)

    def apply(self, rows: Any, start: int, scratch: Any) -> None:
        """Replace what lies in rows [start, start + len(rows)), in place."""
        del scratch
        for token, row in zip(self.tokens, self.values, strict=True):
            if start <= token < start + len(rows):
                rows[token - start] = row


def of(held: Mapping[str, Any], config: AdapterConfig, where: str) -> Iterator[tuple[str, TokenRows]]:
    """By module: the rows in an adapter (module -> float32 array), with the numbers from its configuration."""
    given = config.trainable_token_indices or {}
    # A list means the embedding, and its copy where the two are tied.
    wanted = {"embed_tokens": given, "lm_head": given} if isinstance(given, list) else dict(given)
    if given and not held:
        raise ExportError(
            f"{where}: trainable_token_indices in adapter_config.json, but there are no trained tokens", _DAMAGED
        )
    for module, values in held.items():
        numbers = next((found for name, found in wanted.items() if module == name or module.endswith(f".{name}")), None)
        if not isinstance(numbers, list) or not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ExportError(
                f"{where}: adapter_config.json does not say which tokens of {module} were trained", _DAMAGED
            )
        if values.ndim != 2 or len(values) != len(numbers):
            raise ExportError(
                f"{where}: {module} has trained tokens of shape {list(values.shape)}, "
                f"but adapter_config.json names {len(numbers)} of them",
                _DAMAGED,
            )
        yield module, TokenRows(numbers, values)
