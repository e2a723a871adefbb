"""Train one trial in a separate process: `python -m ggufy.sweeps.child RECIPE RUN ANSWER PARENT`.

Its work is that of `ggufy train --recipe RECIPE --run RUN`, and it leaves word in the file ANSWER of what came of it.
In a process of its own the memory of a training goes back to the system, and what kills it does not kill the sweep.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ggufy import errors, pipeline
from ggufy.errors import Interrupted
from ggufy.runs.run import Run
from ggufy.system import keys
from ggufy.system.disk import write_json
from ggufy.system.progress import show_progress

_TELL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG


def main() -> int:
    recipe, name, answer, parent = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    if sys.platform == "linux":
        # A sweep that is killed leaves no training behind: this one saves a checkpoint and ends.
        ctypes.CDLL(None).prctl(_TELL_AT_PARENTS_DEATH, signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    show_progress()
    code = 0
    said: dict[str, Any]
    try:
        keys.load()
        said = {"facts": facts(pipeline.train(recipe, run_name=name))}
    except BaseException as error:  # noqa: BLE001 - whatever it was, the sweep is told
        shown = errors.from_lower(error)
        code = shown.code if isinstance(shown, Interrupted) else 1
        said = {"kind": type(shown).__name__, "message": shown.message, "hint": shown.hint}
        print(f"{shown.message}\n{shown.hint}", file=sys.stderr)  # noqa: T201 - into the trial's log
    write_json(answer, said)
    return code


def facts(this: Run) -> dict[str, Any]:
    """What makes the losses of two trials comparable, or not."""
    frozen = this.frozen
    return {
        "held_out": held_out(this.path / "data" / "eval.arrow"),
        "data": frozen["data"]["fingerprint"],
        "base": frozen["base"]["fingerprint"],
    }


def held_out(path: Path) -> str | None:
    """A digest of the held-out tokens and of which of them count; None where there are none."""
    import datasets

    if not path.is_file():
        return None
    digest = hashlib.sha256()
    for row in datasets.Dataset.from_file(path.as_posix()):
        digest.update(json.dumps([row["input_ids"], row["labels"]]).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
