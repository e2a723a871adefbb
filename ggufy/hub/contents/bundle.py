"""The bundle of a push: the files of a run, under the names they get in the repository.

The adapter lies at the top, where peft looks for it, and the GGUF files beside it, where llama.cpp and Ollama do; a
merged checkpoint has its own folder. `ggufy/` holds what `ggufy pull` needs to make the run again somewhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ggufy.errors import HubError, RunError
from ggufy.hub.contents import leaks, manifest, names
from ggufy.hub.contents.places import without_places
from ggufy.runs.run import Run

# An adapter's folder may hold more, written by other tools: of these files it is known what is in them.
_ADAPTER = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_FIGURES = ("metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class File:
    """One file of a push."""

    path: str
    source: Path | bytes
    size: int
    sha256: str
    git: str | None = None
    """Git's hash, which the Hub names for small files."""


@dataclass
class Bundle:
    """The files of a push, and what a card has to know of them."""

    run: Run
    name: str
    """Of the run, as the repository has it: one that was pulled may have another name here."""
    frozen: dict[str, Any]
    what: tuple[str, ...]
    stamps: list[dict[str, Any]] = field(default_factory=list)
    sources: dict[str, tuple[Path | bytes, str]] = field(default_factory=dict)
    """Path in the repository -> where its content is, and its path in the run."""
    earlier: list[str] = field(default_factory=list)
    """What was made from the adapter of an earlier training, and is left out."""

    def paths(self, kind: str) -> list[str]:
        """The outputs of a kind, by their path in the run."""
        return [stamp["output"] for stamp in self.stamps if kind_of(stamp) == kind]


def kind_of(stamp: Mapping[str, Any]) -> str | None:
    """Which of adapter, gguf and merged an output belongs to."""
    output, inputs = str(stamp["output"]), stamp["inputs"]
    if output == "adapter":
        return "adapter"
    if not output.startswith("export/"):
        return None
    if str(inputs.get("quant", "")).startswith("merged"):
        return "merged"
    return "gguf"


def collect(
    run: Run, what: Iterable[str], *, insist: bool, sent: Collection[str] = (), name: str | None = None
) -> Bundle:
    """The files of a run that are to be sent. Raises RunError where there is nothing, or, with `insist`, not all.

    Only outputs whose stamp holds are sent: nothing unfinished, nothing that somebody changed, and nothing that was
    made from an earlier adapter. Outputs of other kinds that lie there already, by the hashes of what was `sent` and is
    there still, stay a part of it: of the card, and of what is pulled.
    """
    wanted = tuple(dict.fromkeys(what))
    # A run that is sent is a public thing: the folders of this disk are no part of it.
    bundle = Bundle(run, name or run.name, without_places(run.frozen), wanted)
    if adapter := run.stamp("adapter"):
        stamps = [stamp for output in run.stamped() if (stamp := run.stamp(output))]
        bundle.earlier += sorted(manifest.earlier(stamps, {str(adapter["sha256"])}))
    for output in run.stamped():
        stamp = run.stamp(output)
        kind = kind_of(stamp) if stamp else None
        if (
            stamp is None
            or kind is None
            or output in bundle.earlier
            or not (kind in wanted or _lies_there(run, stamp, sent))
        ):
            continue
        names.check_path(output)
        if run.valid(output) is None:
            raise RunError(
                f"{(run.path / output).as_posix()} has been changed or removed since it was made",
                f"make it again with `ggufy {'train' if kind == 'adapter' else 'export ' + run.name}`",
            )
        _add(bundle, without_places(stamp), kind)
    missing = [kind for kind in wanted if not bundle.paths(kind)]
    if missing and (insist or not bundle.stamps):
        raise _unfinished(run, missing, bundle.earlier)
    for name in (*_FIGURES, "loss.png"):
        if (run.path / name).is_file():
            path = name if name.endswith(".png") else f"ggufy/{name}"
            bundle.sources[path] = (inside(run, run.path / name), name)
    if counted := counts(run):
        bundle.sources["ggufy/data.json"] = (as_json(counted), "data/report.json")
    bundle.sources["ggufy/run.json"] = (as_json(bundle.frozen), "run.json")
    return bundle


def _lies_there(run: Run, stamp: Mapping[str, Any], sent: Collection[str]) -> bool:
    """Whether all of an output that is sent unchanged was sent before."""
    hashes = {
        facts["sha256"]
        for name, facts in stamp["files"].items()
        if kind_of(stamp) != "adapter" or PurePosixPath(name).name in ("adapter_model.safetensors", "tokenizer.json")
    }
    return bool(hashes) and hashes <= set(sent) and run.valid(stamp["output"]) is not None


def _add(bundle: Bundle, stamp: dict[str, Any], kind: str | None) -> None:
    run, output = bundle.run, stamp["output"]
    kept: dict[str, Any] = {}
    for name, facts in stamp["files"].items():
        names.check_path(name)
        within = PurePosixPath(name).relative_to(output).as_posix() if name != output else ""
        if kind == "adapter" and within not in _ADAPTER:
            continue
        source: Path | bytes = inside(run, run.path / name)
        path = {
            "adapter": within,
            "merged": f"{stamp['inputs'].get('quant')}/{within}",
            "gguf": "/".join(part for part in (PurePosixPath(output).name, within) if part),
        }[str(kind)]
        if within == "adapter_config.json":
            source, facts = _public_config(run.path / name, facts)
        # When a file was written says nothing on another machine.
        kept[name] = {key: value for key, value in facts.items() if key != "mtime_ns"}
        bundle.sources[path] = (source, name)
    bundle.stamps.append({**stamp, "files": kept})


def _public_config(path: Path, facts: dict[str, Any]) -> tuple[Path | bytes, dict[str, Any]]:
    """adapter_config.json, whose name for the base may be a folder of this disk."""
    config = json.loads(path.read_text(encoding="utf-8"))
    public = without_places(config)
    if public == config:
        return path, facts
    data = as_json(public)
    return data, {**facts, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def finish(bundle: Bundle, texts: Mapping[str, str]) -> list[File]:
    """All files with their hashes, read once, and texts that are made for the Hub only; smallest first.

    Raises HubError for what must not leave.
    """
    known, places = leaks.known_keys(), leaks.places(bundle.run.path)
    sources = {path: source for path, (source, _) in bundle.sources.items()}
    sources |= {path: text.encode() for path, text in texts.items()}
    files = [_file(path, source, known, places) for path, source in sorted(sources.items())]
    expected = {name: facts["sha256"] for stamp in bundle.stamps for name, facts in stamp["files"].items()}
    by_path = {file.path: file for file in files}
    listed = {}
    for path, (_, name) in bundle.sources.items():
        file = by_path[path]
        if name in expected and expected[name] != file.sha256:
            raise RunError(
                f"{(bundle.run.path / name).as_posix()} has changed since it was made",
                f"see what has changed with `ggufy verify {bundle.run.name}`",
            )
        listed[path] = {"path": name, **facts_of(file)}
    made = {path: facts_of(by_path[path]) for path in texts}
    noted = manifest.of(bundle.name, listed, bundle.stamps, made)
    files.append(_file(manifest.MANIFEST, as_json(noted), known, places))
    return sorted(files, key=lambda file: (file.size, file.path))


def facts_of(file: File) -> dict[str, Any]:
    """What is noted of a file, in a manifest or a receipt."""
    return {"size": file.size, "sha256": file.sha256, **({"git": file.git} if file.git else {})}


def from_sources(files: Mapping[str, Path | bytes], folder: Path | None) -> list[File]:
    """Files that are no output of a run: a checkpoint's, a Space's, a data set's. Without a folder any may be named."""
    known, places = leaks.known_keys(), leaks.places(folder) if folder else []
    return [_file(path, source, known, places) for path, source in files.items()]


def _file(path: str, source: Path | bytes, known: list[bytes], places: list[bytes]) -> File:
    names.check_path(path)
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    sha256 = leaks.sha256(path, source, known, places)
    small = size < 1 << 26
    data = source if isinstance(source, bytes) else source.read_bytes() if small else b""
    git = hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False).hexdigest() if small else None
    return File(path, source, size, sha256, git)


def inside(run: Run, path: Path) -> Path:
    """The path, if it really lies in the run. Raises HubError for a link that leads out of it."""
    if not path.resolve().is_relative_to(run.path.resolve()):
        raise HubError(
            f"{path.as_posix()} is a link to {path.resolve().as_posix()}, outside the run; nothing was sent",
            "put the file itself there",
        )
    return path


def as_json(values: Any) -> bytes:
    """JSON as it is written to files, the same bytes for the same values."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _unfinished(run: Run, missing: list[str], earlier: list[str]) -> RunError:
    stamps = [stamp for output in run.stamped() if output not in earlier and (stamp := run.stamp(output))]
    there = sorted({str(kind_of(stamp)) for stamp in stamps if kind_of(stamp)})
    saved = sorted(run.path.glob("checkpoints/checkpoint-*/manifest.json"))
    exists = f"; ready to send: {', '.join(there)}" if there else ""
    instead = f"; or send what is ready with --what {','.join(there)}" if there else ""
    if "adapter" in missing and "adapter" not in there:
        steps = f" ({len(saved)} checkpoints are saved)" if saved else ""
        return RunError(
            f"{run.path.as_posix()} is not finished: it has no adapter yet{steps}{exists}",
            f"finish it with `ggufy train` and its recipe{instead}",
        )
    option = " --merged" if "merged" in missing else ""
    of_now = " of the last training" if earlier else ""
    return RunError(
        f"{run.path.as_posix()} has no {' and no '.join(missing)} files{of_now} yet{exists}",
        f"make them with `ggufy export {run.name}{option}`{instead}",
    )


def conversations(run: Run) -> int | None:
    """How many conversations were trained on, as counted when the data was prepared."""
    return counts(run).get("train", {}).get("kept")


def counts(run: Run) -> dict[str, dict[str, int]]:
    """What was counted when the data was prepared: numbers only, no word of the data."""
    try:
        report = json.loads((run.path / "data" / "report.json").read_text(encoding="utf-8"))
        return {
            split: {key: value for key, value in found.items() if isinstance(value, int)}
            for split, found in report.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}
