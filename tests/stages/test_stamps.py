"""An export is made again when, and only when, something that it is made from is another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

import ggufy
from ggufy.data import source
from ggufy.model import tiny
from ggufy.stages import model_source
from tests.oracle.test_tensor_types import types_of
from tests.stages.test_adapter_tokenizer import tokenizer, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with base/ and adapter/, which has the base's tokenizer beside it, as trainers save it."""
    base = Path(shutil.copytree(tiny.ensure(source.sample_texts()), tmp_path / "base"))
    train(base, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, tmp_path / "adapter" / name)
    return tmp_path


def made(place: Path, *quants: str, **options: Any) -> dict[str, bool]:
    """Which of the files an export makes, by their quant; the others it finds made."""
    how = {"base": str(place / "base"), "out": place / "out", "check_files": False, **options}
    found = ggufy.export(place / "adapter", quants=quants or ("q4_0",), **how)
    return {name: not artifact.reused for name, artifact in found.items() if not name.endswith("Modelfile")}


def inputs(place: Path, quant: str = "q4_0") -> dict[str, Any]:
    stamp = json.loads((place / f"out/stamps/adapter-{quant}.gguf.json").read_text("utf-8"))
    return dict(stamp["inputs"])


def other_tokenizer(place: Path) -> None:
    tokenizer(place / "base", place / "adapter")


def other_template(place: Path) -> None:
    (place / "adapter/chat_template.jinja").write_text("{{ messages[0]['content'] }}", "utf-8")


def a_map_beside_the_base(place: Path) -> None:
    (place / "base/special_tokens_map.json").write_text("{}", "utf-8")


def other_scaling(place: Path) -> None:
    path = place / "adapter/adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}), "utf-8")


def other_base(place: Path) -> None:
    path = place / "base/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "rms_norm_eps": 2e-5}), "utf-8")


OTHERS: dict[str, Callable[[Path], None]] = {
    "tokenizer": other_tokenizer,
    "template": other_template,
    "a file beside the base": a_map_beside_the_base,
    "adapter": other_scaling,
    "base": other_base,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_file_that_is_read(kind: str, place: Path) -> None:
    assert made(place) == {"q4_0": True}
    assert made(place) == {"q4_0": False}
    OTHERS[kind](place)
    assert made(place) == {"q4_0": True}
    assert made(place) == {"q4_0": False}


def touched(place: Path) -> None:
    for path in (*place.glob("base/*"), *place.glob("adapter/*")):
        path.write_bytes(path.read_bytes())


def readme(place: Path) -> None:
    for folder in ("base", "adapter"):
        (place / folder / "README.md").write_text("Read me.", "utf-8")
    (place / "adapter/trainer_state.json").write_text("{}", "utf-8")


def without_tokenizer(place: Path) -> None:
    """Then the base's is taken, which is the same."""
    for path in place.glob("adapter/tokenizer*"):
        path.unlink()


@pytest.mark.parametrize("change", [touched, readme, without_tokenizer])
def test_what_makes_no_difference(change: Callable[[Path], None], place: Path) -> None:
    made(place)
    before = inputs(place)
    change(place)
    assert made(place, threads=1, kernels="llama.cpp") == {"q4_0": False}
    assert inputs(place) == before


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_types": ["attn_v=q8_0"]},
        {"tensor_types": ["attn_v=q8_0", "ffn_down=q5_0"]},
        {"output_tensor_type": "q8_0"},
        {"token_embedding_type": "q8_0"},
        {"leave_output_tensor": True},
        {"pure": True},
    ],
    ids=str,
)
def test_options_on_types(options: dict[str, Any], place: Path) -> None:
    """Of the quants alone: an f16 file beside them is as it is without."""
    assert made(place, "f16", "q4_0") == {"f16": True, "q4_0": True}
    assert made(place, "f16", "q4_0", **options) == {"f16": False, "q4_0": True}
    assert made(place, "f16", "q4_0", **options) == {"f16": False, "q4_0": False}
    assert made(place, "f16", "q4_0") == {"f16": False, "q4_0": True}
    assert "types" not in inputs(place)


def test_the_same_types_asked_in_other_words(place: Path) -> None:
    (place / "types.txt").write_text("attn_v=q8_0\nffn_down=q5_0\n", "utf-8")
    made(place, tensor_types=["attn_v=q8_0", "ffn_down=q5_0"])
    assert made(place, tensor_type_file=place / "types.txt") == {"q4_0": False}
    # The first that matches counts, so another order may be other types.
    assert made(place, tensor_types=["ffn_down=q5_0", "attn_v=q8_0"]) == {"q4_0": True}


def test_the_types_of_another_file(place: Path) -> None:
    published = place / "published.gguf"
    made(place, tensor_types=["attn_v=q8_0"])
    shutil.copyfile(place / "out/adapter-q4_0.gguf", published)
    assert made(place, types_from=published) == {"q4_0": True}
    assert types_of(place / "out/adapter-q4_0.gguf") == types_of(published)
    assert made(place, types_from=published) == {"q4_0": False}
    made(place, tensor_types=["attn_v=q5_0"])
    shutil.copyfile(place / "out/adapter-q4_0.gguf", published)
    made(place, types_from=published)
    assert types_of(place / "out/adapter-q4_0.gguf") == types_of(published)


def test_the_tokenizer_is_noted_only_where_it_is_the_adapters_own(place: Path) -> None:
    made(place)
    assert "tokenizer" not in inputs(place)
    other_tokenizer(place)
    this = model_source.of_folder(place / "adapter", str(place / "base"), place / "out")
    made(place)
    assert inputs(place)["tokenizer"] == this.content["tokenizer"]
    assert len(this.content["tokenizer"]) == 64


def test_the_size_label_follows_from_the_weights(place: Path) -> None:
    """It is no input of its own: an export that an earlier ggufy made without it stays as it is."""
    made(place, "f16")
    label = gguf.GGUFReader(place / "out/adapter-f16.gguf").fields["general.size_label"].contents()
    assert label
    assert "size_label" not in json.dumps(inputs(place, "f16"))
    before = (place / "out/adapter-f16.gguf").read_bytes()
    assert made(place, "f16", force=True) == {"f16": False}
    assert (place / "out/adapter-f16.gguf").read_bytes() == before
