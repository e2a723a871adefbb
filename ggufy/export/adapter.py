"""A PEFT adapter, and what it adds to rows of the base.

LoRA: W + (B @ A) * scaling, with scaling alpha/r, or alpha/sqrt(r) with rsLoRA, where r and alpha may differ by module
(rank_pattern, alpha_pattern). DoRA: rows of that, brought to the learnt length. As in peft 0.21, `lora/layer.py` and
`lora/dora.py`; everything in float32.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy import ggml
from ggufy.errors import ExportError
from ggufy.weights import Checkpoint

_PREFIX = "base_model.model."
# Ways of starting an adapter that also change the base it is trained on.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


@dataclass
class Pair:
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

    def apply(self, rows: Any, start: int, scratch: Any) -> None:
        """Change rows [start, start + len(rows)) of the base, float32 (n, columns), in place.

        `scratch` is a float32 array of the same shape, for the product.
        """
        import numpy as np

        stop = start + len(rows)
        if self.transposed:
            delta = (self.b @ self.a[:, start:stop]).T
        else:
            delta = np.matmul(self.b[start:stop], self.a, out=scratch)
        delta *= np.float32(self.scaling)
        rows += delta
        if self.magnitude is not None:
            lengths = np.linalg.norm(rows, axis=1).astype(np.float32)
            rows *= (self.magnitude[start:stop] / lengths)[:, None]


class Adapter:
    """The adapter in a folder. `pairs` by the name of the base tensor; `whole` replaces tensors of the base."""

    def __init__(
        self, pairs: dict[str, Pair], whole: dict[str, str], weights: Checkpoint | None, where: str, alpha: float
    ) -> None:
        self.pairs, self.whole, self.weights, self.where, self.alpha = pairs, whole, weights, where, alpha

    @classmethod
    def none(cls) -> Adapter:
        return cls({}, {}, None, "no adapter", 1.0)

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read a PEFT adapter folder. Raises ExportError for what cannot be merged exactly."""
        where = folder.as_posix()
        try:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            file = folder / "adapter_model.safetensors"
            if not file.is_file():
                raise ExportError(f"{where}: no adapter_model.safetensors there", "only safetensors adapters are read")
        except (OSError, ValueError) as error:
            raise ExportError(
                f"{where}: adapter_config.json cannot be read: {error}", "name a PEFT adapter folder"
            ) from None
        if config.get("peft_type") != "LORA":
            raise ExportError(f"{where}: a {config.get('peft_type')} adapter; ggufy merges LoRA, rsLoRA and DoRA")
        if config.get("bias", "none") != "none":
            raise ExportError(
                f"{where}: the adapter also trained biases (bias: {config['bias']}), which is not supported yet"
            )
        initial = str(config.get("init_lora_weights", True)).lower()
        if initial.startswith(_CHANGE_THE_BASE) or config.get("alora_invocation_tokens"):
            raise ExportError(
                f"{where}: an adapter of this kind ({initial}) does not fit the published base",
                "convert it with peft's own tool for that method, or merge it with peft",
            )
        weights = Checkpoint.open(file)
        found: dict[str, dict[str, Any]] = {}
        whole: dict[str, str] = {}
        for name in weights.tensors:
            short = name.removeprefix(_PREFIX)
            suffix = next((s for s in _PARTS if short.endswith(s)), None)
            if suffix:
                found.setdefault(short.removesuffix(suffix), {})[_PARTS[suffix]] = float32(weights, name)
            elif "lora_" in short:
                raise ExportError(
                    f"{where}: {name} is a kind of adapter weight that ggufy does not merge", "merge it with peft"
                )
            else:
                whole[short.replace(".modules_to_save", "")] = name
        if not found and not whole:
            raise ExportError(f"{where}: the adapter is empty", "train it first")
        pairs = {f"{module}.weight": _pair(module, parts, config, where) for module, parts in found.items()}
        return cls(pairs, whole, weights, where, float(config["lora_alpha"]))

    def check(self, base: Checkpoint, used: Iterable[str]) -> None:
        """Refuse an adapter of which anything does not fit the base, or would be left out."""
        names = set(used)
        for name, pair in self.pairs.items():
            if name not in names:
                raise ExportError(
                    f"{self.where}: the adapter changes {name}, which is not in the base {base.where}",
                    "name the base this adapter was trained on",
                )
            if pair.shape != base[name].shape:
                raise ExportError(
                    f"adapter and base do not fit: {name} is {list(base[name].shape)} in the base, "
                    f"and the adapter changes {list(pair.shape)}",
                    "name the base this adapter was trained on",
                )
        for name, stored in self.whole.items():
            if name not in names:
                raise ExportError(f"{self.where}: the adapter replaces {name}, which is not in the base {base.where}")
            shape = self.weights[stored].shape if self.weights else ()
            if shape != base[name].shape:
                raise ExportError(
                    f"adapter and base do not fit: {name} is {list(base[name].shape)} in the base, "
                    f"and the adapter brings one of {list(shape)}",
                    "name the base this adapter was trained on, with its added tokens",
                )


def float32(weights: Checkpoint, name: str) -> Any:
    """A whole tensor of a checkpoint as float32."""
    import numpy as np

    tensor = weights[name]
    out = np.empty(tensor.shape, np.float32)
    decode(weights.data(name), tensor.dtype, out.reshape(-1))
    return out


def decode(data: Any, dtype: str, out: Any) -> None:
    """The numbers of a safetensors dtype, as many as the flat float32 array `out` holds. Exact."""
    import numpy as np

    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[:] = np.frombuffer(data, np.dtype("<u2"), out.size)
        bits <<= 16
    elif dtype == "F16":
        ggml.from_f16(np.frombuffer(data, np.dtype("<f2"), out.size), out)
    elif dtype == "F32":
        out[:] = np.frombuffer(data, np.dtype("<f4"), out.size)
    else:
        raise ExportError(f"weights of type {dtype} cannot be read", "use a base in bf16, f16 or f32")


def _pair(module: str, parts: dict[str, Any], config: dict[str, Any], where: str) -> Pair:
    if missing := {"a", "b"} - parts.keys():
        raise ExportError(f"{where}: {module} has no lora_{missing.pop().upper()}", "the adapter is damaged")
    rank = int(_by_pattern(config.get("rank_pattern"), module, config["r"]))
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    if parts["a"].shape[0] != rank:
        raise ExportError(f"{where}: {module} has rank {parts['a'].shape[0]}, but adapter_config.json says {rank}")
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    transposed = bool(config.get("fan_in_fan_out"))
    if transposed and "magnitude" in parts:
        raise ExportError(f"{where}: DoRA with fan_in_fan_out is not supported")
    return Pair(parts["a"], parts["b"], scaling, parts.get("magnitude"), transposed)


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
