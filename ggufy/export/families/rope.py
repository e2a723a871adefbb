"""Rotary position embeddings: what config.json says of them to transformers, and how llama.cpp is told the same.

transformers 5.17 (`modeling_rope_utils.py`) takes `rope_scaling`, where it says anything, before `rope_parameters`, and
needs the numbers of each type. llama.cpp's converter writes linear and yarn as keys and llama3 as a tensor of factors.
What its runtime would compute in another way is refused: that file would answer worse the longer a text is.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from ggufy.errors import ExportError
from ggufy.model import config_files
from ggufy.model.config_files import Settings

log = logging.getLogger("ggufy")

_KNOWN = "known are default, linear, dynamic, yarn and llama3"
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_WITH_LENGTH = ("yarn", "llama3")
_LENGTH = "original_max_position_embeddings"


class Rope(Settings):
    """What is used of the object that config.json has under either key."""

    rope_theta: PositiveFloat | None = None
    factor: PositiveFloat | None = None
    low_freq_factor: PositiveFloat | None = None
    high_freq_factor: PositiveFloat | None = None
    original_max_position_embeddings: PositiveInt | None = None
    attention_factor: PositiveFloat | None = None
    beta_fast: PositiveFloat | None = None
    beta_slow: PositiveFloat | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    partial_rotary_factor: float | None = None


def read(config: dict[str, Any], path: Path, *, theta: float = 10000.0) -> dict[str, Any]:
    """The rope of a config.json: `rope_type`, `rope_theta` and its numbers, as transformers completes them.

    `theta` is the family's default. Raises ExportError for a type that lacks a number, or that llama.cpp has not.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(key) or {}
    if not isinstance(given, dict):
        raise ExportError(f"{path.as_posix()}: {key} is not an object", "copy the folder again, or correct that key")
    rope = {name: value for name, value in given.items() if value is not None}
    if isinstance(length := rope.get(_LENGTH), float) and length.is_integer():
        rope[_LENGTH] = int(length)
    config_files.check(Rope, rope, path)
    rope.setdefault("rope_theta", config.get("rope_theta", theta))
    kind = rope["rope_type"] = str(rope.get("rope_type", rope.get("type", "default"))).lower()
    if kind not in _NEEDED:
        raise ExportError(f"{path.as_posix()}: rope scaling of type {kind} is not exported yet", _KNOWN)
    if missing := [name for name in _NEEDED[kind] if name not in rope]:
        raise ExportError(
            f"{path.as_posix()}: {key} of type {kind} has no {missing[0]}, and transformers has no default for it",
            f"copy config.json again, or add the {missing[0]} that the model was trained with",
        )
    if kind in _WITH_LENGTH:
        # What stands outside has the last word there.
        rope.setdefault(_LENGTH, config["max_position_embeddings"])
        rope |= {name: config[name] for name in (_LENGTH,) if name in config}
    # transformers takes the one outside where there is none inside.
    part = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1))
    if kind != "default" and part != 1:
        raise _other(path, f"partial_rotary_factor is {part}", "rotates the whole head")
    if kind == "yarn":
        _check_yarn(rope, path)
    return rope


def _check_yarn(rope: dict[str, Any], path: Path) -> None:
    """What llama.cpp computes by itself: `llama_context` the factor of attention, `rope_yarn_corr_dims` the range.

    Of a Llama it does not read the keys that the converter writes for these.
    """

    def scale(weight: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * weight * math.log(rope["factor"]) + 1

    attention, own = rope.get("attention_factor"), scale(1)
    if attention is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        attention = scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    if attention is not None and not math.isclose(attention, own, rel_tol=1e-6):
        raise _other(path, f"yarn's attention_factor is {attention:.4g}", f"computes {own:.4g} from the factor")
    for name, fixed in (("beta_fast", 32), ("beta_slow", 1)):
        if rope.get(name, fixed) != fixed:
            raise _other(path, f"yarn's {name} is {rope[name]}", f"takes {fixed} for every Llama")
    if rope.get("truncate") is False:
        raise _other(path, "yarn's truncate is false", "rounds the range that it blends over to whole dimensions")


def _other(path: Path, what: str, does: str) -> ExportError:
    return ExportError(
        f"{path.as_posix()}: {what}, and llama.cpp {does}",
        "the GGUF would not answer like this model; use a base without it, or run it with transformers",
    )


def say_limits(rope: dict[str, Any]) -> None:
    """Log what llama.cpp leaves out without a difference within the model's own context."""
    if rope["rope_type"] == "dynamic":
        log.info(
            "rope scaling of type dynamic acts beyond max_position_embeddings only, where llama.cpp does not scale; "
            "up to there the GGUF is the same model"
        )


def add(writer: Any, rope: dict[str, Any]) -> None:
    """Add the keys of a rope to a GGUFWriter, in the converter's order."""
    import gguf

    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name, key in (("attention_factor", "attn_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
            if name in rope:
                getattr(writer, f"add_rope_scaling_yarn_{key}")(rope[name])
    writer.add_rope_freq_base(rope["rope_theta"])


def factors(rope: dict[str, Any], head_dim: int) -> list[float]:
    """llama3 rope scaling as llama.cpp's rope_freqs: 1, the factor, or the blend between, by wavelength.

    In float32, and in the converter's order of operations: PyTorch divides a number by a tensor as the tensor's
    reciprocal times the number.
    """
    import numpy as np

    if rope["rope_type"] != "llama3":
        return []
    one, f32 = np.float32(1), np.float32
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    exponents = (np.arange(0, head_dim, 2, dtype=f32) / f32(head_dim)).astype(np.float64)
    frequencies = one / np.power(np.float64(rope["rope_theta"]), exponents).astype(f32)
    found = []
    for frequency in frequencies:
        wavelength = (one / frequency) * f32(2 * math.pi)
        if wavelength < context / high:
            found.append(1.0)
        elif wavelength > context / low:
            found.append(float(factor))
        else:
            smooth = ((one / wavelength) * f32(context) - f32(low)) / f32(high - low)
            found.append(float(one / ((one - smooth) / f32(factor) + smooth)))
    return found
