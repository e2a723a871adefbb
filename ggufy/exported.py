"""The GGUF models among the outputs of a run or a folder of exports."""

from __future__ import annotations

from pathlib import Path

from ggufy import ggml
from ggufy.errors import ChatError
from ggufy.export import layout
from ggufy.run import Run


def models(this: Run) -> dict[str, str]:
    """The GGUF models among the outputs of a run or a folder of exports, oldest first: output -> quant."""
    found = {}
    for output in this.stamped():
        inputs = (this.stamp(output) or {}).get("inputs") or {}
        if inputs.get("quant") in ggml.ftypes() and "modelfile" not in inputs:
            found[output] = str(inputs["quant"])
    return found


def first_file(path: Path) -> Path:
    """The file to load of a model that may be split into several."""
    return sorted(path.glob("*-00001-of-*.gguf"))[0] if path.is_dir() else path


def gguf_of(this: Run, quant: str | None = None) -> Path:
    """The GGUF file to talk to, of a run or a folder of exports: the newest, or the one of that quant.

    Raises ChatError where there is none.
    """
    wanted = layout.check_quants([quant])[0] if quant else None
    outputs = [output for output, kind in models(this).items() if wanted in (None, kind)]
    for output in reversed(outputs):
        if artifact := this.valid(output):
            return first_file(artifact.path)
    again = f"`ggufy export {this.name}{f' --quant {quant}' if quant else ''}`"
    if not this.exists:
        again = "the `ggufy export` that wrote there"
    if outputs:
        damaged = (this.path / outputs[-1]).as_posix()
        raise ChatError(f"{damaged} was removed or damaged since it was made, or is not sound", f"{again} mends it")
    named = f" in {quant}" if quant else ""
    raise ChatError(f"{this.path.as_posix()} has no GGUF file{named} yet", f"{again} makes one")
