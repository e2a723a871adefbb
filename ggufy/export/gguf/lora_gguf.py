"""Write the adapter alone as a GGUF, for llama.cpp's `--lora`.

llama.cpp scales the product by alpha / rank, with one alpha for the file and the rank it sees; it knows neither rsLoRA
nor patterns. So where peft's scaling is another, the difference is multiplied into B. For a plain adapter the factor is
1 and the file has the tensors of llama.cpp's convert_lora_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ggufy.errors import ExportError
from ggufy.export.adapter.adapter import Adapter
from ggufy.export.families.family import Planned


def size(adapter: Adapter) -> int:
    """Bytes of the file, from above: the matrices A and B in float32, and room for the header."""
    return sum(int(delta.a.nbytes + delta.b.nbytes) + 1024 for delta in adapter.deltas.values()) + 65536


def write(path: Path, adapter: Adapter, arch: str, planned: Sequence[Planned], general: dict[str, str]) -> None:
    """Write the matrices A and B in float32, of an adapter that `check` has passed, for a base that is an `arch`."""
    import gguf

    writer = gguf.GGUFWriter(path=None, arch=arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    for key, value in general.items():
        writer.add_string(f"general.{key}", value)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, values in tensors(adapter, planned):
        writer.add_tensor(name, values)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(adapter: Adapter, planned: Sequence[Planned]) -> Iterator[tuple[str, Any]]:
    """Name and float32 values of each tensor, in file order."""
    import numpy as np

    by_source = {tensor.source: tensor for tensor in planned}
    for source in sorted(adapter.deltas):
        delta, tensor = adapter.deltas[source], by_source[source]
        factor = delta.scaling * len(delta.a) / adapter.alpha
        b = delta.b if factor == 1 else (delta.b * np.float32(factor))
        yield f"{tensor.name}.lora_a", delta.a
        yield f"{tensor.name}.lora_b", _permute(b, tensor.heads, np)


def check(adapter: Adapter) -> None:
    """Raise ExportError for adapters that a GGUF of this kind cannot hold."""
    if not adapter.deltas:
        raise ExportError("there is no adapter to write as a GGUF", "leave out --adapter-gguf")
    if adapter.untied:
        raise ExportError(
            f"{adapter.where}: it unties the output matrix from the embedding, which llama.cpp's --lora cannot do",
            "export merged files with --quant",
        )
    if any(delta.magnitude is not None for delta in adapter.deltas.values()):
        raise ExportError(f"{adapter.where}: llama.cpp's --lora cannot hold DoRA", "export merged files with --quant")
    if adapter.whole or any(delta.transposed for delta in adapter.deltas.values()):
        raise ExportError(
            f"{adapter.where}: llama.cpp's --lora cannot hold whole tensors, biases, embeddings or transposed matrices",
            "export merged files with --quant",
        )


def _permute(b: Any, heads: int, np: Any) -> Any:
    """The row order of q and k in a GGUF, which is that of the rows of B."""
    if not heads:
        return b
    return np.ascontiguousarray(b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2)).reshape(b.shape)
