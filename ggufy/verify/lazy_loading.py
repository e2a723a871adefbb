"""Have transformers and peft load a model whose matrices stay on the disk.

They choose the files, the names and what is tied as ever; only what they open a safetensors file with is another. Both
are exact in pyproject.toml to the minor version, and a test finds out where one of them reads its files another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufy.model import safetensors


class _File:
    """A safetensors file as transformers opens one, the matrices of which stay on the disk."""

    def __init__(self, path: Any, *_: Any, **__: Any) -> None:
        self.tensors = lazily(path)

    def keys(self) -> Sequence[str]:
        return list(self.tensors)

    def get_slice(self, name: str) -> Any:
        return self.tensors[name]

    def __exit__(self, *_: object) -> None:
        """Nothing is open between two reads."""


def lazily(path: str | Path, **_: Any) -> dict[str, Any]:
    """The tensors of a safetensors file, the matrices of which stay on the disk."""
    from safetensors import safe_open

    from ggufy.verify import disk_tensor

    with safe_open(path, framework="pt") as file:
        return {
            name: disk_tensor.DiskTensor(disk_tensor.Stored(tensor))
            if tensor.dtype in disk_tensor.DTYPES and len(tensor.shape) > 1
            else file.get_tensor(name).clone()
            for name, tensor in safetensors.read_header(Path(path)).items()
        }


@contextmanager
def left_on_disk() -> Iterator[None]:
    """While it lasts, transformers and peft load models and adapters without reading their matrices."""
    from peft.utils import save_and_load
    from transformers import modeling_utils

    before = modeling_utils.safe_open, save_and_load.safe_load_file
    modeling_utils.safe_open, save_and_load.safe_load_file = _File, lazily
    try:
        with _dora_in_slabs():
            yield
    finally:
        modeling_utils.safe_open, save_and_load.safe_load_file = before


@contextmanager
def _dora_in_slabs() -> Iterator[None]:
    """Have peft take the lengths of DoRA's rows a slab at a time: it holds three matrices and an identity for each."""
    import torch
    from peft.tuners.lora.dora import DoraLinearLayer as Layer

    from ggufy.verify.disk_tensor import DiskTensor, Product

    before = Layer.update_layer, Layer.get_lora_weight, Layer.get_weight_norm

    def update_layer(self: Any, *, base_layer: Any, lora_A: Any, lora_B: Any, **more: Any) -> None:  # noqa: N803
        if type(self) is not Layer or self.fan_in_fan_out or not isinstance(base_layer.weight, DiskTensor):
            before[0](self, base_layer=base_layer, lora_A=lora_A, lora_B=lora_B, **more)
            return
        # The lengths that were learnt are loaded in their place.
        self.weight = torch.nn.Parameter(torch.ones(len(lora_B)))

    def get_lora_weight(self: Any, lora_A: Any, lora_B: Any, adapter_name: str | None = None) -> Any:  # noqa: N803
        if self.fan_in_fan_out or lora_B.bias is not None:
            return before[1](self, lora_A, lora_B, adapter_name=adapter_name)
        left, right = (
            part.weight.values() if isinstance(part.weight, DiskTensor) else part.weight for part in (lora_B, lora_A)
        )
        return DiskTensor(Product(left, right))

    def get_weight_norm(
        self: Any, weight: Any, lora_weight: Any, scaling: float, adapter_name: str | None = None
    ) -> Any:
        if not isinstance(weight, DiskTensor) or not isinstance(lora_weight, DiskTensor):
            return before[2](self, weight, lora_weight, scaling, adapter_name=adapter_name)
        found = torch.empty(len(weight))
        for (start, stop, rows), (_, _, change) in zip(weight.slabs(), lora_weight.slabs(), strict=True):
            found[start:stop] = torch.linalg.norm(rows.add_(change, alpha=scaling), dim=1)
        return found

    Layer.update_layer, Layer.get_lora_weight, Layer.get_weight_norm = update_layer, get_lora_weight, get_weight_norm
    try:
        yield
    finally:
        Layer.update_layer, Layer.get_lora_weight, Layer.get_weight_norm = before
