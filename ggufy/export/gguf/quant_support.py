"""Which quants llama.cpp supports, and which need an importance matrix: found out with a tiny test file."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

from ggufy.errors import ExportError
from ggufy.llamacpp import library
from ggufy.llamacpp.mixture import Mixture

_LAYERS, _WIDTH = 2, 256
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@functools.cache
def known() -> tuple[str, ...]:
    """The quants that llama.cpp can write, in its order; it names some that it cannot."""
    return tuple(quant for quant in library.ftypes() if takes(quant))


def takes(quant: str) -> bool:
    """Whether llama.cpp can write a quant."""
    return quant in library.ftypes() and "invalid output file type" not in _objection(quant)


def needs_imatrix(quant: str) -> bool:
    """Whether llama.cpp only makes a quant with an importance matrix."""
    return quant in library.ftypes() and "imatrix" in _objection(quant)


@functools.cache
def type_needs_imatrix(number: int) -> bool:
    """Whether llama.cpp only makes a block's matrix of a type with an importance matrix."""
    return "imatrix" in _objection("q8_0", Mixture((("blk", number),)))


@functools.cache
def _objection(quant: str, mixture: Mixture = Mixture()) -> str:  # noqa: B008
    """Why llama.cpp does not quantize a small Llama without an importance matrix; empty where it does."""
    with TemporaryDirectory(prefix="ggufy-") as scratch:
        small = Path(scratch) / "small.gguf"
        _write(small)
        try:
            library.quantize_file(small, Path(scratch) / "made.gguf", library.ftypes()[quant], mixture=mixture)
        except ExportError as error:
            return error.message
    return ""


def _write(path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(_WIDTH)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(library.F16)
    blocks = [f"blk.{layer}.{name}" for layer in range(_LAYERS) for name in _MATRICES]
    for name in ("token_embd", *blocks, "output"):
        writer.add_tensor(f"{name}.weight", np.zeros((2, _WIDTH), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
