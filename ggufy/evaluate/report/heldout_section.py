"""The report's section on held-out loss: base, adapter model and each file, on conversations not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.evaluate.metrics.measure import Loss
from ggufy.evaluate.metrics.texts import HeldOut
from ggufy.evaluate.report import plots
from ggufy.evaluate.report.report import Marked, Note, Plot, Section, Table


@dataclass(frozen=True)
class Line:
    """One model."""

    name: str
    how: str
    """What computed it."""
    loss: Loss | str
    """Or why it was not measured."""
    is_base: bool = False


@dataclass(frozen=True)
class Group:
    """One run."""

    name: str
    heldout: HeldOut
    lines: Sequence[Line]

    @property
    def base(self) -> Loss | None:
        return next((line.loss for line in self.lines if line.is_base and isinstance(line.loss, Loss)), None)


def section(groups: Sequence[Group]) -> Section:
    several = len(groups) > 1
    cells: list[tuple[Any, ...]] = []
    values: dict[str, Any] = {"data": groups[0].heldout.name, "conversations": len(groups[0].heldout.texts)}
    values |= {"of": groups[0].heldout.total, "tokens": groups[0].heldout.tokens, "models": []}
    missing: list[str] = []
    for group in groups:
        for line in group.lines:
            name = f"{group.name}: {line.name}" if several else line.name
            if isinstance(line.loss, str):
                missing.append(f"The {name} was not measured: {line.loss}.")
                values["models"].append({"name": name, "with": line.how, "not_measured": line.loss})
                continue
            cells.append(_cells(name, line, group.base))
            values["models"].append(_values(name, line, group.base))
    columns = ("model", "loss", "perplexity", "less than base", "lower on", "with")
    formats = {"loss": ".4f", "perplexity": ",.4g", "less than base": "+.4f"}
    names, losses = [str(row[0]) for row in cells], [float(row[1]) for row in cells]
    held = groups[0].heldout
    part = f"the first {len(held.texts):,} of {held.total:,}" if len(held.texts) < held.total else f"{held.total:,}"
    told = (
        f"On {part} conversations ({held.name}), {held.tokens:,} tokens of what the assistant says: the tokens that "
        "training counts, and no others. Loss is in nats a token, perplexity is exp(loss); lower is better. "
        '"Lower on" counts the conversations on which a model has a lower loss than the base.'
    )
    plot = Plot(plots.bars(names, losses, ".3f"), "Held-out loss, nats a token.")
    table = Table(columns, tuple(cells), formats=formats)
    return Section("heldout", "Held-out loss", (*_verdict(groups), Note(told), table, *missing, plot), values)


def _cells(name: str, line: Line, base: Loss | None) -> tuple[Any, ...]:
    assert isinstance(line.loss, Loss)
    loss = line.loss
    if base is None or line.is_base:
        return name, loss.mean, loss.perplexity, None, None, line.how
    less, below = base.mean - loss.mean, loss.below(base)
    share = Marked(f"{below} of {len(loss.each)}", "good" if 2 * below > len(loss.each) else "bad")
    return name, loss.mean, loss.perplexity, less, share, line.how


def _values(name: str, line: Line, base: Loss | None) -> dict[str, Any]:
    assert isinstance(line.loss, Loss)
    loss = line.loss
    found: dict[str, Any] = {"name": name, "with": line.how, "loss": loss.mean, "perplexity": loss.perplexity}
    if base is not None and not line.is_base:
        found |= {"below_base": base.mean - loss.mean, "lower_on": loss.below(base)}
    return found


def _verdict(groups: Sequence[Group]) -> list[str]:
    """In a sentence for each run: did the training help on what it has not seen?"""
    found = []
    for group in groups:
        tuned = [line.loss for line in group.lines if isinstance(line.loss, Loss) and not line.is_base]
        if group.base is None or not tuned:
            continue
        less, count = group.base.mean - tuned[0].mean, len(tuned[0].each)
        lower = tuned[0].below(group.base)
        better = "lower" if less > 0 else "higher"
        meaning = "training helped on them" if less > 0 else "training did not help on them"
        found.append(
            f"The tuned model's loss is {abs(less):.3f} {better} than the base's, and lower on {lower} of {count} "
            f"conversations it has not seen: {meaning}."
        )
        if len(groups) > 1:
            found[-1] = f"{group.name}: {found[-1]}"
    return found
