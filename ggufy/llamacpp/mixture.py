"""Which type llama.cpp's quantizer gives each tensor: the options that ask for it, and where it fell back to others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_FELL = re.compile(r"warning: \S+ .*required for type +([\w.]+)\)")
_BACK = re.compile(r"-> falling back to +([\w.]+)")


@dataclass(frozen=True)
class Mixture:
    """The options of llama.cpp's quantizer on the types of tensors, which are numbers of `ggml_type`."""

    patterns: tuple[tuple[str, int], ...] = ()
    """Regular expressions as std::regex reads them, and types: the first that is found anywhere in a name is taken."""
    output: int | None = None
    """Of output.weight; of the embedding where that serves as the output too, if nothing else says its type."""
    embedding: int | None = None
    leave_output: bool = False
    """output.weight stays as it is."""
    pure: bool = False
    """Every tensor gets the quant's own type, as far as nothing else says its type."""

    def set(self, params: Any) -> None:
        """Put the options into a llama_model_quantize_params, which then holds the memory they need."""
        import llama_cpp

        if self.output is not None:
            params.output_tensor_type = self.output
        if self.embedding is not None:
            params.token_embedding_type = self.embedding
        params.quantize_output_tensor = not self.leave_output
        params.pure = self.pure
        if self.patterns:
            # llama.cpp takes the array's end from an empty pattern.
            places = (llama_cpp.llama_model_tensor_override * (len(self.patterns) + 1))()
            for place, (pattern, kind) in zip(places, self.patterns, strict=False):
                place.pattern, place.type = pattern.encode(), kind
            params.tt_overrides = places


def fallbacks(said: Sequence[str]) -> Counter[tuple[str, str]]:
    """From which type to which llama.cpp's quantizer fell back, and for how many tensors, from what it logged.

    It does where the columns of a tensor cannot be divided by the block of the type that it was to get.
    """
    found: Counter[tuple[str, str]] = Counter()
    fell = ""
    for line in said:
        # Both are on one line for people, and logged in two or three parts.
        if wanted := _FELL.search(line):
            fell = wanted[1]
        if fell and (given := _BACK.search(line)):
            found[fell.lower(), given[1].lower()] += 1
            fell = ""
    return found


def fallbacks_text(found: Counter[tuple[str, str]]) -> str:
    """In a line for people; empty where there were none."""
    if not found:
        return ""
    pairs = ", ".join(f"{count} from {wanted} to {given}" for (wanted, given), count in found.items())
    count = sum(found.values())
    return f"{count} tensor{'s' if count > 1 else ''} fell back to another type, because of the width: {pairs}"
