"""Run llama.cpp's own converter in a separate process, then its quantizer, for architectures other than Llama.

The converter is llama.cpp's `convert_hf_to_gguf.py`, unpacked by `make vendor` or lying where GGUFY_LLAMA_CPP says. It
calls transformers with `trust_remote_code=True`, so a model folder that brings code is refused before it is started.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ggufy import installed
from ggufy.errors import ExportError, ModelError
from ggufy.export.converter import quantizing
from ggufy.export.families import FAMILIES
from ggufy.export.families.family import Planned
from ggufy.export.gguf.tensor_types import TypeOptions
from ggufy.export.imatrix import Imatrix
from ggufy.model import architecture, text_part
from ggufy.model.safetensors import FOUR_BIT, Checkpoint, Tensor
from ggufy.system import digest

log = logging.getLogger("ggufy")

_SCRIPT = "convert_hf_to_gguf.py"
_DIRECT = ("f32", "f16", "bf16")
# What the converter imports beyond ggufy's own needs, by the name pip has for it.
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "sentencepiece": "sentencepiece",
    "google.protobuf": "protobuf",
}
_FLOATS = ("F32", "F16", "BF16", FOUR_BIT)
# Masks and counters that some checkpoints hold; they are computed, not learnt, and the converter drops them too.
_COMPUTED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".position_ids")
_HEADER = 32 << 20  # the largest vocabularies, with their merges

# The converter as its users run it, but for one thing: it ends when the process that wants its result is gone, so that
# it never writes into the file of a later attempt. Nobody writes to that pipe; it closes with the last of its holders.
_RUN = """
import sys
sys.path[0] = sys.argv[1]
import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def is_foreign(base: Path) -> bool:
    """Whether a model folder is of an architecture that ggufy does not write itself."""
    return architecture.of(text_part.settings(_read_json(base / "config.json"))) not in FAMILIES


def converter() -> Path:
    """The path of llama.cpp's converter. Raises ExportError where there is none."""
    own = os.environ.get("GGUFY_LLAMA_CPP")
    folder = Path(own).resolve() if own else Path(__file__).parents[3] / "vendor" / "llama.cpp"
    script = folder / _SCRIPT
    if not script.is_file():
        place = f"GGUFY_LLAMA_CPP is {own}, but no {_SCRIPT} is there" if own else f"no {_SCRIPT} is in {folder}"
        raise ExportError(
            f"families that ggufy does not know need llama.cpp's converter: {place}",
            "in a source checkout run `make vendor`, or set GGUFY_LLAMA_CPP to a folder with llama.cpp's sources",
        )
    return script


def fingerprint() -> str:
    """What the converter is: another llama.cpp may write another file."""
    script = converter()
    sources = [script, *sorted((script.parent / "conversion").glob("*.py"))]
    return digest.of_values([digest.of_file(path) for path in sources])


def check(folder: Path) -> None:
    """Whether a model folder can go through the converter here. Raises ExportError or ModelError; runs nothing."""
    refuse_code(folder)
    config = _read_json(folder / "config.json")
    architecture.refuse_other_task(config, folder.as_posix())
    script = converter()
    if missing := [package for module, package in PACKAGES.items() if not _installed(module)]:
        raise ExportError(
            f"llama.cpp's converter needs {', '.join(missing)}, which ggufy's own export does not need",
            installed.command_for(*missing),
        )
    inner = config.get("text_config") or {}
    places = [*([inner] if inner.get("architectures") else []), config]
    names = [name for place in places if (name := architecture.of(place)) != "none"]
    known = _architectures(script)
    if not names:
        raise ModelError(f"{folder.as_posix()}: config.json names no architecture", "name a model folder")
    if known and known.isdisjoint(names):
        plain = architecture.by_type(config)
        raise ExportError(
            f"{folder.as_posix()}: llama.cpp's converter does not know the architecture {names[0]}",
            f"if it is a {plain}, as transformers loads it by model_type, say so under architectures in config.json"
            if plain
            else "a newer llama.cpp may know it: set GGUFY_LLAMA_CPP to its folder",
        )


def brings_code(folder: Path) -> bool:
    """Whether a model folder has code of its own, which never runs here."""
    try:
        refuse_code(folder)
    except ModelError:
        return True
    return False


def refuse_code(folder: Path) -> None:
    """Raise ModelError for a model folder that brings Python code, or asks for some from the Hub."""
    hint = "no code from a model repository runs in ggufy; use a model that transformers supports by itself"
    if script := next(folder.rglob("*.py"), None):
        raise ModelError(f"{folder.as_posix()}: the model brings code: {script.relative_to(folder).as_posix()}", hint)
    for path in sorted(folder.glob("*config.json")):
        keys: set[str] = set()
        _read_json(path, keys)
        if "auto_map" in keys:
            raise ModelError(f"{path.as_posix()}: auto_map asks for code of the model's own", hint)


def plan(base: Path, weights: Checkpoint) -> list[Planned]:
    """Every tensor of the checkpoint under its own name, for merging an adapter into a folder of the same kind."""
    quantized = _read_json(base / "config.json").get("quantization_config") or {}
    # Weights in bitsandbytes' 4 bits are read as what they stand for.
    if (method := quantized.get("quant_method", "an unknown method")) != "bitsandbytes" and quantized:
        raise ExportError(
            f"{base.as_posix()}: the base is quantized already ({method})", "name the 16-bit base it was made from"
        )
    planned = []
    for tensor in weights.tensors.values():
        if tensor.dtype in _FLOATS:
            planned.append(Planned(tensor.name, tensor.name, tensor.shape))
        elif not tensor.name.endswith(_COMPUTED):
            raise ExportError(
                f"{weights.where}: {tensor.name} has type {tensor.dtype}, which cannot be merged",
                "use a base in bf16, f16 or f32",
            )
    return planned


def sizes(weights: Checkpoint, quants: Iterable[str]) -> dict[str, int]:
    """Bytes by output, and under `intermediate` what lies beside them while they are made. Estimates from above."""
    found = {quant: _HEADER + math.ceil(sum(_size(t, quant) for t in weights.tensors.values())) for quant in quants}
    kinds = {_kind(quant) for quant in found}
    return found | {
        "intermediate": max(
            (_HEADER + math.ceil(sum(_size(t, kind) for t in weights.tensors.values())) for kind in kinds), default=0
        )
    }


def write(
    folder: Path,
    outputs: Mapping[str, Path],
    general: Mapping[str, str],
    scratch: Path,
    threads: int,
    imatrix: Imatrix | None = None,
    types: TypeOptions | None = None,
) -> None:
    """Make each output, a GGUF by the name of its quant, from a 16-bit model folder with the adapter already merged.

    `general` are texts under `general.`, `types` what is asked about the types in quants. `scratch` is a folder for the
    converter's file, which is as large as the model and removed in any case. Raises ExportError or ModelError.
    """
    refuse_code(folder)
    script = converter()
    # The converter writes the name itself, of any length.
    overrides: dict[str, str | int] = {f"general.{key}": value for key, value in general.items() if key != "name"}
    wanted: dict[str, list[str]] = {}
    for quant in outputs:
        wanted.setdefault(_kind(quant), []).append(quant)
    for kind, quants in wanted.items():
        made = scratch / f"converted-{kind}.gguf"
        try:
            _convert(script, folder, made, kind, general.get("name"), threads)
            quantized = {quant: outputs[quant] for quant in quants if quant != kind}
            if quantized:
                quantizing.write(made, quantized, overrides, threads, imatrix, types)
            if kind in quants:
                quantizing.copy(made, outputs[kind], kind, overrides, threads)
        finally:
            made.unlink(missing_ok=True)


def _convert(script: Path, folder: Path, out: Path, kind: str, name: str | None, threads: int) -> None:
    log.info("llama.cpp's converter reads %s", folder.as_posix())
    out.unlink(missing_ok=True)
    command = [sys.executable, "-c", _RUN, str(script.parent), str(script), str(folder.resolve())]
    # Relative: the converter takes braces in a path for a template.
    command += ["--outfile", out.name, "--outtype", kind, *([f"--model-name={name}"] if name else [])]
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "NO_LOCAL_GGUF")}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    theirs, ours = os.pipe()
    try:
        with subprocess.Popen(
            command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=out.parent, env=environment
        ) as process:
            try:
                said = process.communicate()[1].decode("utf-8", "replace")
            except BaseException:
                # Ctrl-C: the converter goes before its file does.
                process.kill()
                raise
    finally:
        os.close(ours)
        os.close(theirs)
    if process.returncode or not out.is_file():
        raise _failure(process.returncode, said)


def _failure(code: int, said: str) -> ExportError:
    """The converter's end, from its exit code and what it wrote to stderr."""
    memory = "it needs about as much memory as the model's largest tensors; close other programs"
    if code < 0:
        return ExportError(
            f"llama.cpp's converter was killed by {signal.Signals(-code).name}",
            f"too little memory is the usual reason; {memory}" if -code == signal.SIGKILL else None,
        )
    # Without the marks below a traceback's lines, and the comments in them.
    lines = [line.partition("  # ")[0].strip() for line in said.splitlines() if line.strip(" ^~")]
    errors = [n for n, line in enumerate(lines) if re.match(r"(ERROR:|[A-Za-z_][\w.]*(Error|Exception)\b)", line)]
    number = errors[-1] if errors else len(lines) - 1
    reason = lines[number].removeprefix("ERROR:hf-to-gguf:") if lines else f"no reason given, exit code {code}"
    if number > 0 and ":" not in reason:
        # A bare assertion: the line that it is.
        reason += f": {lines[number - 1]}"
    if re.search(r"MemoryError|allocate", reason):
        return ExportError(f"llama.cpp's converter ran out of memory: {reason}", memory)
    if "pre-tokenizer was not recognized" in reason:
        return ExportError(
            "llama.cpp's converter does not recognise the model's tokenizer",
            "try a newer llama.cpp, which may know it: set GGUFY_LLAMA_CPP to its folder",
        )
    return ExportError(f"llama.cpp's converter failed: {reason}", "copy the model folder again: it may be incomplete")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _architectures(script: Path) -> set[str]:
    """The text architectures in the converter's table, which is read, not run. Empty where it keeps none."""
    table = script.parent / "conversion" / "__init__.py"
    if not table.is_file():
        return set()
    for node in ast.parse(table.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)):
            continue
        if ast.unparse(node.target) == "TEXT_MODEL_MAP":
            return {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    return set()


def _kind(quant: str) -> str:
    """The converter's type from which an output is made: K-quants from F16, as in the Llama path."""
    return quant if quant in _DIRECT else "f16"


def _size(tensor: Tensor, quant: str) -> float:
    """Bytes of a tensor in a quant, from above: mixtures take up to one type more than their name says."""
    count = math.prod(tensor.shape)
    columns = tensor.shape[-1] if tensor.shape else 1
    if len(tensor.shape) < 2 or quant == "f32":
        return 4 * count
    if quant in _DIRECT or columns % 32:
        return 2 * count
    digit = re.search(r"\d", quant)
    bits = int(digit.group()) + 1.5 if digit else 8.5
    # Embeddings and rows that K-quants cannot divide get Q8_0 at most.
    coarse = columns % 256 or "embed" in tensor.name or "head" in tensor.name
    return count * (max(bits, 8.5) if coarse else bits) / 8


def _read_json(path: Path, keys: set[str] | None = None) -> dict[str, Any]:
    """A JSON object; the names of all its members, however deep, are added to `keys`."""

    def collect(members: dict[str, Any]) -> dict[str, Any]:
        if keys is not None:
            keys.update(members)
        return members

    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_hook=collect)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.as_posix()} cannot be read: {error}", "copy the model folder again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path.as_posix()} is not a JSON object", "copy the model folder again")
    return found
