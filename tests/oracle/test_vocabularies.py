"""Vocabularies of every kind, against llama.cpp's converter, transformers, and llama.cpp's own tokenizer.

The tokenizers are llama.cpp's vocabulary files, built again as Hugging Face folders; the weights are random.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from ggufy.errors import ExportError
from ggufy.export import vocab
from ggufy.export.vocabulary import special
from ggufy.model import random_llama, tiny
from ggufy.model.llama3 import Shape
from ggufy.model.tokenizer import folder as folders
from ggufy.model.tokenizer import sentencepiece
from tests.oracle import vocabularies
from tests.oracle.converter import VENDOR, contents, convert, export
from tests.oracle.vocabularies import TEMPLATE

ROOT = VENDOR.parents[1]
BYTE_LEVEL = ("gpt-2", "qwen2", "deepseek-llm", "deepseek-coder", "starcoder")


def keys(base: Path, rows: int) -> dict[str, Any]:
    """What ggufy writes for a folder, as gguf-py reads it."""
    out = base / "ours.gguf"
    writer = gguf.GGUFWriter(out, "llama")
    vocab.add_vocab(writer, base, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {key: value for key, value in contents(out).keys.items() if key.startswith("tokenizer.")}


def model(base: Path, rows: int) -> None:
    """The smallest weights that the converter takes, of this many tokens."""
    random_llama.write_model(base, Shape(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=32, vocab=rows))
    config = json.loads((base / "config.json").read_text("utf-8"))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config.pop(key, None)
    (base / "config.json").write_text(json.dumps(config), "utf-8")


def theirs(base: Path) -> dict[str, Any]:
    out = base / "theirs.gguf"
    convert(base, out, tiny=False)
    return {key: value for key, value in contents(out).keys.items() if key.startswith("tokenizer.")}


def test_the_table_is_the_converters() -> None:
    place = importlib.util.spec_from_file_location("pre_tokenizers_script", ROOT / "vendor" / "pre_tokenizers.py")
    assert place is not None
    assert place.loader is not None
    script = importlib.util.module_from_spec(place)
    place.loader.exec_module(script)
    source = script.SOURCE.read_text("utf-8")
    table = json.loads(script.TABLE.read_text("utf-8"))
    assert table == script.table(source)
    # Read once more, in the plainest way.
    assert all(f'chkhsh == "{known}"' in source for known in table["names"])
    assert source.count("if chkhsh == ") >= len(table["names"]) > 80
    line = next(line for line in source.splitlines() if line.strip().startswith("chktxt = "))
    assert ast.literal_eval(line.partition("=")[2].strip()) == table["text"]


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_byte_level_vocabulary_is_read_alike(name: str, tmp_path: Path) -> None:
    """The folder gives the ids of llama.cpp's examples, and llama.cpp with what is written gives them, too."""
    rows = vocabularies.write_byte_level(name, tmp_path)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    tokenizer = folders.of(tmp_path)
    examples = vocabularies.texts(name)
    assert [tokenizer.backend.encode(text, add_special_tokens=False).ids for text, _ in examples] == [
        ids for _, ids in examples
    ]
    vocab.check(tmp_path, rows, vocab.Texts.of([text for text, _ in examples]))


def test_the_keys_of_a_byte_level_vocabulary_are_the_converters(tmp_path: Path) -> None:
    rows = vocabularies.write_byte_level("gpt-2", tmp_path, chat_template=TEMPLATE, add_prefix_space=False)
    model(tmp_path, rows)
    assert keys(tmp_path, rows) == theirs(tmp_path)


@pytest.mark.parametrize("flagged", [False, True])
def test_the_keys_of_a_sentencepiece_vocabulary_are_the_converters(flagged: bool, tmp_path: Path) -> None:
    """With tokenizer.model, which has the scores; BOS and EOS by name, or written with their flags, as in Llama 2."""
    token = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    names = {"0": "<unk>", "1": "<s>", "2": "</s>"}
    more: dict[str, Any] = {"added_tokens_decoder": {n: {"content": name, **token} for n, name in names.items()}}
    if flagged:
        ends = {"bos_token": "<s>", "eos_token": "</s>"}
        more |= {key: {"__type": "AddedToken", "content": name, **token} for key, name in ends.items()}
    rows = vocabularies.write_sentencepiece("llama-spm", tmp_path, chat_template=TEMPLATE, **more)
    vocabularies.write_model_file("llama-spm", tmp_path)
    model(tmp_path, rows)
    assert keys(tmp_path, rows) == theirs(tmp_path)
    vocab.check(tmp_path, rows, vocab.Texts.of([text for text, _ in vocabularies.texts("llama-spm")]))


def test_a_token_for_padding_beyond_the_rows_is_left_out(tmp_path: Path) -> None:
    """As in copies of Llama 2 whose trainer added one: the converter leaves it out, too."""
    rows = vocabularies.write_sentencepiece("llama-spm", tmp_path, chat_template=TEMPLATE)
    vocabularies.write_model_file("llama-spm", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": rows}), "utf-8")
    model(tmp_path, rows)
    assert max(folders.of(tmp_path).names) == rows
    assert keys(tmp_path, rows) == theirs(tmp_path)
    vocab.check(tmp_path, rows)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<mine>": rows}), "utf-8")
    with pytest.raises(ExportError, match=r"token 32000 \('<mine>'\) has no row in the embedding of 32,000"):
        vocab.check(tmp_path, rows)


def test_without_its_model_file_the_scores_are_the_order_of_the_merges(tmp_path: Path) -> None:
    """All else is the converter's, whose scores are all the same: by these llama.cpp reads other tokens."""
    rows = vocabularies.write_sentencepiece("llama-spm", tmp_path)
    model(tmp_path, rows)
    ours, other = keys(tmp_path, rows), theirs(tmp_path)
    vocab.check(tmp_path, rows, vocab.Texts.of([text for text, _ in vocabularies.texts("llama-spm")]))
    scores = "tokenizer.ggml.scores"
    assert ours.pop(scores) != other.pop(scores)
    assert ours == other
    made, tokenizer = vocab.read(tmp_path, rows), folders.of(tmp_path)
    assert made.tokens.scores is not None
    made.tokens.scores[:] = [-1000.0] * rows
    with pytest.raises(ExportError, match="the first text that differs is"):
        vocab.prove(tokenizer, made)


def test_one_without_a_token_for_each_byte_is_refused(tmp_path: Path) -> None:
    """llama.cpp would end the process."""
    rows = vocabularies.write_sentencepiece("llama-spm", tmp_path)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"<0xC3>"', '"<0xC>"'), "utf-8")
    with pytest.raises(ExportError, match=r"1 of the 256 tokens for bytes are not there, first <0xC3>"):
        vocab.check(tmp_path, rows)


def test_marks_that_a_tokenizer_does_not_see_within_a_text(tmp_path: Path) -> None:
    """As in the first files of Llama 2; what the hint says helps."""
    rows = vocabularies.write_sentencepiece("llama-spm", tmp_path)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text("utf-8"))
    for normalized in (True, False):
        for token in spec["added_tokens"]:
            token["normalized"] = normalized
        path.write_text(json.dumps(spec), "utf-8")
        if normalized:
            with pytest.raises(ExportError, match=r"differs is 'a<s>b': at token 1 llama.cpp has '<s>'") as caught:
                vocab.check(tmp_path, rows)
            assert '"normalized": false' in str(caught.value.hint)
        else:
            vocab.check(tmp_path, rows)


@pytest.mark.parametrize(("scheme", "told"), [("always", None), ("first", False), ("never", False)])
def test_where_a_space_is_put_first_is_told(scheme: str, told: bool | None, tmp_path: Path) -> None:
    rows = vocabularies.write_sentencepiece("llama-spm", tmp_path, scheme=scheme)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    vocab.check(tmp_path, rows)
    assert vocab.read(tmp_path, rows).prefix is told


def test_the_pieces_of_a_model_file_are_sentencepieces(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    vocabularies.write_model_file("llama-spm", tmp_path)
    place = tmp_path / "tokenizer.model"
    judge = SentencePieceProcessor(model_file=str(place))
    pieces = sentencepiece.read(place)
    assert pieces is not None
    assert [piece.text for piece in pieces] == [judge.IdToPiece(n) for n in range(judge.vocab_size())]
    assert np.array_equal([piece.score for piece in pieces], [judge.GetScore(n) for n in range(judge.vocab_size())])
    assert [n for n, piece in enumerate(pieces) if piece.type == sentencepiece.BYTE] == [
        n for n in range(judge.vocab_size()) if judge.IsByte(n)
    ]
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert sentencepiece.read(place) is None


@pytest.fixture(scope="module")
def base() -> Path:
    from ggufy.data import source

    return tiny.ensure(source.sample_texts())


def token(content: str, **flags: bool) -> dict[str, Any]:
    given = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    return {"content": content, **given, **flags}


CONFIGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "as it is": lambda _: None,
    "other flags": lambda c: c.update(added_tokens_decoder={"738": token("<|reserved_special_token_0|>")}),
    "a token more": lambda c: c.update(added_tokens_decoder={"768": token("<|mine|>", special=True)}),
    "a name more": lambda c: c.update(eos_token="<|done|>"),
    "a name with flags": lambda c: c.update(eos_token={"__type": "AddedToken", **token("<|done|>", lstrip=True)}),
    "extra ones": lambda c: c.update(additional_special_tokens=["<|a|>", "<|b|>"]),
}


@pytest.mark.parametrize("change", CONFIGS)
def test_a_tokenizer_is_what_transformers_loads(change: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    config = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    CONFIGS[change](config)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    judge, ours = PreTrainedTokenizerFast.from_pretrained(tmp_path), folders.of(tmp_path)
    assert {number: repr(one) for number, one in ours.backend.get_added_tokens_decoder().items()} == {
        number: repr(one) for number, one in judge.added_tokens_decoder.items()
    }
    assert ours.names == {number: name for name, number in judge.get_vocab().items()}
    assert ours.backend.token_to_id(ours.special["eos_token"]) == judge.eos_token_id


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a name": ("special_tokens_map.json", {"eos_token": "<|done|>"}),
    "more tokens": ("special_tokens_map.json", {"additional_special_tokens": ["<|python_tag|>", "<|mine|>"]}),
    "added tokens": ("added_tokens.json", {"<|mine|>": 768}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_other_files_of_a_tokenizer(kind: str, base: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    way, content = OTHERS[kind]
    (tmp_path / way).write_text(json.dumps(content), "utf-8")
    judge, ours = PreTrainedTokenizerFast.from_pretrained(tmp_path), folders.of(tmp_path)
    assert {number: repr(one) for number, one in ours.backend.get_added_tokens_decoder().items()} == {
        number: repr(one) for number, one in judge.added_tokens_decoder.items()
    }
    assert ours.special["eos_token"] == judge.eos_token


def template(single: list[str], pair: list[str]) -> dict[str, Any]:
    def piece(text: str) -> dict[str, Any]:
        kind = "Sequence" if text in ("A", "B") else "SpecialToken"
        return {kind: {"id": text, "type_id": 0}}

    return {"type": "TemplateProcessing", "single": [*map(piece, single)], "pair": [*map(piece, pair)]}


BOS, END, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
BYTE = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
PROCESSORS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "none": (None, {"bos_token": BOS, "eos_token": EOT}),
    "byte level": (BYTE, {"bos_token": BOS, "add_eos_token": True, "pad_token": "not one"}),
    "bos": (template([BOS, "A"], [BOS, "A", BOS, "B"]), {"bos_token": BOS, "eos_token": EOT}),
    "bos without a name": (template([BOS, "A"], [BOS, "A", "B"]), {"eos_token": EOT}),
    "another bos": (template([END, "A"], [END, "A", "B"]), {"bos_token": BOS, "eos_token": EOT}),
    "another eos": (template(["A", END], ["A", END, "B", END]), {"bos_token": BOS, "eos_token": EOT}),
    "a separator": (template([BOS, "A"], [BOS, "A", EOT, "B"]), {"bos_token": BOS, "eos_token": EOT}),
    "two": (template([BOS, "A", EOT], [BOS, "A", EOT, EOT, "B", EOT]), {"cls_token": BOS, "sep_token": EOT}),
    "roberta": ({"type": "RobertaProcessing", "sep": [EOT, 1], "cls": [BOS, 0]}, {"eos_token": END}),
}


def converters_special_vocab() -> Any:
    """The class of the library that the converter brings, which is newer than the one that is installed."""
    place = VENDOR / "gguf-py" / "gguf" / "vocab.py"
    found = importlib.util.spec_from_file_location("gguf.vocab_of_the_converter", place)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.SpecialVocab


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_is_put_around_a_text_is_read_as_the_converter_does(name: str, base: Path, tmp_path: Path) -> None:
    post, names = PROCESSORS[name]
    spec = json.loads((base / "tokenizer.json").read_text("utf-8"))
    spec["post_processor"] = {"type": "Sequence", "processors": [BYTE, post]} if post else None
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8, **names}), "utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 736, "eos_token_id": [1, 2]}), "utf-8")
    judge = converters_special_vocab()(tmp_path)
    tokenizer = folders.FolderTokenizer(tmp_path)
    # The post-processors here are not all that tokenizers takes; the numbers are those of the file.
    tokenizer.__dict__["backend"] = folders.open_backend(base)
    ours = special.of(tokenizer)
    assert list(ours.ids.items()) == list(judge.special_token_ids.items())
    assert list(ours.added.items()) == list(judge.add_special_token.items())


def test_two_tokens_that_are_written_alike_are_refused(base: Path, tmp_path: Path) -> None:
    """llama.cpp would end the process."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    spec = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    spec["added_tokens"] += [
        {"id": 768 + n, **token(name, normalized=True)} for n, name in enumerate(("a\u2581b", "a b"))
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    with pytest.raises(ExportError, match="768 and 769 are both written 'a b'"):
        vocab.check(tmp_path, 770)


def test_a_vocabulary_goes_through_the_whole_export(tmp_path: Path) -> None:
    """SmolLM2's kind: a vocabulary of 49,152, ChatML, and a BOS that begins every turn."""
    rows = vocabularies.write_byte_level("starcoder", tmp_path, chat_template=TEMPLATE)
    model(tmp_path, rows)
    export(tmp_path, None, {"f16": tmp_path / "f16.gguf"})
    ours, other = contents(tmp_path / "f16.gguf"), theirs(tmp_path)
    assert {key: value for key, value in ours.keys.items() if key.startswith("tokenizer.")} == other
    assert ours.tensors == contents(tmp_path / "theirs.gguf").tensors
