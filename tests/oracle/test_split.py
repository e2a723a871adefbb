"""A GGUF in several files: none larger than was said, and together the single file, for llama.cpp and for ggufy."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess

import gguf
import numpy as np
import pytest

from ggufy.errors import ExportError, Unverified
from ggufy.verify.checks import verify
from tests.oracle.converter import Contents, contents, export
from tests.oracle.test_export_bytes import logits

LIMIT = 900_000
TOKENS = list(range(20, 60))


@pytest.fixture(scope="module")
def single(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model-q8_0.gguf"
    export(base, None, {"q8_0": path, "f32": path.with_name("f32.gguf")})
    return path


@pytest.fixture(scope="module")
def split(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("split") / "model-q8_0"
    export(base, None, {"q8_0": folder}, split=LIMIT)
    return sorted(folder.iterdir())


def test_the_files_are_together_the_single_one(single: Path, split: list[Path]) -> None:
    count = len(split)
    assert count > 3
    assert [path.name for path in split] == [f"model-q8_0-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    assert max(path.stat().st_size for path in split) <= LIMIT
    # As full as they may be: no two neighbours would go into one, with some room for what a header takes.
    sizes = [path.stat().st_size for path in split]
    assert all(first + second > LIMIT - 20_000 for first, second in pairwise(sizes))
    whole, parts = contents(single), [contents(path) for path in split]
    found = [item for part in parts for item in part.tensors.items()]
    assert found == list(whole.tensors.items())
    own = {"split.no", "split.tensors.count", "split.count"}
    for number, (path, part) in enumerate(zip(split, parts, strict=True)):
        fields = gguf.GGUFReader(path).fields
        assert [fields[name].contents() for name in ("split.no", "split.tensors.count", "split.count")] == [
            number,
            len(whole.tensors),
            count,
        ]
        assert [fields[name].types for name in ("split.no", "split.tensors.count", "split.count")] == [
            [gguf.GGUFValueType.UINT16],
            [gguf.GGUFValueType.INT32],
            [gguf.GGUFValueType.UINT16],
        ]
        # As llama.cpp's gguf-split: every key in the first file, its own in each.
        rest = {name: value for name, value in part.keys.items() if name not in own}
        assert rest == (whole.keys if number == 0 else {})
    assert keys(split[0])[: len(keys(single))] == keys(single)


def keys(path: Path) -> list[str]:
    return [name for name in gguf.GGUFReader(path).fields if not name.startswith("GGUF.")]


def test_llama_cpp_loads_the_first_and_finds_the_others(single: Path, split: list[Path], base: Path) -> None:
    np.testing.assert_array_equal(logits(split[0], TOKENS), logits(single, TOKENS))
    found = verify(split[0].parent, base, 2)
    assert found.tensors == len(contents(single).tensors)
    assert found.probes >= 15


def test_a_missing_or_damaged_part(split: list[Path], base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model-q8_0"
    folder.mkdir()
    for path in split:
        (folder / path.name).symlink_to(path)
    (folder / split[2].name).unlink()
    with pytest.raises(Unverified, match="model-q8_0"):
        verify(folder, base, 2)
    (folder / split[2].name).write_bytes(split[2].read_bytes()[:-100])
    with pytest.raises(Unverified, match=re.escape(split[2].name)):
        verify(folder, base, 2)


@pytest.mark.parametrize("limit", [1_000, 30_000, 100_000])
def test_too_small_a_size_names_the_tensor(limit: int, base: Path, tmp_path: Path) -> None:
    naming = rf"{limit:,} bytes is too small: a file with \S+\.weight has [\d,]+"
    with pytest.raises(ExportError, match=naming) as caught:
        export(base, None, {"q8_0": tmp_path / "x"}, split=limit)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_every_size_holds(base: Path, single: Path, tmp_path: Path) -> None:
    """From one file for each large tensor to one for all."""
    expected = contents(single.with_name("f32.gguf"))
    for limit in (870_000, 1_000_000, 1_234_567, 5_000_000, 100_000_000):
        folder = tmp_path / f"{limit}"
        export(base, None, {"f32": folder}, split=limit)
        files = sorted(folder.iterdir())
        assert max(path.stat().st_size for path in files) <= limit
        parts: list[Contents] = [contents(path) for path in files]
        assert [item for part in parts for item in part.tensors.items()] == list(expected.tensors.items())
    assert [path.name for path in files] == ["100000000-00001-of-00001.gguf"]


def test_the_commands_find_it(quick: Path, run: Callable[..., CompletedProcess[str]]) -> None:
    command = ("export", "quick", "--quant", "f16", "--split-max-size", "2M")
    done = run(*command, cwd=quick)
    assert done.returncode == 0, done.stderr
    folder = quick / "runs/quick/export/quick-f16"
    files = sorted(folder.iterdir())
    assert len(files) > 2
    assert files[0].name == f"quick-f16-00001-of-{len(files):05}.gguf"
    assert max(path.stat().st_size for path in files) <= 2_000_000
    assert "logits off by" in done.stderr
    assert not list(quick.rglob("partial"))
    assert "(up to date)" in run(*command, "--no-verify", cwd=quick).stdout
    # The newest, so it is the one to talk to; and each part is looked at.
    spoken = run("chat", "quick", "--prompt", "Hi", "--max-tokens", "4", "--temperature", "0", cwd=quick)
    assert spoken.returncode == 0, spoken.stderr
    done = run("verify", "quick", cwd=quick)
    assert done.returncode == 0, done.stderr
    assert "quick-f16: 39 tensors valid" in done.stdout
    data = bytearray(files[1].read_bytes())
    data[-1000] ^= 1
    files[1].write_bytes(data)
    done = run("verify", "quick", cwd=quick)
    assert done.returncode == 1
    assert f"{files[1].name} has been changed" in done.stderr
    # Another size, other files, and none of the old ones beside them.
    assert run("export", "quick", "--quant", "f16", "--split-max-size", "3M", "--no-verify", cwd=quick).returncode == 0
    assert len({path.name.rpartition("-of-")[2] for path in folder.iterdir()}) == 1


@pytest.mark.parametrize("size", ["0M", "2", "1.5G", "-1M", "2T", "M"])
def test_what_is_no_size(size: str, run: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    done = run("export", "x", f"--split-max-size={size}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{size!r} is not a size" in done.stderr
