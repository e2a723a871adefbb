"""`ggufy push --ollama`: push the GGUF files of a run to ollama.com with Ollama itself."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from pathlib import Path

from ggufy.errors import HubError, RunError
from ggufy.hub.contents import leaks
from ggufy.runs.run import Run

log = logging.getLogger("ggufy")

KEYS = "https://ollama.com/settings/keys"


def check(run: Run, name: str) -> dict[str, Path]:
    """The Modelfiles that a push would send, by the name that each model gets. Raises HubError, RunError."""
    leaks.look_in_names(name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(:\w[\w.-]*)?", name):
        raise HubError(f"{name!r} is not the name of a model in an Ollama account", "for example --ollama you/mymodel")
    if shutil.which("ollama") is None:
        raise HubError("ollama is not installed, or not on the PATH", "install it, or leave out --ollama")
    files = _modelfiles(run)
    if not files:
        raise RunError(
            f"{run.path.as_posix()} has no GGUF file with a Modelfile yet", f"make them with `ggufy export {run.name}`"
        )
    if len(files) > 1 and ":" in name:
        raise HubError(f"{name} is one model, and the run has {len(files)}", "leave out what follows the ':'")
    return {name if len(files) == 1 else f"{name}:{quant}": path for quant, path in files.items()}


def dry_run(run: Run, name: str) -> list[str]:
    """What would be made and pushed, a line a model."""
    return [f"{path.as_posix()}, to https://ollama.com/{tag}" for tag, path in check(run, name).items()]


def push(run: Run, name: str) -> list[str]:
    """Create and push a model for each quant that has a Modelfile: NAME, or NAME:quant where there are several."""
    models = check(run, name)
    for tag, path in models.items():
        _ollama("create", tag, "-f", path.name, cwd=path.parent, hint="is the Ollama server running?")
        _ollama("push", tag, cwd=path.parent, hint=f"is the key of this machine at {KEYS}?")
    return list(models)


def _modelfiles(run: Run) -> dict[str, Path]:
    """Quant -> Modelfile, of those that are whole together with their GGUF."""
    found = {}
    for output in run.stamped("export/"):
        inputs = (run.stamp(output) or {"inputs": {}})["inputs"]
        gguf = f"{output.removesuffix('.Modelfile')}.gguf"
        if "modelfile" in inputs and run.valid(output) and run.valid(gguf):
            found[str(inputs["quant"])] = run.path / output
    return found


def _ollama(verb: str, *arguments: str, cwd: Path, hint: str) -> None:
    log.info("ollama %s %s", verb, arguments[0])
    done = subprocess.run(
        ["ollama", verb, *arguments], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("Error")), said[-1] if said else "no reason given")
        if re.search(r"sign(ed)? in|authorized|unauthorized|denied", reason, re.IGNORECASE):
            hint = f"`ollama signin`, or add the key of this machine at {KEYS}, under the account of the name."
        raise HubError(f"ollama {verb} {arguments[0]} failed: {reason}", f"{hint} The files are kept")
