"""The export engine: plans and writes GGUF files from a base folder and an adapter folder."""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufy.errors import ExportError
from ggufy.export import families, imatrix, kernel_agreement, stream, vocab
from ggufy.export import planned as planned_of
from ggufy.export.adapter.adapter import Adapter
from ggufy.export.converter import conversion, merged_base
from ggufy.export.families.family import Family, Planned
from ggufy.export.gguf import layout, lora_gguf
from ggufy.export.kernels import native
from ggufy.export.request import ADAPTER, Plan, Request, merged_sinks
from ggufy.export.sinks import GgufSink, MergedSink
from ggufy.llamacpp import library
from ggufy.model.safetensors import Checkpoint
from ggufy.recipe.schema import Lora
from ggufy.system import machine, progress

log = logging.getLogger("ggufy")


def check_base(base: Path, lora: Lora | None = None) -> tuple[str, ...]:
    """Check that a base can be exported and has the modules to be trained, before hours of it. Returns their names.

    Its tokenizer as well: what llama.cpp would read in another way is refused.
    """
    if conversion.is_foreign(base):
        conversion.check(base)
        weights = Checkpoint.open(base)
        planned = conversion.plan(base, weights)
    else:
        family, weights = families.opened(base)
        planned = family.plan(weights)
        family.check_vocab()
    if weights.wrapped:
        raise ExportError(
            f"{base.as_posix()}: the names of its weights are wrapped by a trainer, such as _orig_mod. before them; "
            "transformers loads none of these, and would train random numbers in their place",
            f"`ggufy export {base.as_posix()} --merged bf16` writes the same model with its own names: train that",
        )
    have = {t.source.split(".")[-2] for t in planned if t.source and len(t.shape) == 2 and "." in t.source}
    modules = lora.modules_in(have) if lora else ()
    if missing := [module for module in modules if module not in have]:
        raise ExportError(
            f"the base has no module named {missing[0]}; it has {', '.join(sorted(have))}", "check lora.target_modules"
        )
    return modules


def plan(request: Request, scratch: Path, *, weighed: bool = False) -> Plan:
    """Plan a request. `scratch` is a folder for llama.cpp's skeletons and intermediate files.

    With `weighed` an importance matrix is expected that is not there yet. Raises ExportError or ModelError.
    """
    if request.kernels == "native" and not native.variants():
        raise ExportError(
            "ggufy was installed without its own kernels",
            "see how to get them with `ggufy doctor`, or give --kernels auto",
        )
    adapter = Adapter.of(request.base, request.adapter)
    if conversion.is_foreign(request.base):
        return merged_base.plan(request, Checkpoint.open(request.base), adapter, scratch)
    found = planned_of.ready(request.base, adapter, request.tokenizer)
    family, weights, adapter, planned = found.family, found.weights, found.adapter, found.tensors
    if request.quants:
        family.check_vocab()
        family.say_limits()
    if ADAPTER in request.outputs:
        lora_gguf.check(adapter)
    if request.imatrix:
        request.imatrix.check(planned)
    # llama.cpp only asks whether there is one.
    matrix = request.imatrix or (imatrix.placeholder(planned) if weighed else None)
    general = family.named(request.general) if request.quants else {}
    wanted = layout.Wanted(family, planned, general, matrix, request.split, request.types)
    layouts = layout.make(request.quants, wanted, scratch) if request.quants else {}
    vocab.forget()
    split = request.split is not None
    sinks: dict[str, GgufSink | MergedSink] = {
        name: GgufSink(request.outputs[name], made, request.imatrix, split=split) for name, made in layouts.items()
    }
    return OnePass(request, family, planned, {**sinks, **merged_sinks(request, planned)}, weights, adapter)


@dataclass(frozen=True)
class OnePass:
    """A family that ggufy knows: straight from base and adapter to every output."""

    request: Request
    family: Family
    planned: list[Planned]
    sinks: dict[str, GgufSink | MergedSink]
    weights: Checkpoint
    adapter: Adapter

    @property
    def total(self) -> int:
        """How many weights there are."""
        return sum(math.prod(tensor.shape) for tensor in self.planned)

    @property
    def sizes(self) -> dict[str, int]:
        sizes = {name: sink.size for name, sink in self.sinks.items()}
        if ADAPTER in self.request.outputs:
            sizes[ADAPTER] = lora_gguf.size(self.adapter)
        return sizes

    @property
    def notes(self) -> list[str]:
        return [note for sink in self.sinks.values() if isinstance(sink, GgufSink) for note in sink.layout.notes]

    def write(self, threads: int) -> None:
        if place := self.request.outputs.get(ADAPTER):
            lora_gguf.write(place, self.adapter, self.family.arch, self.planned, dict(self.request.general))
        if self.sinks:
            merge = kernel_agreement.agreed(self.planned, self.weights, self.adapter, self.request.kernels)
            files = [sink for sink in self.sinks.values() if isinstance(sink, GgufSink)]
            if files and self.request.kernels != "llama.cpp":
                kernel_agreement.choose(files, self.planned, merge)
            if self.request.kernels == "native":
                kernel_agreement.say_what_is_left(files)
            with progress.bar(f"exporting {', '.join(self.sinks)}", self.total) as bar:
                stream.run(self.planned, list(self.sinks.values()), merge, threads, bar)

    def describe(self, threads: int) -> list[str]:
        changed = len(self.adapter.deltas) + len(self.adapter.whole)
        lines = [f"{len(self.planned)} tensors, {self.total:,} weights; the adapter changes {changed} of the tensors"]
        for name, sink in self.sinks.items():
            kinds = (
                Counter(library.type_name(slot.type) for slot in sink.layout.slots)
                if isinstance(sink, GgufSink)
                else {}
            )
            counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            if isinstance(sink, GgufSink) and sink.folder:
                counted += f", in {len(sink.paths)} files"
            size = f"{sink.size / 1e6:>10,.1f} MB  {8 * sink.size / self.total:.2f} bits a weight"
            lines.append(f"{name:<10} {size}  {counted}".rstrip())
        if ADAPTER in self.request.outputs:
            lines.append(f"{ADAPTER:<10} {self.sizes[ADAPTER] / 1e6:>10,.1f} MB at most")
        lines += self.notes
        if not self.sinks:
            return lines
        runs = native.variants() if self.request.kernels != "llama.cpp" else ()
        whose = f"ggufy's kernels ({runs[0]})" if runs else "llama.cpp's kernels"
        lines.append(f"about {self._seconds(threads):.0f} s on {threads} threads, with {whose}")
        return lines

    def _seconds(self, threads: int) -> float:
        """An estimate from a short run of each kernel that will be used."""
        work: Counter[int] = Counter()
        for sink in self.sinks.values():
            if isinstance(sink, GgufSink):
                for slot in sink.layout.slots:
                    work[slot.type] += math.prod(slot.tensor.shape)
        fast = self.request.kernels != "llama.cpp"
        return (
            sum(count / native.speed(kind, fast=fast) for kind, count in work.items()) / threads
            + self.total / 5e8 / threads
        )


def export(request: Request, threads: int | None = None) -> None:
    """Plan and write the outputs, in place; callers move them to their final names."""
    folder = next(iter(request.outputs.values())).parent
    ready = plan(request, folder)
    # What an interrupted attempt already wrote is written over.
    check_space(folder, ready.sizes, blocks(folder.parent))
    for note in ready.notes:
        log.info("%s", note)
    ready.write(threads or machine.cores())


def check_space(folder: Path, sizes: Mapping[str, int], there: int = 0) -> None:
    """Raise ExportError where the disk of a folder does not hold outputs of these sizes, `there` of it being theirs."""
    needed = sum(sizes.values())
    free = shutil.disk_usage(folder).free + there
    if needed > free:
        unit, name = (1e9, "GB") if needed >= 2e9 else (1e6, "MB")
        raise ExportError(
            f"no space on the disk: {needed / unit:,.1f} {name} needed for {', '.join(sizes)}, "
            f"{free / unit:,.1f} {name} free",
            "free some space, or export fewer or smaller quants",
        )


def blocks(path: Path) -> int:
    """Bytes that the files in a folder take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
