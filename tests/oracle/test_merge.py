"""The compiled pass over the weights against numpy: the same bytes, in every form, for every variant that runs here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.data import source
from ggufy.errors import ExportError
from ggufy.export.adapter.adapter import Adapter
from ggufy.export.adapter.lora_delta import LoraDelta
from ggufy.export.families.family import Planned
from ggufy.export.kernel_agreement import agreed
from ggufy.export.kernels import native
from ggufy.export.merge import Merge, Slab
from ggufy.model import safetensors, tiny
from ggufy.model.safetensors import Checkpoint

Arrays = dict[str, np.ndarray]


pytestmark = pytest.mark.usefixtures("kernels")


def by_numpy(values: np.ndarray, delta: np.ndarray | None, scaling: float, head: int) -> Arrays:
    """What the pass has to write, of float32 values."""
    exact = values if delta is None else values + delta * np.float32(scaling)
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
    order = np.arange(len(half))
    if head:
        order = order.reshape(-1, 2, head // 2).swapaxes(1, 2).reshape(-1)
    permuted = half[order]
    made = {"exact": exact, "half": half, "permuted_half": permuted, "permuted": permuted.astype(np.float32)}
    return {**made, "bf16": safetensors.to_bf16(exact)}


def check(
    stored: np.ndarray, dtype: str, values: np.ndarray, delta: np.ndarray | None = None, head: int = 0, some: int = 31
) -> None:
    """`stored` are the bytes, `values` the same as float32; the bits of `some` say which outputs are wanted."""
    expected = by_numpy(values, delta, 0.3, head)
    for variant in native.variants():
        room = {name: np.full(values.size + 8, 77, kind) for name, kind in native.OUTPUTS.items()}
        wanted = [name for number, name in enumerate(room) if some >> number & 1]
        outputs = {name: room[name][: values.size].reshape(values.shape) for name in wanted}
        where = {"delta": delta, "scaling": 0.3, "head": head, "variant": variant}
        assert native.merge(stored, dtype, values.shape, outputs, **where) == -1
        for name in wanted:
            assert outputs[name].tobytes() == expected[name].tobytes(), f"{variant} {name} {dtype}"
        assert all((room[name][values.size if name in wanted else 0 :] == 77).all() for name in room), variant


def patterns(dtype: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every finite number of a 16-bit dtype, or of float32 some of all kinds: as stored and as float32."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    if dtype == "F16":
        bits = bits[(bits & 0x7C00) != 0x7C00]
        return bits, bits.view(np.float16).astype(np.float32)
    if dtype == "BF16":
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    else:
        halves = patterns("F16", rng)[1]
        # Between two neighbours, and one place to each side of the middle: where rounding decides.
        middles = (halves[:-1] / 2 + halves[1:] / 2).view(np.uint32)
        places = np.concatenate([middles - 1, middles, middles + 1, halves.view(np.uint32)])
        values = np.concatenate([places, rng.integers(0, 1 << 32, 200_000, np.uint32)]).view(np.float32)
    values = values[np.abs(values) < 65520]
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values, values


@pytest.mark.parametrize("dtype", native.STORED)
def test_every_number(dtype: str) -> None:
    rng = np.random.default_rng(1)
    stored, values = patterns(dtype, rng)
    # In one row without an end to fill, and in rows that no count of lanes divides.
    for columns in (values.size, 37, 1):
        n = values.size // columns * columns
        check(stored[:n], dtype, values[:n].reshape(-1, columns))


@pytest.mark.parametrize("dtype", native.STORED)
def test_change_and_permutation(dtype: str) -> None:
    rng = np.random.default_rng(2)
    for columns, some in ((256, 31), (83, 31), (64, 16), (64, 8), (5, 4), (48, 3)):
        values = rng.standard_normal((48, columns), np.float32)
        stored = values
        if dtype == "F16":
            stored = values.astype(np.float16)
            values = stored.astype(np.float32)
        if dtype == "BF16":
            stored = safetensors.to_bf16(values)
            values = (stored.astype(np.uint32) << 16).view(np.float32)
        # As a file maps it: at any address.
        shifted = np.frombuffer(b"x" + stored.tobytes(), np.uint8)[1:]
        for delta in (None, rng.standard_normal(values.shape, np.float32)):
            for head in (0, 2, 16):
                check(shifted, dtype, values, delta, head, some)


def test_what_does_not_fit_is_refused() -> None:
    values = np.zeros((4, 8), np.float32)
    with pytest.raises(ValueError, match="128 bytes for 4 rows of 9"):
        native.merge(values, "F32", (4, 9), {})
    with pytest.raises(ValueError, match="heads of 3"):
        native.merge(values, "F32", (4, 8), {}, head=3)
    with pytest.raises(ValueError, match="permuted of"):
        native.merge(values, "F32", (4, 8), {"permuted": values[:2]})
    with pytest.raises(ValueError, match="contiguous float16"):
        native.merge(values, "F32", (4, 8), {"half": values})


PAIRS = {
    "none": None,
    "lora": {},
    "dora": {"magnitude": np.linspace(0.5, 2, 96, dtype=np.float32)},
    "of an embedding": {"transposed": True},
}


@pytest.mark.parametrize("heads", [0, 6])
@pytest.mark.parametrize("kind", PAIRS)
def test_each_kind_of_change(kind: str, heads: int, tmp_path: Path) -> None:
    """The whole of a slab, with and without the library."""
    rng = np.random.default_rng(3)
    base = checkpoint(rng.standard_normal((96, 70), np.float32), tmp_path)
    adapter = Adapter.none()
    if (extra := PAIRS[kind]) is not None:
        rows, columns = (70, 96) if "transposed" in extra else (96, 70)
        a, b = rng.standard_normal((4, columns), np.float32), rng.standard_normal((rows, 4), np.float32)
        adapter.deltas["w"] = LoraDelta(a, b, 0.7, **extra)
    slab = Slab(Planned("w", "w", (96, 70), heads), 32, 80)
    expected = Merge(base, adapter, compiled=False).rows(slab, native.OUTPUTS)
    for part in native.OUTPUTS:
        alone = getattr(Merge(base, adapter, compiled=True).rows(slab, [part]), part)
        assert alone.tobytes() == getattr(expected, part).tobytes(), part
    together = Merge(base, adapter, compiled=True).rows(slab, native.OUTPUTS)
    assert all(getattr(together, part).tobytes() == getattr(expected, part).tobytes() for part in native.OUTPUTS)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 65520.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_bad_weight_is_named(compiled: bool, bad: float, tmp_path: Path) -> None:
    values = np.zeros((96, 70), np.float32)
    values[41, 69] = values[77, 3] = bad
    merge = Merge(checkpoint(values, tmp_path), Adapter.none(), compiled=compiled)
    slab = Slab(Planned("w", "w", (96, 70), 6), 32, 80)
    what = "is not a finite number" if not np.isfinite(bad) else "of 6.55e[+]04 is too large for F16, which .*"
    with pytest.raises(ExportError, match=f"a weight {what}: w, row 41"):
        merge.rows(slab, ["permuted"])
    for parts in (["exact"], ["bf16"], ["exact", "bf16"]):
        if np.isfinite(bad):
            # Only float16 ends there.
            assert all((getattr(merge.rows(slab, parts), part)[41 - 32, 69] != 0) for part in parts)
            continue
        with pytest.raises(ExportError, match="a weight is not a finite number: w, row 41"):
            merge.rows(slab, parts)


def checkpoint(values: np.ndarray, folder: Path) -> Checkpoint:
    head, _ = safetensors.header({"w": ("F32", values.shape)})
    (folder / "model.safetensors").write_bytes(head + values.tobytes())
    return Checkpoint.open(folder / "model.safetensors")


def test_a_merge_that_differs_is_found_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = Checkpoint.open(tiny.ensure(source.sample_texts()))
    planned = [Planned(name, name, tensor.shape) for name, tensor in base.tensors.items()]
    assert agreed(planned, base, Adapter.none(), "auto").compiled
    assert not agreed(planned, base, Adapter.none(), "llama.cpp").compiled
    right = native.merge

    def last_place(*given: Any, **more: Any) -> int:
        bad = right(*given, **more)
        given[3].get("half", np.zeros((1, 1), np.float16)).view(np.uint16)[0, -1] ^= 1
        return bad

    def alone(*given: Any, **more: Any) -> int:
        return last_place(*given, **more) if len(given[3]) == 1 else right(*given, **more)

    def refused(*given: Any, **more: Any) -> int:
        right(*given, **more)
        return 0

    for wrong in (last_place, alone, refused):
        caplog.clear()
        monkeypatch.setattr(native, "merge", wrong)
        assert not agreed(planned, base, Adapter.none(), "auto").compiled
        assert "ggufy's compiled merge differs from numpy's on" in caplog.text
    monkeypatch.setenv(native.PLACE, str(tmp_path))
    assert not agreed(planned, base, Adapter.none(), "auto").compiled


@pytest.mark.parametrize("count", [3, 17])
def test_an_odd_count_from_float16(count: int) -> None:
    """llama.cpp reads the last few from a table, which somebody has to have filled: a fresh process shows it."""
    code = (
        "import numpy as np; from ggufy.llamacpp import library; out = np.zeros(N, np.float32); "
        "library.from_f16(np.ones(N, np.float16), out); assert (out == 1).all()"
    )
    subprocess.run([sys.executable, "-c", f"N = {count}; {code}"], check=True)
