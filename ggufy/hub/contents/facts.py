"""The facts for a model card: read from the run's run.json, figures and files, and nothing that was not measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.hub.contents.bundle import Bundle, kind_of
from ggufy.model import download

# The licences whose terms ask for a notice, and for a name that begins with Llama.
_LLAMA = (
    (r"llama-?3\.3", "llama3.3", "Llama 3.3"),
    (r"llama-?3\.2", "llama3.2", "Llama 3.2"),
    (r"llama-?3\.1", "llama3.1", "Llama 3.1"),
    (r"llama-?3(?![.\d])", "llama3", "Llama 3"),
)


@dataclass(frozen=True)
class CardMetadata:
    """What the Hub was asked for a card: nothing of it where it was not."""

    license: str | None = None
    """Of the base, as its own card says: one of the Hub's names for licences."""
    license_name: str | None = None
    """Of a base whose licence has none of these names."""
    license_link: str | None = None
    language: tuple[str, ...] = ()
    """Of the data sets, as their own cards say."""


@dataclass(frozen=True)
class Place:
    """Where rows came from."""

    name: str
    commit: str | None
    """Of a data set on the Hub; what is on a disk has none."""

    @property
    def on_the_hub(self) -> bool:
        return self.commit is not None

    def said(self) -> str:
        if not self.on_the_hub:
            return f"`{self.name}`, which is not on the Hub"
        return f"[{self.name}](https://huggingface.co/datasets/{self.name}) at commit `{str(self.commit)[:12]}`"


def trained_on(frozen: dict[str, Any]) -> list[Place]:
    """The sources of the training conversations, each once."""
    data = frozen["data"]
    places = [Place(data["name"], data["commit"]), *(Place(name, commit) for name, commit in data.get("more", []))]
    return list(dict.fromkeys(places))


def held_out(frozen: dict[str, Any]) -> list[Place]:
    """The sources of the held-out conversations."""
    wanted, apart = frozen["recipe"]["data"], frozen["data"].get("held_out")
    if wanted.get("eval_source"):
        # A run of an earlier version did not note which commit that was at.
        return [Place(*apart)] if apart else [Place(wanted["eval_source"], None)]
    return trained_on(frozen)[:1] if wanted.get("eval_split") else trained_on(frozen)


def hardware(summary: dict[str, Any]) -> str | None:
    """What a run was trained on, as it was found there."""
    found = summary.get("hardware") or {}
    if not found.get("device"):
        return None
    memory = "gpu_memory_bytes" if found.get("gpu_memory_bytes") else "memory_bytes"
    gpus = f"{summary['gpus']} × " if (summary.get("gpus") or 1) > 1 else ""
    kind = f"{found['cores']} cores of a CPU ({found['machine']})" if found["device"] == "cpu" else found["device"]
    return f"{gpus}{kind}, {amount(found[memory])} of memory" if found.get(memory) else f"{gpus}{kind}"


@dataclass(frozen=True)
class Gguf:
    """One GGUF model of a push; one that is split counts as one."""

    name: str
    first: str
    """The file to name to llama.cpp, by its path in the repository."""
    quant: str
    size: int
    bits: float | None
    """Bits a weight, over all tensors; not for an adapter."""
    closeness: dict[str, Any] | None = None
    """To the training model, as measured when the file was verified."""

    @property
    def parts(self) -> int:
        """In how many files it is."""
        found = re.search(r"-of-(\d{5})\.gguf$", self.first)
        return int(found[1]) if found else 1


def ggufs(bundle: Bundle) -> list[Gguf]:
    """The GGUF models, smallest first."""
    found = []
    for stamp in bundle.stamps:
        quant = stamp["inputs"].get("quant")
        if kind_of(stamp) != "gguf" or quant is None or "modelfile" in stamp["inputs"]:
            continue
        files = sorted(stamp["files"])
        by_name = {name: path for path, (_, name) in bundle.sources.items()}
        size = sum(facts["size"] for facts in stamp["files"].values())
        bits = None if quant == "adapter" else bits_a_weight(bundle.run.path / name for name in files)
        name = stamp["output"].rpartition("/")[2]
        found.append(Gguf(name, by_name[files[0]], quant, size, bits, stamp.get("closeness")))
    return sorted(found, key=lambda gguf: (gguf.size, gguf.name))


def bits_a_weight(files: Iterable[Path]) -> float:
    """Bits a weight of a GGUF model, from the sizes and shapes of its tensors."""
    from gguf import GGUFReader

    size = weights = 0
    for file in files:
        for tensor in GGUFReader(file).tensors:
            size += int(tensor.n_bytes)
            weights += int(tensor.n_elements)
    return 8 * size / weights


def losses(run: Path, points: int = 12) -> list[dict[str, float]]:
    """The logged losses of a run, at most that many, first and last among them."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [figures for line in lines if "loss" in (figures := json.loads(line))]
    except (OSError, ValueError):
        return []
    if len(logged) <= points:
        return logged
    return [logged[round(i * (len(logged) - 1) / (points - 1))] for i in range(points)]


def summary(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def llama(base: str) -> tuple[str, str] | None:
    """The licence and the name of a Llama base, told by the name of its repository."""
    for pattern, license_name, family in _LLAMA:
        if re.search(pattern, base, re.IGNORECASE):
            return license_name, family
    return None


def on_the_hub(name: str) -> str | None:
    """The name, if it is of a repository and not of something on this disk or built in."""
    return name if download.is_repository(name) and not Path(name).exists() else None


def base_on_the_hub(frozen: dict[str, Any]) -> str | None:
    """The base of a run, if that was downloaded from the Hub; what is on a disk has no commit."""
    return str(frozen["base"]["name"]) if frozen["base"]["commit"] else None


def amount(size: int) -> str:
    """A size for people, in powers of 1000 as the Hub counts."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:,.2f} {unit}" if power == 9 else f"{size / 10**power:,.1f} {unit}"
    return f"{size} bytes"
