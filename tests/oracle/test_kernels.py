"""ggufy's kernels against llama.cpp's: the same bytes, for every type and every variant this processor can run.

GGUFY_KERNELS_WEIGHTS=50000000 compares that many weights for each type, variant and with and without importance.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufy.export.kernels import build, hard_blocks, native
from ggufy.llamacpp import library
from ggufy.model.safetensors import to_bf16

WEIGHTS = int(os.environ.get("GGUFY_KERNELS_WEIGHTS", "1500000"))
COLUMNS = 768  # three super-blocks: no count of lanes divides it


def numbers() -> dict[str, int]:
    return {name: i for i in range(42) if (name := library.type_name(i)) in native.TYPES}


TYPES = numbers()


pytestmark = pytest.mark.usefixtures("kernels")


def reference(number: int, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    out = np.empty(len(rows) * library.row_size(number, rows.shape[1]), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    library.library().ggml_quantize_chunk(number, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights)
    return out


Rng = np.random.Generator


def per_row(rng: Rng, like: np.ndarray, choices: list[float]) -> np.ndarray:
    return rng.choice(choices, (len(like), 1)).astype(np.float32)


def constant(rng: Rng, normal: np.ndarray) -> np.ndarray:
    rows = np.zeros_like(normal) + per_row(rng, normal, [0.5, -0.5, 1e-3, -7.0, 65504.0])
    groups = rows.reshape(len(rows), -1, 16)
    groups[rng.random(groups.shape[:2]) < 0.2, 3] *= np.float32(1.001)
    return rows


def outlier(rng: Rng, normal: np.ndarray) -> np.ndarray:
    groups = normal.reshape(len(normal), -1, 16)
    size = rng.choice([-0.5, 0.5, 10, -10, 1e4, 60000], groups.shape[:2])[..., None]
    values = np.where(rng.random(size.shape) < 0.1, size, 0.01).astype(np.float32)
    np.put_along_axis(groups, rng.integers(0, 16, size.shape), values, 2)
    return normal


def mixed(rng: Rng, normal: np.ndarray) -> np.ndarray:
    groups = normal.reshape(len(normal), -1, 16)
    groups *= np.exp(rng.uniform(-12, 6, groups.shape[:2])).astype(np.float32)[..., None]
    groups[rng.random(groups.shape[:2]) < 0.1] = 0
    return normal


def beside(rng: Rng, normal: np.ndarray) -> np.ndarray:
    """Middles between two levels, and the floats just below and above them, where a block's scale is a power of two."""
    groups = normal.reshape(len(normal), -1, 32)
    limit = rng.choice(np.array([4, 8, 16, 32, 127], np.float32), groups.shape[:2])[..., None]
    # Small ones more often: what is just below a half is not just below 100 and a half.
    groups[:] = np.trunc(rng.uniform(-1, 1, groups.shape) ** 3 * limit) + np.float32(0.5)
    groups[:] = np.nextafter(groups, rng.choice(np.array([-np.inf, 0, np.inf], np.float32), groups.shape))
    groups[..., 9:10] = limit * rng.choice(np.array([-1, 1], np.float32), limit.shape)
    return normal * per_row(rng, normal, [1, 2.0**-9, -1])


SHAPES: dict[str, Callable[[Rng, np.ndarray], np.ndarray]] = {
    "normal": lambda _, x: x,
    "half": lambda rng, x: (x * per_row(rng, x, [1e-3, 1, 50])).astype(np.float16).astype(np.float32),
    "heavy": lambda rng, x: (rng.standard_t(2, x.shape) * 0.01).astype(np.float32),
    "constant": constant,
    "zero": lambda _, x: np.copysign(np.float32(0), x),
    "mostly zero": lambda rng, x: np.where(rng.random(x.shape) < 0.97, np.float32(0), x),
    "denormal": lambda rng, x: x * per_row(rng, x, [1e-43, 1e-40, 1e-38, 1e-37]),
    # About GROUP_MAX_EPS, and the subnormals of float16.
    "tiny": lambda rng, x: x * per_row(rng, x, [1e-14, 1e-13, 1e-12, 1e-5, 1e-4]),
    "huge": lambda rng, x: x * per_row(rng, x, [1e6, 1e18, 1e25, 1e38]),
    "one sign": lambda rng, x: (np.abs(x) + np.float32(0.1)) * per_row(rng, x, [-1, 1]),
    "outlier": outlier,
    # Few values: magnitudes that tie, and steps exactly between two levels.
    "ties": lambda rng, x: (rng.integers(-8, 9, x.shape) / 8).astype(np.float32),
    # Nearly flat, far from zero: the search's scale is all rounding.
    "close": lambda rng, x: (1 + rng.integers(-3, 4, x.shape) * 2.0**-23).astype(np.float32) * per_row(rng, x, [-1, 1]),
    "beside ties": beside,
    "mixed": mixed,
}


def spread(shape: str, rng: Rng, n: int, columns: int) -> np.ndarray:
    """Rows of one distribution, float32."""
    normal = rng.standard_normal((n, columns), dtype=np.float32) * np.float32(0.02)
    return np.ascontiguousarray(SHAPES[shape](rng, normal))


def importances(rng: Rng, columns: int) -> list[np.ndarray]:
    plain = rng.random(columns, dtype=np.float32) ** 4
    zeros = np.where(rng.random(columns) < 0.7, np.float32(0), plain)
    zeros[:256] = 0
    extreme = np.exp(rng.uniform(-80, 80, columns)).astype(np.float32)
    # No matrix has negative ones; but with them levels leave the range that others never do.
    signed = rng.standard_normal(columns, np.float32)
    return [plain, zeros, extreme, np.zeros(columns, np.float32), np.ones(columns, np.float32), signed, -plain]


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("kind", native.TYPES)
def test_bytes(kind: str, weighted: bool) -> None:
    number = TYPES[kind]
    supported = native.variants()
    assert supported
    assert set(supported) <= set(build.variants())
    rng = np.random.default_rng(len(kind) + weighted)
    done, turn = 0, 0
    while done < WEIGHTS:
        for shape in SHAPES:
            # Up to 67 rows, odd and even, one alone among them; in a long run mostly what really comes.
            rows = spread(shape, rng, 1 if turn % 7 == 3 else int(rng.integers(2, 68)), COLUMNS)
            every = importances(rng, COLUMNS)
            importance = every[turn % len(every)] if weighted else None
            compare(number, rows, importance, supported, shape)
            done, turn = done + rows.size, turn + 1
        if WEIGHTS > 10_000_000:
            rows = spread("half", rng, 501, 2048)
            compare(number, rows, importances(rng, 2048)[0] if weighted else None, supported, "half")
            done += rows.size


@pytest.mark.parametrize("kind", native.TYPES)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
def test_any_float16(kind: str, data: st.DataObject) -> None:
    """Blocks of arbitrary finite float16 values, of few different ones above all, with any importance."""
    pool = data.draw(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
    weights = data.draw(st.lists(st.floats(0, 2.0**20, width=32), min_size=1, max_size=9) | st.none())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = rng.choice(np.array(pool, np.float32), (int(rng.integers(1, 7)), 512))
    importance = None if weights is None else rng.choice(np.array(weights, np.float32), 512)
    compare(TYPES[kind], rows, importance, native.variants(), f"{pool}")


def compare(
    number: int, rows: np.ndarray, importance: np.ndarray | None, supported: tuple[str, ...], shape: str
) -> None:
    expected = reference(number, rows, importance)
    for variant in supported:
        out = np.full(len(expected) + 64, 171, np.uint8)
        assert native.quantize(number, rows, out[: len(expected)], importance, variant)
        different = np.flatnonzero(out[: len(expected)] != expected)
        assert not len(different), f"{variant}, {shape}: {len(different)} of {len(expected)}, first {different[:5]}"
        assert (out[len(expected) :] == 171).all(), f"{variant} writes beyond its output"


@pytest.mark.parametrize("kind", native.TYPES)
def test_values_that_are_no_numbers_do_not_crash(kind: str) -> None:
    """Infinities come from float16; their bytes mean nothing, but are the same."""
    rows = np.random.default_rng(0).standard_normal((9, COLUMNS), dtype=np.float32)
    rows[2, 5], rows[3, 300:340], rows[5, 700] = np.inf, -np.inf, -np.inf
    for importance in (None, *importances(np.random.default_rng(1), COLUMNS)):
        compare(TYPES[kind], rows, importance, native.variants(), "infinite")


@pytest.mark.parametrize("kind", native.TYPES)
def test_the_blocks_of_the_trial_before_an_export(kind: str) -> None:
    assert np.isfinite(hard_blocks.rows()).all()
    for importance in (None, hard_blocks.importance()):
        compare(TYPES[kind], hard_blocks.rows(), importance, native.variants(), "hard")


def test_a_type_without_a_kernel_is_left_to_llama_cpp() -> None:
    rows, out = np.zeros((1, 256), np.float32), np.full(512, 7, np.uint8)
    assert not native.quantize(library.F16, rows, out)
    assert (out == 7).all()


def test_without_a_library_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(native.PLACE, str(tmp_path))
    assert native.variants() == ()
    assert not native.quantize(TYPES["q4_k"], np.zeros((1, 256), np.float32), np.zeros(144, np.uint8))


def test_what_does_not_fit_is_refused() -> None:
    rows, out = np.zeros((2, 512), np.float32), np.zeros(2 * 288, np.uint8)
    with pytest.raises(ValueError, match="bytes for 2 rows"):
        native.quantize(TYPES["q4_k"], rows, out[1:])
    with pytest.raises(ValueError, match="rows of 384"):
        native.quantize(TYPES["q4_k"], rows[:, :384].copy(), out[: 2 * 216])
    with pytest.raises(ValueError, match="contiguous"):
        native.quantize(TYPES["q4_k"], rows[:, ::2], out[:288])
    with pytest.raises(ValueError, match="importance"):
        native.quantize(TYPES["q4_k"], rows, out, np.ones(256, np.float32))


SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.parametrize("tool", ["sanitizers", "valgrind"])
def test_memory(tool: str, tmp_path: Path) -> None:
    """No byte beyond what is given is read or written, in a program of its own, with buffers of the exact size."""
    if tool == "valgrind" and not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    if tool == "sanitizers" and not have_sanitizers(tmp_path):
        pytest.skip("the compiler has no sanitizers")
    rng = np.random.default_rng(5)
    rows = np.concatenate([spread(shape, rng, 1, COLUMNS) for shape in ("half", "outlier", "mostly zero")])
    rows = rows.clip(-4e4, 4e4)  # what is merged has to fit float16
    # valgrind 3.19 does not know AVX-512.
    for variant in [name for name in native.variants() if tool == "sanitizers" or name != "avx512"]:
        program = tmp_path / variant
        build.driver(DRIVER, program, variant, SANITIZERS if tool == "sanitizers" else ["-g"])
        for importance in (None, importances(rng, COLUMNS)[1]):
            run(program, rows, importance, ["valgrind", "-q", "--error-exitcode=9"] if tool == "valgrind" else [])
            expected = [reference(TYPES[kind], rows, importance).tobytes() for kind in native.TYPES]
            assert (tmp_path / "out").read_bytes() == b"".join([*expected, *merged(rows)])


def have_sanitizers(folder: Path) -> bool:
    """Whether an empty program can be made with them: that the kernels cannot be is no reason to skip."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    command = [str(build.compiler()), *SANITIZERS, str(folder / "empty.c"), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def merged(rows: np.ndarray) -> Iterator[bytes]:
    """What the driver's merges write."""
    values = rows.reshape(-1)[:-2]
    exact = values + values * np.float32(0.3)
    half, bf16 = exact.astype(np.float16), to_bf16(exact)
    yield from (array.tobytes() for array in (exact, bf16, half, half, half.astype(np.float32)))
    again = (bf16.astype(np.uint32) << 16).view(np.float32).astype(np.float16)
    yield from (array.astype(np.float32).tobytes() for array in (again, half))


DRIVER = Path(__file__).with_name("kernels_driver.c")
"""Its types are in the order of native.TYPES."""


def run(program: Path, rows: np.ndarray, importance: np.ndarray | None, before: list[str]) -> None:
    folder = program.parent
    rows.tofile(folder / "rows")
    if importance is not None:
        importance.tofile(folder / "importance")
    weights = "-" if importance is None else str(folder / "importance")
    words = [*before, str(program), str(folder / "rows"), str(rows.shape[1]), weights, str(folder / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
