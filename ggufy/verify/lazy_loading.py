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
        yield
    finally:
        modeling_utils.safe_open, save_and_load.safe_load_file = before
