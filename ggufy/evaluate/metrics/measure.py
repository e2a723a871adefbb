"""Loss of a model on held-out text, and KL divergence between two models: conversation by conversation.

Logits are looked at a batch at a time and then forgotten; what is kept is a few numbers a conversation, and one a token
of the divergence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.errors import EvalError
from ggufy.evaluate.metrics.texts import Text
from ggufy.llamacpp.divergence import divergences, losses
from ggufy.llamacpp.evaluate_gguf import Forward


def loss(model: Forward, text: Text) -> dict[str, Any]:
    """The loss over the tokens of one text that count, summed, in nats."""
    import numpy as np

    _check_ids(model, text)
    targets, start, nll = np.asarray(text.targets), 0, 0.0
    for logits in model.logits(text.read, text.wanted):
        nll += float(losses(logits, targets[start : start + len(logits)]).sum())
        start += len(logits)
    return {"tokens": len(targets), "nll": nll}


def loss_in_torch(model: Any, text: Text) -> dict[str, Any]:
    """As `loss`, of a transformers model, on the device that it is on."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([list(text.read)], device=model.device)
        wanted = torch.tensor(text.wanted, device=model.device)
        targets = torch.tensor(text.targets, device=model.device)
        # Only where a token counts: the vocabulary is large.
        logits = model(ids).logits[0][wanted].double()
        chosen = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])
    return {"tokens": len(targets), "nll": float(-chosen.sum())}


def to_gpu(model: Any) -> None:
    """Move a model to a GPU that holds it."""
    import torch

    if torch.cuda.is_available():
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        free, _ = torch.cuda.mem_get_info()
        if free > 1.2 * size:
            model.to("cuda")


def divergence(reference: Forward, model: Forward, text: Text) -> dict[str, Any]:
    """A model against its reference after every token before one that counts; the losses of both come along.

    The two run side by side, a batch of each at a time.
    """
    import numpy as np

    _check_ids(reference, text)
    if reference.width != model.width:
        raise EvalError(
            f"{model.path.as_posix()} has {model.width:,} tokens and {reference.path.as_posix()} {reference.width:,}",
            "only models with the same tokenizer can be compared token by token",
        )
    targets, start = np.asarray(text.targets), 0
    apart: list[float] = []
    nll = reference_nll = 0.0
    same = 0
    both = zip(reference.logits(text.read, text.wanted), model.logits(text.read, text.wanted), strict=True)
    for theirs, ours in both:
        part = targets[start : start + len(ours)]
        start += len(ours)
        apart += divergences(theirs, ours).tolist()
        nll += float(losses(ours, part).sum())
        reference_nll += float(losses(theirs, part).sum())
        same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    return {"tokens": len(targets), "nll": nll, "reference_nll": reference_nll, "same": same, "kl": apart}


def _check_ids(model: Forward, text: Text) -> None:
    if (highest := max(text.ids)) >= model.width:
        raise EvalError(
            f"{model.path.as_posix()} has {model.width:,} tokens, and the held-out conversations use token {highest:,}",
            "they were tokenized for another model: give them as text with --data FILE",
        )


@dataclass(frozen=True)
class Loss:
    """Of one model, over all conversations."""

    tokens: int
    mean: float
    """Nats a token, over all tokens alike."""
    each: tuple[float, ...]
    """Nats a token, of each conversation."""

    @property
    def perplexity(self) -> float:
        return perplexity(self.mean)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], key: str = "nll") -> Loss:
        tokens = sum(row["tokens"] for row in rows)
        each = tuple(row[key] / row["tokens"] for row in rows)
        return cls(tokens, math.fsum(row[key] for row in rows) / tokens, each)

    def below(self, other: Loss) -> int:
        """On how many conversations this is lower."""
        return sum(ours < theirs for ours, theirs in zip(self.each, other.each, strict=True))


def perplexity(loss: float) -> float:
    """exp(loss); beyond what a float holds, the largest."""
    return math.exp(min(loss, 700.0))


@dataclass(frozen=True)
class Divergence:
    """Of one model from its reference, over all conversations."""

    tokens: int
    mean: float
    """KL, nats a token."""
    high: float
    """99 of 100 tokens are below it."""
    same: float
    """Share of tokens where both find the same one likeliest."""
    ratio: float
    """Perplexity over that of the reference."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Divergence:
        import numpy as np

        apart = np.concatenate([np.asarray(row["kl"], np.float64) for row in rows])
        tokens = sum(row["tokens"] for row in rows)
        more = Loss.of(rows).mean - Loss.of(rows, "reference_nll").mean
        return cls(
            tokens,
            float(apart.mean()),
            float(np.percentile(apart, 99)),
            sum(row["same"] for row in rows) / tokens,
            perplexity(more),
        )


@dataclass(frozen=True)
class Candidate:
    """A file that could be the one to use."""

    name: str
    size: int
    divergence: float


def smallest(candidates: Iterable[Candidate], limit: float) -> Candidate | None:
    """The smallest whose mean KL is within the limit; of equal sizes the closer one."""
    within = [one for one in candidates if one.divergence <= limit]
    return min(within, key=lambda one: (one.size, one.divergence), default=None)
