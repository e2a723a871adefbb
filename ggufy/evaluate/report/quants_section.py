"""The report's section on what quantization cost: each file against its reference, usually F16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggufy.evaluate.metrics.measure import Candidate, Divergence, Loss, smallest
from ggufy.evaluate.report import plots
from ggufy.evaluate.report.plots import Series
from ggufy.evaluate.report.report import Marked, Note, Part, Plot, Section, Table
from ggufy.system import disk


@dataclass(frozen=True)
class File:
    """What a file is, and what it costs to use."""

    size: int
    bits: float
    """A weight."""
    speed: float
    """Tokens a second while it answers."""


@dataclass(frozen=True)
class Line:
    name: str
    file: File
    loss: Loss
    divergence: Divergence | None
    """None: it is what the others are compared with."""


@dataclass(frozen=True)
class Group:
    """One run."""

    name: str
    reference: str
    lines: Sequence[Line]
    limit: float

    @property
    def best(self) -> Candidate | None:
        return smallest(self._candidates, self.limit)

    @property
    def closest(self) -> Candidate | None:
        return min(self._candidates, key=lambda one: one.divergence, default=None)

    @property
    def _candidates(self) -> list[Candidate]:
        return [Candidate(one.name, one.file.size, one.divergence.mean) for one in self.lines if one.divergence]


COLUMNS = ("file", "mean KL", "99% below", "same top", "perplexity", "ratio", "size", "bits/weight", "tokens/s")
_FORMATS = {"mean KL": ".4g", "99% below": ".4g", "perplexity": ",.4g", "ratio": ".4f"}
_FORMATS |= {"bits/weight": ".2f", "tokens/s": ",.1f"}


def section(groups: Sequence[Group]) -> Section:
    told = (
        "Each file is run beside its reference over the same held-out conversations. KL is how far the file's "
        "probabilities of the next token are from the reference's, in nats a token: the mean, and what 99 of 100 "
        'tokens stay below. "Same top" is how often both find the same token likeliest; "ratio" is perplexity over the '
        "reference's. Sizes are of whole files; tokens/s is of answering on this machine."
    )
    parts: list[Part] = [Note(told)]
    values: dict[str, Any] = {"runs": []}
    for group in groups:
        said = recommendation(group)
        if len(groups) > 1:
            said = f"{group.name}: {said}"
        best = group.best
        rows = tuple(_cells(line) for line in group.lines)
        chosen = next((n for n, line in enumerate(group.lines) if best and line.name == best.name), None)
        caption = f"{group.name}, against {group.reference}"
        parts += [said, Table(COLUMNS, rows, caption, _FORMATS, chosen)]
        compared = [line for line in group.lines if line.divergence]
        if len(compared) > 1:
            parts.append(_plot(group, compared))
        values["runs"].append(
            {
                "name": group.name,
                "reference": group.reference,
                "max_kl": group.limit,
                "recommended": best.name if best else None,
                "why": said,
                "files": [_values(line) for line in group.lines],
            }
        )
    return Section("quants", "What quantization cost", parts, values)


def recommendation(group: Group) -> str:
    """Which file to use, and why."""
    best, closest = group.best, group.closest
    if closest is None:
        return f"There is no file beside {group.reference}: `ggufy export --quant q4_k_m --quant q8_0` makes some."
    limit = f"{group.limit:g} nats a token (--max-kl)"
    if best is None:
        return (
            f"No file is within {limit}; the closest is {closest.name} with {closest.divergence:.3g}. A finer quant, "
            "or an importance matrix (`ggufy export --imatrix`), comes closer."
        )
    reference = next((line for line in group.lines if line.divergence is None), None)
    share = f", {best.size / reference.file.size:.0%} of the size of {group.reference}" if reference else ""
    smaller = sorted((one for one in group.lines if one.divergence and one.file.size < best.size), key=_size)
    beyond = "".join(
        f"; {one.name} is smaller and off by {one.divergence.mean:.3g}" for one in smaller[-1:] if one.divergence
    )
    return (
        f"Recommended: {best.name}, the smallest file within {limit}. It is off by {best.divergence:.3g}, at "
        f"{disk.size(best.size)}{share}{beyond}."
    )


def _size(line: Line) -> int:
    return line.file.size


def _cells(line: Line) -> tuple[Any, ...]:
    file, apart = line.file, line.divergence
    own = (disk.size(file.size), file.bits, file.speed)
    if apart is None:
        return Marked(line.name, "quiet"), None, None, None, line.loss.perplexity, None, *own
    return line.name, apart.mean, apart.high, f"{apart.same:.1%}", line.loss.perplexity, apart.ratio, *own


def _values(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {"name": line.name, "bytes": line.file.size, "bits_per_weight": line.file.bits}
    found |= {"tokens_per_second": line.file.speed, "loss": line.loss.mean, "perplexity": line.loss.perplexity}
    if apart := line.divergence:
        found |= {"kl": apart.mean, "kl_99": apart.high, "same_top": apart.same, "perplexity_ratio": apart.ratio}
        found["tokens"] = apart.tokens
    return found


def _plot(group: Group, lines: Sequence[Line]) -> Plot:
    points = [(line.file.size / 1e6, line.divergence.mean) for line in lines if line.divergence]
    drawn = plots.xy(
        [Series("files", points, labels=[line.name for line in lines])],
        "size, MB",
        "mean KL, nats a token",
        log_y=True,
        limit=group.limit,
    )
    return Plot(drawn, f"Size against divergence from {group.reference}; the dashed line is the limit.")
