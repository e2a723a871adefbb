"""Whether the base knows the added tokens that its conversations are written with, looked at before a training.

A base model that was given the template of an Instruct model has rows in its embedding for these tokens that were never
trained: zeros, the same in several, the mean of the others, noise. LoRA leaves the embedding as it is, so such a model
cannot learn to write the token that ends an answer, and hardly to read the others.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ggufy.data.checks import used
from ggufy.data.checks.used import Used
from ggufy.errors import ModelError
from ggufy.export import untrained
from ggufy.export.untrained import Look
from ggufy.model import stops
from ggufy.model.safetensors import Checkpoint
from ggufy.model.tokenizer import folder
from ggufy.recipe.schema import Recipe

log = logging.getLogger("ggufy")

_EMBEDDING, _HEAD = "embed_tokens", "lm_head"
_HINT = "take the Instruct model as the base; or, if this is the one you want, train its embedding elsewhere first"
_MAY = "if the tuned model does not end its answers, or writes in the wrong role, take the Instruct model as the base"


class _Names:
    """What the tokens of a base are called."""

    def __init__(self, base: Path) -> None:
        tokenizer = folder.of(base)
        spec = tokenizer.spec
        vocab = (spec.get("model") or {}).get("vocab") or {}
        # Of a Unigram model: pairs of a token and its score, in the order of the ids.
        entries = vocab.items() if isinstance(vocab, dict) else ((pair[0], n) for n, pair in enumerate(vocab))
        self.all = {int(number): str(name) for name, number in entries}
        # With or without the flag `special`: `<|im_end|>` is often added without.
        added = {int(token["id"]): str(token["content"]) for token in spec.get("added_tokens") or []}
        listed = tokenizer.config.get("added_tokens_decoder") or {}
        added |= {int(number): str(token["content"]) for number, token in listed.items()}
        eos = tokenizer.special.get("eos_token")
        end = next((number for number, name in (self.all | added).items() if name == eos), None)
        self.stops = set(stops.of(base, end))
        self.looked_at = added.keys() | self.stops
        self.ordinary = self.all.keys() - self.looked_at
        self.all |= added

    def __getitem__(self, token: int) -> str:
        """The name, in one line, and the id."""
        name = self.all.get(token, "a token without a name")
        return f"{name if name.isprintable() else repr(name)} ({token})"


def check(wanted: Recipe, base: Path, data: Path) -> None:
    """Raise ModelError where a token that ends answers was certainly never trained; warn of what else looks like it.

    `data` is the folder with the prepared train.arrow and, where rows are held out, eval.arrow. What is told by
    statistics alone is never a refusal: it was measured on few models, and the next one may be made in another way.
    """
    names = _Names(base)
    size = max(*names.all, *names.looked_at) + 1
    rows = used.of([file for file in (data / "train.arrow", data / "eval.arrow") if file.is_file()], size)
    weights = Checkpoint.open(base)
    for part, tokens in ((_EMBEDDING, rows.read | rows.learnt), (_HEAD, rows.learnt)):
        name = next((name for name in weights.tensors if name.endswith(f"{part}.weight")), None)
        if name is None or part in wanted.lora.modules:
            continue
        count = weights[name].shape[0]
        if lost := next((token for token in sorted(tokens) if token >= count), None):
            raise ModelError(
                f"{names[lost]} has no row in {name}, which has {count:,}",
                "the tokenizer is of another model than the weights: copy both from one place",
            )
        _judge(base, name, untrained.find(weights, name, tokens & names.looked_at, names.ordinary), names, rows)


def _judge(base: Path, name: str, found: dict[int, Look], names: _Names, rows: Used) -> None:
    """Refuse the first that cannot be trained with, or say what was found in the matrix `name`, a line a token."""
    ends = rows.ends | (rows.learnt & names.stops)
    for token, look in found.items():
        if look.certain and token in ends:
            raise ModelError(
                f"{base.as_posix()}: {names[token]}, which answers end with, was never trained in this base: its row "
                f"of {name} is {_text(look, names)}",
                _HINT,
            )
    for token, look in found.items():
        used_for = "answers end" if token in ends else "conversations are written"
        if look.certain:
            log.warning(
                "%s, which %s with, was never trained in this base: its row of %s is %s; %s",
                *(names[token], used_for, name, _text(look, names), _MAY),
            )
        # A model may make of its first token what it likes, as long as it is the same in every row.
        elif token in rows.inside:
            log.warning(
                "%s, which %s with, may never have been trained in this base: its row of %s is %s; %s",
                *(names[token], used_for, name, _text(look, names), _MAY),
            )


def _text(look: Look, names: _Names) -> str:
    if look.other is None:
        return look.text
    return f"{look.text} {names.all.get(look.other, f'no token, the {look.other}th')}"
