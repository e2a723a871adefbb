"""Weights of a checkpoint as torch tensors that stay on the disk until something computes with them.

A `DiskTensor` says that it is a float32 tensor on the CPU. A matrix product with it goes through its rows a slab at a
time, an embedding reads the rows that it looks up, and everything else gets the values read for that one operation. So
the modules of transformers and peft run as they are, and a model takes the memory of its largest operation.

It is torch's own way in: `__torch_function__` (https://docs.pytorch.org/docs/stable/notes/extending.html). Whatever
slips past it ends in an error, as there is no memory behind such a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map

from ggufy.model import safetensors

SLAB = 1 << 23
"""Weights that a matrix product has in memory at a time: 32 MB in float32, and 16 in the checkpoint's 16 bits."""
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Source(Protocol):
    """Where the values are."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, out: Any) -> None:
        """Put as many rows, from `start` on, as `out`, float32 (rows, ...), holds."""


@dataclass(frozen=True)
class Stored:
    """In a safetensors file. Read, not mapped: pages of a map would be counted as this process's memory."""

    tensor: safetensors.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def read(self, start: int, out: Any) -> None:
        dtype = DTYPES[self.tensor.dtype]
        raw = out if dtype == torch.float32 and out.is_contiguous() else torch.empty_like(out, dtype=dtype)
        row = (self.tensor.end - self.tensor.start) // self.shape[0]
        held = memoryview(raw.view(-1).view(torch.uint8).numpy())
        with self.tensor.file.open("rb", buffering=0) as file:
            file.seek(self.tensor.start + start * row)
            while held:
                count = file.readinto(held)
                if not count:
                    raise OSError(f"{self.tensor.file.as_posix()}: {self.tensor.name} is cut short")
                held = held[count:]
        if raw is not out:
            out.copy_(raw)


@dataclass(frozen=True)
class Resident:
    """In memory after all: what replaced a weight."""

    values: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def read(self, start: int, out: Any) -> None:
        out.copy_(self.values[start : start + len(out)])


@dataclass(frozen=True)
class Patched:
    """Other values in some rows, as peft's trainable tokens have them."""

    under: Source
    rows: dict[int, int]
    """Which of the `values` a row has."""
    values: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.under.shape

    def read(self, start: int, out: Any) -> None:
        self.under.read(start, out)
        for row, place in self.rows.items():
            if start <= row < start + len(out):
                out[row - start] = self.values[place]


@dataclass(frozen=True)
class Product:
    """Of two matrices of low rank, (rows, rank) and (rank, columns), as LoRA's are."""

    left: Any
    right: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.left), self.right.shape[1]

    def read(self, start: int, out: Any) -> None:
        torch.matmul(self.left[start : start + len(out)], self.right, out=out)


class DiskTensor(torch.Tensor):
    """A float32 tensor whose values are read when they are needed."""

    source: Source

    @staticmethod
    def __new__(cls, source: Source) -> DiskTensor:
        made: DiskTensor = torch.Tensor._make_wrapper_subclass(cls, source.shape, dtype=torch.float32, device="cpu")
        made.source = source
        return made

    def __repr__(self, **_: Any) -> str:
        return f"DiskTensor({self.source})"

    def slabs(self) -> Iterator[tuple[int, int, Any]]:
        """Its rows [start, stop) in float32, of about SLAB weights; each is overwritten by the next."""
        rows, *rest = self.source.shape
        step = max(1, SLAB // max(1, torch.Size(rest).numel()))
        buffer = torch.empty(min(step, rows), *rest)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            slab = buffer[: stop - start]
            self.source.read(start, slab)
            yield start, stop, slab

    def rows(self, numbers: Any) -> Any:
        """These rows, float32 (*shape of numbers, ...). Raises IndexError as torch does."""
        count = self.source.shape[0]
        unique, inverse = torch.as_tensor(numbers, dtype=torch.int64).unique(return_inverse=True)
        found = torch.empty(len(unique), *self.source.shape[1:])
        for place, number in enumerate(unique.tolist()):
            if not -count <= number < count:
                raise IndexError(f"row {number} of {count}")
            row = number % count
            self.source.read(row, found[place : place + 1])
        return found[inverse]

    def values(self) -> Any:
        """All of them, float32."""
        out = torch.empty(self.source.shape)
        if out.dim():
            self.source.read(0, out)
        return out

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _OF_ITSELF:
                return func(*args, **kwargs)
            if func in _HANDLERS and (found := _HANDLERS[func](*args, **kwargs)) is not NotImplemented:
                return found
            if isinstance(args[0], cls) and _changes(func):
                # What changes a weight, as some ways to begin an adapter do, has it in memory from then on.
                values = args[0].values()
                func(values, *tree_map(_read, args[1:]), **tree_map(_read, kwargs))
                args[0].source = Resident(values)
                return args[0]
            return func(*tree_map(_read, args), **tree_map(_read, kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.set_.source_Tensor:
            # The only operation that torch offers nowhere else, and parametrizations begin with.
            return _take(*args)
        raise RuntimeError(f"{func} was asked of a weight that is on the disk")


def _read(value: Any) -> Any:
    return value.values() if isinstance(value, DiskTensor) else value


def _changes(func: Any) -> bool:
    name = func.__name__
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: A002
    if not isinstance(weight, DiskTensor) or isinstance(bias, DiskTensor) or isinstance(input, DiskTensor):
        return NotImplemented
    out = input.new_empty(*input.shape[:-1], weight.source.shape[0])
    for start, stop, slab in weight.slabs():
        out[..., start:stop] = functional.linear(input, slab, None if bias is None else bias[start:stop])
    return out


def _embedding(input: Any, weight: Any, padding: Any = None, max_norm: Any = None, *_: Any, **__: Any) -> Any:  # noqa: A002
    del padding  # which is about gradients
    return weight.rows(input) if max_norm is None and isinstance(weight, DiskTensor) else NotImplemented


def _item(weight: Any, index: Any) -> Any:
    if index is Ellipsis:
        return weight
    whole = isinstance(index, int) and not isinstance(index, bool)
    if whole or (isinstance(index, list) and all(isinstance(number, int) for number in index)):
        return weight.rows(index)
    return NotImplemented


def _index_copy(weight: Any, dim: int, index: Any, source: Any) -> Any:
    if dim != 0 or not isinstance(weight, DiskTensor) or isinstance(source, DiskTensor):
        return NotImplemented
    return DiskTensor(Patched(weight.source, {row: place for place, row in enumerate(index.tolist())}, source))


def _equal(one: Any, other: Any) -> Any:
    if not isinstance(one, DiskTensor) or not isinstance(other, DiskTensor):
        return NotImplemented
    if one.source.shape != other.source.shape:
        return False
    return all(torch.equal(a, b) for (_, _, a), (_, _, b) in zip(one.slabs(), other.slabs(), strict=True))


def _same(weight: Any) -> Any:
    """Of what is alike for a float32 tensor on the CPU."""
    return weight


def _to(weight: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(weight, DiskTensor):
        # To what a weight on the disk is.
        return weight.to("cpu", torch.float32)
    asked = [value for value in (*args, *kwargs.values()) if value is not None and value is not False]
    return weight if all(map(_is_usual, asked)) else NotImplemented


def _is_usual(kind: Any) -> bool:
    if isinstance(kind, torch.Tensor):
        return bool(kind.dtype == torch.float32 and kind.device.type == "cpu")
    return kind in (torch.float32, torch.device("cpu"), "cpu")


def _copied(weight: Any, memo: Any = None, **_: Any) -> Any:
    made = DiskTensor(weight.source).requires_grad_(weight.requires_grad)
    made.__dict__.update(weight.__dict__)
    if memo is not None:
        memo[id(weight)] = made
    return made


def _take(weight: Any, other: Any, *_: Any) -> Any:
    """Become what another is, as `copy_` and an assignment to `data` do."""
    if not isinstance(weight, DiskTensor):
        return NotImplemented
    if weight.shape != other.shape:
        raise RuntimeError(f"weights of {list(other.shape)} in the place of {list(weight.shape)}")
    weight.source = other.source if isinstance(other, DiskTensor) else Resident(other.detach().float().clone())
    return weight


_T = torch.Tensor
# What a tensor says of itself without its values.
_OF_ITSELF = {
    *(getattr(_T, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf")),
    *(getattr(_T, name).__get__ for name in ("grad", "grad_fn", "is_meta", "is_cpu", "is_cuda", "is_sparse", "is_mps")),
    *(getattr(_T, name).__get__ for name in ("is_quantized", "is_nested", "is_xpu", "itemsize", "nbytes")),
    *(_T.grad.__set__, _T.requires_grad.__set__, _T.requires_grad_, _T.retain_grad, _T.__hash__, _T.__len__),
    *(_T.size, _T.dim, _T.ndimension, _T.numel, _T.nelement, _T.element_size, _T.stride, _T.is_contiguous),
    *(_T.is_floating_point, torch.is_floating_point, _T.is_complex, torch.is_complex, torch.numel, _T.get_device),
}
_HANDLERS: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    torch.equal: _equal,
    _T.equal: _equal,
    _T.__getitem__: _item,
    _T.index_copy: _index_copy,
    torch.index_copy: _index_copy,
    _T.__deepcopy__: _copied,
    _T.clone: _copied,
    torch.clone: _copied,
    _T.copy_: _take,
    _T.data.__set__: _take,
    _T.to: _to,
    **dict.fromkeys((_T.detach, torch.detach, _T.data.__get__, _T.float, _T.cpu, _T.contiguous), _same),
}
