"""The export stage: which files to make of a run, an adapter or a checkpoint, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ggufy.errors import ExportError, Unverified
from ggufy.export import engine, imatrix, modelfile
from ggufy.export.converter import conversion
from ggufy.export.gguf import layout
from ggufy.export.request import MERGED, Plan, Request
from ggufy.model.template import text_of
from ggufy.runs.run import Run
from ggufy.runs.stamps import Artifact
from ggufy.stages import calibration, exported, preflight, vocabulary
from ggufy.stages.calibration import Texts
from ggufy.stages.export_options import PLAIN, ExportOptions
from ggufy.stages.model_source import ModelSource
from ggufy.stages.verify import Verifier
from ggufy.system import digest, machine

log = logging.getLogger("ggufy")


def check(options: ExportOptions, output_folder: Run) -> None:
    """Check the options before anything is touched. Raises ExportError."""
    quants = layout.check_quants(options.quants) if options.quants else options.default
    if options.types and (options.quants or options.types_from or not output_folder.exists):
        preflight.of_types(options, options.wanted_quants())
    if not output_folder.exists:
        # Of a run the recipe has its say too.
        preflight.of_matrices(options, quants, computes=bool(options.imatrix or options.imatrix_data), of_run=False)


def make(this: ModelSource, options: ExportOptions) -> dict[str, Artifact]:
    """Make the outputs that are asked for, or reuse them. The caller holds the lock of the output folder."""
    this.claim(force=options.force)
    with this.naming_its_tokenizer():
        return _Export(this, options).make()


def plan(this: ModelSource, options: ExportOptions, scratch: Path) -> list[str]:
    """What an export would write, in lines for people. Raises what the export would."""
    preflight.of_place(this.output_folder.path)
    this.claim(force=options.force)
    with this.naming_its_tokenizer():
        return _Export(this, options).describe(scratch)


class _Export:
    """One call of `make`."""

    def __init__(self, this: ModelSource, options: ExportOptions) -> None:
        self.this, self.options = this, options
        self.threads = options.threads or machine.cores()
        self.inputs = {**this.inputs, "llama_cpp": metadata.version("llama-cpp-python")}
        if conversion.is_foreign(this.base.path):
            self.inputs["converter"] = conversion.fingerprint()
        self.quants = options.wanted_quants(this)
        self.computes = options.wants_imatrix(this)
        preflight.of_matrices(options, self.quants, computes=self.computes, of_run=bool(this.subfolder))
        preflight.of_types(options, self.quants)
        self.tags = modelfile.tags(options.ollama, self.quants, split=options.split_max_size is not None)
        self.models = self._modelfiles()
        self.matrix = imatrix.read(options.imatrix_file) if options.imatrix_file else None
        self.verifier = Verifier(this, self.threads, logits=options.check_logits)
        self.closeness: dict[str, dict[str, Any]] = {}

    def make(self) -> dict[str, Artifact]:
        made: dict[str, Artifact] = {}
        weighed = digest.of_file(self.options.imatrix_file) if self.options.imatrix_file else None
        if self.computes:
            # What would be refused after the matrix is refused before it, which takes minutes.
            with TemporaryDirectory(prefix="ggufy-") as scratch:
                self._plan(Path(scratch))
            if self._keeps_f16:
                # It is needed now, so it is made now.
                made |= self._make({self._file("f16"): {**self.inputs, "quant": "f16"}})
            made |= self._make_imatrix()
            self.matrix, weighed = imatrix.read(made["imatrix"].path), made["imatrix"].sha256
        # What was made first, because the others need it, is not "up to date".
        made = {**self._make(self._files(weighed)), **made}
        for quant, tag in self.tags.items():
            modelfile.create(tag, made[f"{quant} Modelfile"].path)
        return made

    def describe(self, scratch: Path) -> list[str]:
        lines = self._plan(scratch).describe(self.threads)
        if self.computes:
            tokens = self.options.calibration_tokens
            lines.append(
                f"before that, an importance matrix is computed from about {tokens:,} tokens, with an f16 file"
            )
        return lines

    @property
    def _keeps_f16(self) -> bool:
        """Whether the file that an importance matrix is computed on is wanted itself."""
        return "f16" in self.quants and not self.options.split_max_size

    def _files(self, weighed: str | None) -> dict[str, dict[str, Any]]:
        """Every file that is wanted, and its inputs. `weighed` is the hash of the importance matrix."""
        files: dict[str, dict[str, Any]] = {}
        for name in (*self.quants, *self.options.extras):
            inputs = files[self._file(name)] = {**self.inputs, "quant": name}
            if name in self.quants and name not in PLAIN:
                inputs |= {"imatrix": weighed} if weighed else {}
                inputs |= {"types": self.options.types.inputs} if self.options.types else {}
            if self.options.split_max_size and name in self.quants:
                inputs["split"] = self.options.split_max_size
        return files | self.models

    def _plan(self, scratch: Path) -> Plan:
        """The plan. Raises what the export would, but for what only the weights' own numbers tell."""
        self._check_conversation()
        this, options = self.this, self.options
        names, output_folder = (*self.quants, *options.extras), this.output_folder
        request = self._request({name: scratch / name for name in names})
        ready = engine.plan(request, scratch, weighed=self.computes)
        weighed = digest.of_file(options.imatrix_file) if options.imatrix_file else None
        first = {}
        if self.computes:
            first = {self._file("imatrix"): self._imatrix_inputs(self._texts())}
            there = output_folder.valid(*next(iter(first.items())))
            weighed = there.sha256 if there else "to come"
        missing = output_folder.missing(first | self._files(weighed), force=options.force)
        if first.keys() & set(missing) and not self._keeps_f16 and not self._f16():
            lone = self._lone_f16(scratch / "f16")
            preflight.of_space(output_folder.path, engine.plan(lone, scratch).sizes)
        made = {name for name in names if self._file(name) not in missing}
        if len(made) < len(names):
            preflight.of_space(
                output_folder.path, {name: size for name, size in ready.sizes.items() if name not in made}
            )
        return ready

    def _request(self, outputs: Mapping[str, Path]) -> Request:
        this, options = self.this, self.options
        return Request(
            this.base.path,
            this.adapter,
            outputs,
            this.notes,
            self.matrix,
            options.split_max_size,
            options.kernels,
            this.own_tokenizer,
            options.types,
        )

    def _lone_f16(self, place: Path) -> Request:
        """What an importance matrix is computed on."""
        this = self.this
        return Request(this.base.path, this.adapter, {"f16": place}, this.notes, tokenizer=this.own_tokenizer)

    def _make(self, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Artifact]:
        def build(places: dict[str, Path]) -> None:
            for output, place in places.items():
                if text := files[output].get("modelfile"):
                    place.write_text(text, encoding="utf-8")
            by_name = {str(files[o]["quant"]): place for o, place in places.items() if "modelfile" not in files[o]}
            if not by_name:
                return
            self._check_data()
            engine.export(self._request(by_name), self.threads)
            for name, place in by_name.items() if self.options.check_files else ():
                if name not in MERGED:
                    self._verify(name, place)

        self._verify_there(files)
        self._say_outdated(files)
        unverified = () if self.options.check_files else [o for o, inputs in files.items() if _can_verify(inputs)]
        made = self.this.output_folder.make(files, build, force=self.options.force, unverified=unverified)
        for output, inputs in files.items():
            if "modelfile" not in inputs and (near := self.closeness.get(str(inputs["quant"]))):
                self.this.output_folder.note_closeness(output, near)
        return {_label(files[output]): artifact for output, artifact in made.items()}

    def _say_outdated(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Say why what is there already is made again, where its base, its adapter or its tokenizer is another now."""
        output_folder = self.this.output_folder
        for output, inputs in files.items():
            if "modelfile" not in inputs and (why := exported.outdated(output_folder, output, self.this)):
                log.info("%s %s; it is made again", (output_folder.path / output).as_posix(), why)

    def _check_data(self) -> None:
        """Raise ExportError where llama.cpp would read the run's own data otherwise than it was trained on."""
        data = self.this.output_folder.valid("data") if self.this.subfolder else None
        # Without pyarrow, which reads it, the probes say enough: the data was compared before the training.
        if data and find_spec("pyarrow"):
            vocabulary.check(self.this.base.path, data.path)
        self._check_conversation()

    def _check_conversation(self) -> None:
        """Raise ExportError where the verification would refuse what is made, for how conversations begin and end."""
        if self.options.check_files:
            vocabulary.check_conversation(self.this.base.path, self.this.tokenizer)

    def _verify(self, name: str, path: Path) -> None:
        """Raises Unverified."""
        found = self.verifier.verify(path)
        log.info("verified %s", found.text())
        if found.closeness:
            self.closeness[name] = asdict(found.closeness)

    def _verify_there(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Verify what an earlier export made without it. What is not valid is made again."""
        output_folder = self.this.output_folder
        for output, inputs in files.items() if self.options.check_files else ():
            there = output_folder.valid(output, inputs) if output_folder.unverified(output) else None
            if there is None:
                continue
            try:
                self._verify(str(inputs["quant"]), there.path)
            except Unverified as error:
                log.warning("%s; it was made with --no-verify, and is made again", error.message)
                output_folder.note_verified(output, valid=False)
            else:
                output_folder.note_verified(output, valid=True)

    def _texts(self) -> Texts:
        return calibration.texts(self.this, self.options.imatrix_data, self.options.calibration_tokens)

    def _imatrix_inputs(self, texts: Texts) -> dict[str, Any]:
        return {**self.inputs, "texts": [texts.name, texts.fingerprint], "tokens": self.options.calibration_tokens}

    def _make_imatrix(self) -> dict[str, Artifact]:
        texts, output = self._texts(), self._file("imatrix")
        self._verify_there({self._file("f16", split=False): {**self.inputs, "quant": "f16"}})
        made = self.this.output_folder.make(
            {output: self._imatrix_inputs(texts)},
            lambda places: self._compute(texts, places[output]),
            force=self.options.force,
        )
        return {"imatrix": made[output]}

    def _f16(self) -> Artifact | None:
        """The f16 file of an earlier export, if it is as it was made."""
        return self.this.output_folder.valid(self._file("f16", split=False), {**self.inputs, "quant": "f16"})

    def _compute(self, texts: Texts, out: Path) -> None:
        tokens = texts.tokens()
        there = self._f16()
        model = there.path if there else out.with_name("model-f16.gguf")
        try:
            if not there:
                log.info("writing an f16 file for the importance matrix; it is removed afterwards")
                engine.export(self._lone_f16(model), self.threads)
            imatrix.compute(model, tokens, texts.name, out, self.threads)
        finally:
            if not there:
                model.unlink(missing_ok=True)

    def _modelfiles(self) -> dict[str, dict[str, Any]]:
        """For each GGUF what Ollama has to know about it, where its template can be said in Ollama's language."""
        if not self.quants or self.options.split_max_size:
            return {}
        if not text_of(self.this.tokenizer):
            if self.options.ollama:
                raise ExportError(f"the base {self.this.base.name} has no chat template", "leave out --ollama")
            return {}
        try:
            text = modelfile.write(self.this.tokenizer, self.this.day)
        except ExportError as error:
            if self.options.ollama:
                raise
            log.info("no Modelfile for Ollama: %s", error.message)
            return {}
        found = {}
        for quant in self.quants:
            gguf = Path(self._file(quant)).name
            found[f"{self.this.subfolder}{self.this.name}-{quant}.Modelfile"] = {
                "modelfile": f"FROM ./{gguf}\n{text}",
                "quant": quant,
            }
        return found

    def _file(self, name: str, *, split: bool | None = None) -> str:
        folder = name in MERGED or (
            name in self.quants and (self.options.split_max_size is not None if split is None else split)
        )
        return f"{self.this.subfolder}{self.this.name}-{name}" + ("" if folder else ".gguf")


def _can_verify(inputs: Mapping[str, Any]) -> bool:
    return "modelfile" not in inputs and inputs["quant"] not in MERGED


def _label(inputs: Mapping[str, Any]) -> str:
    return f"{inputs['quant']} Modelfile" if "modelfile" in inputs else str(inputs["quant"])
