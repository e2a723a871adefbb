"""What is remembered of a tokenizer: that llama.cpp reads it alike, and nothing of one that is another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ggufy.errors import ExportError
from ggufy.export import vocab
from ggufy.export.vocabulary import pre_tokenizers, probes, proof
from ggufy.model.tokenizer import folder as folders
from tests.oracle import vocabularies

SPLITS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+"
"""Other words than those of any llama.cpp tokenizer: "\\s+" takes the last space before a word."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGUFY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenizers"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("gpt-2")
    rows = vocabularies.write_byte_level("gpt-2", folder)
    (folder / "config.json").write_text("{}", "utf-8")
    return folder, rows


@pytest.fixture
def base(written: tuple[Path, int], tmp_path: Path) -> tuple[Path, int]:
    return shutil.copytree(written[0], tmp_path / "base"), written[1]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that llama.cpp loads a vocabulary."""
    seen, real = [], proof.loaded

    def loaded(*args: object, **options: object) -> object:
        seen.append("loaded")
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(proof, "loaded", loaded)
    return seen


def check(base: tuple[Path, int], texts: vocab.Texts = vocab.OWN) -> None:
    """As in a new process."""
    vocab.forget()
    vocab.check(*base, texts)


def test_what_was_read_alike_is_not_compared_again(base: tuple[Path, int], cache: Path, loads: list[str]) -> None:
    check(base)
    first = len(loads)
    assert first
    check(base)
    assert len(loads) == first
    assert len(list(cache.iterdir())) == 1


def test_other_texts_are_compared(base: tuple[Path, int], cache: Path, loads: list[str]) -> None:
    del cache
    check(base)
    first = len(loads)
    check(base, vocab.Texts.of(["A text of the run."]))
    assert len(loads) == first + 1
    check(base, vocab.Texts.of(["A text of the run."]))
    assert len(loads) == first + 1
    check(base, vocab.Texts.of(["Another."]))
    assert len(loads) == first + 2


def test_a_changed_file_is_another_tokenizer_whatever_its_time_says(base: tuple[Path, int], cache: Path) -> None:
    check(base)
    path = base[0] / "tokenizer.json"
    times = path.stat()
    spec = json.loads(path.read_text("utf-8"))
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLITS}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    path.write_text(json.dumps(spec), "utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        # A refusal is not remembered.
        with pytest.raises(ExportError, match="text"):
            check(base)
    remembered = [file.read_text("utf-8") for file in cache.iterdir()]
    assert sorted("read alike" in text for text in remembered) == [False, True]


def splitting_off(letter: str) -> dict[str, Any]:
    """GPT-2's rules, but that one letter stands by itself."""
    words = SPLITS.replace("\\p{L}+|", f"(?:(?!{letter})\\p{{L}})+|").replace("\\s+", "\\s+(?!\\S)|\\s+")
    pattern = f"{letter}|{words}"
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


def test_a_tokenizer_of_the_converters_table_may_differ_in_a_script_but_not_in_the_runs_data(
    base: tuple[Path, int], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del cache
    known = pre_tokenizers._table()["text"]
    path = base[0] / "tokenizer.json"
    spec = json.loads(path.read_text("utf-8"))
    before = folders.open_backend(base[0])
    for letter in sorted(
        {sign for text in probes.TEXTS for sign in text if sign.isalpha() and not sign.isascii()} - set(known)
    ):
        path.write_text(json.dumps({**spec, "pre_tokenizer": splitting_off(letter)}), "utf-8")
        now = folders.open_backend(base[0])
        changed = [text for text in probes.TEXTS if now.encode(text).ids != before.encode(text).ids]
        if changed:
            break
    assert pre_tokenizers.by_hash(folders.of(base[0])) == "gpt-2"
    for _ in range(2):
        caplog.clear()
        vocab._said.clear()
        check(base, vocab.Texts.of(["Plain English."]))
        [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "llama.cpp knows this tokenizer, as 'gpt-2'" in said
        assert changed[0][:20] in said
    with pytest.raises(ExportError, match="would read text differently from training"):
        check(base, vocab.Texts.of([changed[0]]))


@pytest.mark.parametrize("harm", ["cut", "no JSON object", "a folder", "no room"])
def test_what_cannot_be_read_or_kept_is_found_out_again(
    harm: str, base: tuple[Path, int], cache: Path, loads: list[str]
) -> None:
    check(base)
    [kept] = cache.iterdir()
    if harm == "cut":
        kept.write_bytes(kept.read_bytes()[:100])
    elif harm == "no JSON object":
        kept.write_text("[1]", "utf-8")
    else:
        kept.unlink()
        if harm == "a folder":
            kept.mkdir()
        else:
            cache.rmdir()
            cache.write_text("", "utf-8")
    first = len(loads)
    check(base)
    assert len(loads) > first
