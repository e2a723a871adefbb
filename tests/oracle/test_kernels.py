"""ggufy's kernels against llama.cpp's: the same bytes, for every type and every variant this processor can run.

GGUFY_KERNELS_WEIGHTS=50000000 compares that many weights for each type, variant and with and without importance.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggufy import ggml
from ggufy.export import native
from ggufy.export.kernels import build

WEIGHTS = int(os.environ.get("GGUFY_KERNELS_WEIGHTS", "1500000"))
COLUMNS = 768  # three super-blocks: no count of lanes divides it


def numbers() -> dict[str, int]:
    return {name: i for i in range(42) if (name := ggml.type_name(i)) in native.TYPES}


TYPES = numbers()


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh build of this source, whatever is installed."""
    folder = tmp_path_factory.mktemp("kernels")
    try:
        build.build(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no compiler: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.PLACE, str(folder))
        yield folder


def reference(number: int, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    out = np.empty(len(rows) * ggml.row_size(number, rows.shape[1]), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    ggml.library().ggml_quantize_chunk(number, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights)
    return out


def spread(kind: str, rng: np.random.Generator, n: int, columns: int) -> np.ndarray:
    """Rows of one distribution, float32."""
    shape = (n, columns)
    normal = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    groups = normal.reshape(n, -1, 16)
    if kind == "heavy":
        normal = (rng.standard_t(2, shape) * 0.01).astype(np.float32)
    elif kind == "constant":
        normal[:] = rng.choice([0.5, -0.5, 1e-3, -7.0, 65504.0], (n, 1)).astype(np.float32)
        groups[rng.random(groups.shape[:2]) < 0.2, 3] *= np.float32(1.001)
    elif kind == "zero":
        normal[:] = np.where(rng.random(shape) < 0.5, np.float32(0.0), np.float32(-0.0))
    elif kind == "mostly zero":
        normal[rng.random(shape) < 0.97] = 0
    elif kind == "denormal":
        normal *= np.float32(1e-38) * rng.choice([1e-5, 1e-2, 1, 10], (n, 1)).astype(np.float32)
    elif kind == "tiny":  # about GROUP_MAX_EPS, and float16's subnormals
        normal *= rng.choice([1e-14, 1e-13, 1e-12, 1e-5, 1e-4], (n, 1)).astype(np.float32)
    elif kind == "huge":
        normal *= rng.choice([1e6, 1e18, 1e25, 1e38], (n, 1)).astype(np.float32)
    elif kind == "one sign":
        normal = np.abs(normal) * rng.choice([-1, 1], (n, 1)).astype(np.float32) + np.float32(0.1)
    elif kind == "outlier":
        where = rng.integers(0, 16, groups.shape[:2])[..., None]
        size = rng.choice([0.5, 10, 1e4, 60000], groups.shape[:2]).astype(np.float32)[..., None]
        sign = rng.choice([-1, 1], size.shape).astype(np.float32)
        np.put_along_axis(groups, where, np.where(rng.random(size.shape) < 0.1, size * sign, 0.01), 2)
    elif kind == "ties":  # few values: magnitudes that tie, steps exactly between levels
        normal = (rng.integers(-8, 9, shape) / 8).astype(np.float32)
    elif kind == "close":  # nearly flat, far from zero: the search's scale is all rounding
        normal = (1 + rng.integers(-3, 4, shape) * 2.0**-23).astype(np.float32) * np.sign(normal[:, :1])
    elif kind == "mixed":
        groups *= np.exp(rng.uniform(-12, 6, groups.shape[:2])).astype(np.float32)[..., None]
        groups[rng.random(groups.shape[:2]) < 0.1] = 0
    elif kind == "half":
        normal *= rng.choice([1e-3, 1, 50], (n, 1)).astype(np.float32)
        return normal.astype(np.float16).astype(np.float32)
    return np.ascontiguousarray(normal)


KINDS = (
    "normal half heavy constant zero denormal tiny huge outlier ties close mixed".split()
    + ["mostly zero", "one sign"]
)


def importances(rng: np.random.Generator, columns: int) -> list[np.ndarray]:
    plain = rng.random(columns, dtype=np.float32) ** 4
    zeros = np.where(rng.random(columns) < 0.7, np.float32(0), plain)
    zeros[:256] = 0
    extreme = np.exp(rng.uniform(-80, 80, columns)).astype(np.float32)
    return [plain, zeros, extreme, np.zeros(columns, np.float32), np.ones(columns, np.float32)]


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
        for shape in KINDS:
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
    compare(TYPES[kind], rows, None, native.variants(), "infinite")


def test_a_type_without_a_kernel_is_left_to_llama_cpp() -> None:
    rows, out = np.zeros((1, 256), np.float32), np.full(512, 7, np.uint8)
    assert not native.quantize(ggml.F16, rows, out)
    assert (out == 7).all()


def test_without_a_library_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(native.PLACE, str(tmp_path))
    assert native.variants() == ()
    assert not native.quantize(TYPES["q4_k"], np.zeros((1, 256), np.float32), np.zeros(144, np.uint8))


def test_what_does_not_fit_is_refused() -> None:
    rows, out = np.zeros((2, 512), np.float32), np.zeros(2 * 288, np.uint8)
    with pytest.raises(ValueError, match="bytes for 2 rows"):
        native.quantize(TYPES["q4_k"], rows, out[1:])
    with pytest.raises(ValueError, match="contiguous"):
        native.quantize(TYPES["q4_k"], rows[:, ::2], out[:288])
    with pytest.raises(ValueError, match="importance"):
        native.quantize(TYPES["q4_k"], rows, out, np.ones(256, np.float32))


SANITIZERS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all".split()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("tool", ["sanitizers", "valgrind"])
def test_memory(tool: str, weighted: bool, tmp_path: Path) -> None:
    """No byte beyond what is given is read or written, in a program of its own, with buffers of the exact size."""
    if tool == "valgrind" and not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    rng = np.random.default_rng(5)
    rows = np.concatenate([spread(kind, rng, 1, COLUMNS) for kind in ("half", "outlier", "mostly zero")])
    importance = importances(rng, COLUMNS)[1] if weighted else None
    expected = b"".join(reference(TYPES[kind], rows, importance).tobytes() for kind in native.TYPES)
    # valgrind 3.19 does not know AVX-512.
    for variant in [name for name in native.variants() if tool == "sanitizers" or name != "avx512"]:
        program = tmp_path / variant
        try:
            build.driver(DRIVER, program, variant, SANITIZERS if tool == "sanitizers" else ["-g"])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no sanitizers: {error}")
        assert run(program, rows, importance, ["valgrind", "-q", "--error-exitcode=9"] if tool == "valgrind" else [])
        assert (tmp_path / "out").read_bytes() == expected


DRIVER = Path(__file__).with_name("kernels_driver.c")


def run(program: Path, rows: np.ndarray, importance: np.ndarray | None, before: list[str]) -> bool:
    folder = program.parent
    rows.tofile(folder / "rows")
    if importance is not None:
        importance.tofile(folder / "importance")
    weights = "-" if importance is None else str(folder / "importance")
    words = [*before, str(program), str(folder / "rows"), str(rows.shape[1]), weights, str(folder / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return True
