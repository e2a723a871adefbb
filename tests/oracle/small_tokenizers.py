"""Small tokenizers of each family's own kind: SentencePiece models trained here, and byte-level ones by its rules.

What tokenizer.json and tokenizer_config.json say beside the vocabulary is what the real ones of the family say.
"""

from __future__ import annotations

import json
from collections.abc import Container
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ggufy.data import source
from tests.oracle import vocabularies

ROWS = 768
_COMMON = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "minloglevel": 2}
_LLAMA = {"vocab_size": 640, "add_dummy_prefix": True}
_GEMMA = {
    "vocab_size": 640,
    "add_dummy_prefix": False,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
    "user_defined_symbols": ["<mask>", "<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁"],
}
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) }}"
    "{{ '\\n' + m['content'] + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
_PHI_ADDED = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")


@cache
def model(gemma: bool = False, kind: str = "bpe") -> bytes:
    """tokenizer.model, by sentencepiece itself."""
    texts = (text.encode("ascii", "ignore").decode() for text in source.sample_texts())
    settings = {**_COMMON, **(_GEMMA if gemma else _LLAMA), "model_type": kind, "remove_extra_whitespaces": False}
    with TemporaryDirectory() as scratch:
        prefix = f"{scratch}/tokenizer"
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_prefix=prefix, **settings)
        return Path(f"{prefix}.model").read_bytes()


def write(family: str, folder: Path) -> dict[str, int]:
    """The files of a family's tokenizer, and the numbers that its config.json names."""
    if family.startswith("gemma"):
        return gemma(folder)
    if family in ("mistral", "phi3"):
        added = _PHI_ADDED if family == "phi3" else ()
        return llama(folder, added=added, template=PHI if family == "phi3" else INST)
    return byte_level(folder, {"granite": "smollm", "smollm3": "llama-bpe", "phi4": "gpt-2"}.get(family, "qwen2"))


def llama(folder: Path, *, template: str = INST, added: tuple[str, ...] = (), **more: Any) -> dict[str, int]:
    """Mistral's and Phi-3's: tokenizer.model, and what Transformers 4 made of it, with a space before every text."""
    pieces, made = _opened(model(), folder)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    marks = ("<unk>", "<s>", "</s>", *added)
    # Phi-3's take white space after them along, but for these.
    greedy = set(marks) - {"<unk>", "<s>", "<|endoftext|>"} if added else set()
    made.add_special_tokens([AddedToken(name, normalized=False, rstrip=name in greedy) for name in marks])
    _ends(made, "<s>")
    made.save((folder / "tokenizer.json").as_posix())
    names = dict(enumerate(["<unk>", "<s>", "</s>"]))
    names |= {len(pieces) + number: name for number, name in enumerate(added)}
    if added:
        # Of Phi-3 the converter takes what tokenizer.json alone lists, too.
        del names[0]
    values = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True, "add_bos_token": True}
    values |= {"chat_template": template, "tokenizer_class": "LlamaTokenizer"}
    _settings(folder, names, rstrip=greedy, **values, **more)
    return {"bos_token_id": 1, "eos_token_id": 2}


def gemma(folder: Path, **more: Any) -> dict[str, int]:
    """Gemma's: no space before a text; runs of spaces and lines are added tokens, which are no marks."""
    pieces, made = _opened(model(gemma=True), folder)
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = dict(enumerate(pieces[:9]))
    plain = {number for number, name in names.items() if set(name) <= {"\n", "▁"}}
    made.add_tokens([AddedToken(n, normalized=False, special=number not in plain) for number, n in names.items()])
    _ends(made, "<bos>")
    made.save((folder / "tokenizer.json").as_posix())
    values = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    values |= {"add_bos_token": True, "tokenizer_class": "GemmaTokenizer", "chat_template": TURNS}
    _settings(folder, names, plain, **values, **more)
    return {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}


def byte_level(folder: Path, rules: str) -> dict[str, int]:
    """Qwen's, Granite's and so on: the rules of tokenizer.json, and ChatML."""
    made = Tokenizer(models.BPE(ignore_merges=rules == "llama-bpe"))
    made.pre_tokenizer, made.decoder = vocabularies.pre_tokenizer(rules), decoders.ByteLevel()
    if rules == "qwen2":
        made.normalizer = normalizers.NFC()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        source.sample_texts(), trainers.BpeTrainer(vocab_size=640, initial_alphabet=alphabet, show_progress=False)
    )
    phi = rules == "gpt-2"
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(["<|im_sep|>"] if phi else []))
    # Phi-4's take white space on both sides along.
    greedy = marks if phi else ()
    flags = {name: {"lstrip": name in greedy, "rstrip": name in greedy} for name in marks}
    made.add_special_tokens([AddedToken(name, normalized=False, **flags[name]) for name in marks])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.save((folder / "tokenizer.json").as_posix())
    ids = {name: made.token_to_id(name) for name in marks}
    values = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    # Of the class that takes tokenizer.json as it is; for Phi-4 the converter asks for GPT-2's.
    kind = "GPT2Tokenizer" if phi else "PreTrainedTokenizerFast"
    template = PHI4 if phi else vocabularies.TEMPLATE
    values |= {"tokenizer_class": kind, "chat_template": template, "add_prefix_space": False}
    _settings(folder, {number: name for name, number in ids.items()}, lstrip=greedy, rstrip=greedy, **values)
    return {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}


def _opened(content: bytes, folder: Path) -> tuple[list[str], Any]:
    """tokenizer.model, its pieces, and a BPE with its merges in the order of their scores."""
    (folder / "tokenizer.model").write_bytes(content)
    held = proto.ModelProto.FromString(content)
    pieces = [piece.piece for piece in held.pieces]
    vocab = {name: number for number, name in enumerate(pieces)}
    pairs = [
        (piece.score, name[:at], name[at:])
        for name, piece in zip(pieces, held.pieces, strict=True)
        for at in range(1, len(name))
        if name[:at] in vocab and name[at:] in vocab
    ]
    # As Transformers 4 ordered them: of all pieces, the added ones too.
    pairs.sort(key=lambda pair: (vocab[pair[1]], vocab[pair[2]]))
    pairs.sort(key=lambda pair: (pair[0], len(pair[1]), len(pair[2])), reverse=True)
    merges = [(left, right) for _, left, right in pairs]
    bpe = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return pieces, Tokenizer(bpe)


def _ends(made: Any, bos: str) -> None:
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, made.token_to_id(bos))]
    )


def _settings(
    folder: Path,
    names: dict[int, str],
    plain: Container[int] = (),
    *,
    lstrip: Container[str] = (),
    rstrip: Container[str] = (),
    **values: Any,
) -> None:
    """tokenizer_config.json with these added tokens, of which the `plain` are no marks."""
    listed = {
        str(number): {
            "content": name,
            "lstrip": name in lstrip,
            "normalized": False,
            "rstrip": name in rstrip,
            "single_word": False,
            "special": number not in plain,
        }
        for number, name in names.items()
    }
    values = {"added_tokens_decoder": listed, "model_max_length": 2048, **values}
    (folder / "tokenizer_config.json").write_text(json.dumps(values, ensure_ascii=False), "utf-8")
