"""What a trainer leaves in a tokenizer's files: no reason to call a right file wrong, or a reason before the pass."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import ggufy
from ggufy.data import source
from ggufy.errors import ExportError, GgufyError, ModelError
from ggufy.model import tiny
from ggufy.model.tokenizer import folder as folders
from ggufy.stages import training_tokenizer
from ggufy.verify import tokenizer as verifier
from ggufy.verify.tokenizer import BaseTokenizer

Run = Callable[..., CompletedProcess[str]]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tiny.ensure(source.sample_texts())
    return Path(shutil.copytree(folder, tmp_path / "base", ignore=shutil.ignore_patterns("stamp.json")))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def export(base: Path, **options: Any) -> Path:
    return ggufy.export(base, out=base.parent / "out", quants=["f16"], **options)["f16"].path


SHORT = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDED = {"strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 740, "pad_type_id": 0}
BOS = {"content": "<|begin_of_text|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
LEFT: dict[str, Callable[[Path], None]] = {
    "a length and padding": lambda base: edit(
        base / "tokenizer.json", truncation=SHORT, padding={**PADDED, "pad_token": "<|finetune_right_pad_id|>"}
    ),
    "special tokens as text": lambda base: edit(base / "tokenizer_config.json", split_special_tokens=True),
    "bytes that would fall back": lambda base: edit(
        base / "tokenizer.json",
        model=json.loads((base / "tokenizer.json").read_text("utf-8"))["model"] | {"byte_fallback": True},
    ),
    "a token without its text": lambda base: edit(base / "tokenizer_config.json", cls_token={"special": True}),
    "an end that is true": lambda base: edit(base / "generation_config.json", eos_token_id=[True, 745]),
    "a token that transformers cannot read": lambda base: edit(base / "tokenizer_config.json", bos_token=BOS),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_set_for_batches(kind: str, base: Path) -> None:
    before = export(base).read_bytes()
    LEFT[kind](base)
    assert export(base, force=True).read_bytes() == before
    assert len(BaseTokenizer(base).encode("one two three four five six seven " * 9)) > 50


def test_an_end_that_llama_cpp_goes_on_after(base: Path) -> None:
    edit(base / "generation_config.json", eos_token_id=750)
    with pytest.raises(ExportError, match=r"token 750 \('<\|reserved_special_token_\d\|>'\) ends an answer") as caught:
        export(base)
    assert "--no-verify" in str(caught.value.hint)
    assert not list((base.parent / "out").glob("**/*.gguf"))
    assert export(base, check_files=False).is_file()


def test_one_of_several_ends_that_no_answer_is_written_with(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Phi-3 lists the mark of its own turns."""
    edit(base / "generation_config.json", eos_token_id=[745, 750])
    assert export(base).is_file()
    assert "(750) ends an answer, too; llama.cpp would go on after it" in caplog.text


def test_a_token_for_padding_that_has_no_row(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is in no text, so the file is the same without it, but for the tokens that it would be."""
    caplog.set_level("INFO", "ggufy")
    before = export(base).read_bytes()
    rows = json.loads((base / "config.json").read_text("utf-8"))["vocab_size"]
    token = {"content": "[PAD]", "special": True, "normalized": False}
    listed = {
        str(number): {"content": one.content, "special": one.special, "normalized": one.normalized}
        for number, one in folders.open_backend(base).get_added_tokens_decoder().items()
    }
    edit(base / "tokenizer_config.json", added_tokens_decoder={**listed, str(rows): token}, pad_token="[PAD]")
    assert export(base, force=True).read_bytes() == before
    assert f"token {rows} ('[PAD]') has no row in the embedding and is for padding" in caplog.text
    (base / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}[PAD]{{ eos_token }}")
    with pytest.raises(ExportError, match="has no row in the embedding"):
        export(base, force=True)


@pytest.mark.parametrize("ids", [-1, [745, 99999], [737, 744, 745]], ids=str)
def test_ends_that_are_no_reason(ids: Any, base: Path) -> None:
    edit(base / "generation_config.json", eos_token_id=ids)
    assert export(base).is_file()


@pytest.mark.parametrize("transformers", [True, False])
def test_tokens_that_tokenizer_json_has_not(
    transformers: bool, base: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But tokenizer_config.json has them; a right file is called so, with transformers and without."""
    before = export(base).read_bytes()
    tokens = json.loads((base / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    edit(base / "tokenizer.json", added_tokens=[])
    listed = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in tokens}
    edit(base / "tokenizer_config.json", added_tokens_decoder=listed)
    if transformers:
        done = run("export", str(base), "--quant", "f16", "--out", "new", "--no-logits", cwd=base.parent)
        assert done.returncode == 0, done.stderr
        assert (base.parent / "new/base-f16.gguf").read_bytes() == before
        return
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(verifier, "find_spec", {}.get)
    assert export(base, force=True, check_logits=False).read_bytes() == before


@pytest.mark.parametrize("template", [[{"template": "x"}], ["x"], [{"name": "default"}]], ids=str)
def test_templates_that_cannot_be_read(template: Any, base: Path) -> None:
    edit(base / "tokenizer_config.json", chat_template=template)
    with pytest.raises(ModelError, match=r"tokenizer_config.json: its chat_template cannot be read"):
        export(base)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff"], ids=str)
def test_a_generation_config_that_cannot_be_read(content: bytes, base: Path) -> None:
    (base / "generation_config.json").write_bytes(content)
    with pytest.raises(GgufyError, match=r"generation_config.json (cannot be read|is not a JSON object)"):
        export(base)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff"], ids=str)
def test_a_special_tokens_map_that_cannot_be_read(content: bytes, base: Path) -> None:
    (base / "special_tokens_map.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"special_tokens_map.json cannot be read"):
        export(base)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"])
def test_a_template_that_is_not_utf8(name: str, base: Path) -> None:
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_bytes("{{ bos_token }}é".encode("latin-1"))
    with pytest.raises(ModelError, match=r"jinja is not UTF-8"):
        export(base)


def test_a_template_for_tools_is_the_adapters(base: Path, tmp_path: Path) -> None:
    """Where all else is the base's."""
    adapter = tmp_path / "adapter"
    (adapter / "additional_chat_templates").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, adapter / name)
    assert training_tokenizer.of(base, adapter).path == base
    (adapter / "additional_chat_templates/tool_use.jinja").write_text("TOOLS", "utf-8")
    found = training_tokenizer.of(base, adapter)
    assert (found.path / "additional_chat_templates/tool_use.jinja").read_text("utf-8") == "TOOLS"
    (adapter / "additional_chat_templates/tool_use.jinja").write_text("OTHER TOOLS", "utf-8")
    assert training_tokenizer.of(base, adapter).sha256 not in (None, found.sha256)
