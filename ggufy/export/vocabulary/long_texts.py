"""The texts of a long array in a GGUF: the tokens and merges of a vocabulary."""

from __future__ import annotations

from functools import cached_property


class LongTexts(list[str]):
    """Texts that are packed once, however often they are written."""

    @cached_property
    def packed(self) -> bytes:
        """Each text's length in eight bytes, and its bytes."""
        import numpy as np

        texts = list(map(str.encode, self))
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        starts = np.cumsum(lengths + 8) - lengths - 8
        made = np.empty(int(lengths.sum()) + 8 * len(texts), np.uint8)
        heads = starts[:, None] + np.arange(8)
        of_text = np.ones(len(made), bool)
        of_text[heads] = False
        made[heads] = lengths.astype("<u8").view(np.uint8).reshape(-1, 8)
        made[of_text] = np.frombuffer(b"".join(texts), np.uint8)
        return made.tobytes()
