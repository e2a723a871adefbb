"""The GGUF models among the outputs of a run or a folder of exports, and whether they are of what is there now."""

from __future__ import annotations

import os
from pathlib import Path

from ggufy.errors import ChatError
from ggufy.export.gguf import layout
from ggufy.hub import pull
from ggufy.llamacpp import library
from ggufy.runs import run
from ggufy.runs.run import Run
from ggufy.stages.model_source import TOKENIZER, ModelSource


def models(this: Run) -> dict[str, str]:
    """The GGUF models among the outputs of a run or a folder of exports, oldest first: output -> quant."""
    found = {}
    for output in this.stamped():
        inputs = (this.stamp(output) or {}).get("inputs") or {}
        if inputs.get("quant") in library.ftypes() and "modelfile" not in inputs:
            found[output] = str(inputs["quant"])
    return found


def outdated(this: Run, output: str, source: ModelSource) -> str | None:
    """What is other now than when an output was made of a source; None: nothing, or it was never made."""
    stamp = this.stamp(output)
    if stamp is None:
        return None
    before, now = stamp["inputs"], source.content
    # What an earlier ggufy did not note is not known to be another.
    if any(before.get(key, value) != value for key, value in now.items() if key != TOKENIZER):
        return "was made before its base or adapter changed"
    # That there is none, on the other hand, says that the base's was taken.
    old, new = before.get(TOKENIZER), now.get(TOKENIZER)
    if old == new:
        return None
    if new is None:
        return "was made with a tokenizer of the adapter's own, and it is to have the base's"
    other = "another" if old else "the base's"
    return f"was made with {other} tokenizer, and the adapter has its own"


def first_file(path: Path) -> Path:
    """The file to load of a model that may be split into several."""
    return sorted(path.glob("*-00001-of-*.gguf"))[0] if path.is_dir() else path


def gguf_of(what: str | os.PathLike[str] | Run | None, quant: str | None = None, branch: str | None = None) -> Path:
    """The GGUF file that a user means: a file, the newest one of a run or of a folder of exports, or one on the Hub.

    With `quant` the one of that quant. Raises ChatError where there is none.
    """
    if isinstance(what, str | os.PathLike) and (Path(what).suffix == ".gguf" or Path(what).is_file()):
        if not Path(what).is_file():
            raise ChatError(f"no file {Path(what).as_posix()}", "check the path")
        return Path(what)
    if isinstance(what, str) and pull.is_meant(what):
        return pull.gguf(what, branch, quant)
    return _newest(what if isinstance(what, Run) else run.output_folder(what), quant)


def _newest(this: Run, quant: str | None) -> Path:
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
        raise ChatError(
            f"{damaged} has been removed or damaged since it was made, or is not valid", f"replace it with {again}"
        )
    named = f" in {quant}" if quant else ""
    raise ChatError(f"{this.path.as_posix()} has no GGUF file{named} yet", f"make one with {again}")
