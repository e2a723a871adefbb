"""Make the GGUF of a tuned file's base model, for `--compare base`: made once, and kept with the run."""

from __future__ import annotations

import logging
from pathlib import Path

from ggufy.errors import ChatError
from ggufy.evaluate.session import model_files
from ggufy.runs import run
from ggufy.stages import model_source
from ggufy.system import machine

log = logging.getLogger("ggufy")


def of(tuned: Path) -> Path:
    """The GGUF of that file's base, in the same quant. Raises ChatError if its base is not known."""
    place = run.holding(tuned)
    found = model_source.of_output_folder(place[0]) if place else None
    if place is None or found is None:
        raise ChatError(
            f"{tuned.as_posix()} is not in a run, so its base is not known", "name the file to compare it with"
        )
    if found.adapter is None:
        raise ChatError(f"{tuned.as_posix()} is not a fine-tune: it is a base itself", "name another file or run")
    output_folder, output = place
    quant = model_files.base_quant(str((output_folder.stamp(output) or {"inputs": {}})["inputs"].get("quant", "q8_0")))
    # Not `quant`: among the models of a run this is none of them.
    inputs = {**model_files.made_of(found, None), "base_in": quant}

    def build(places: dict[str, Path]) -> None:
        log.info("making the base %s in %s, once", found.base.name, quant)
        model_files.make(found, None, {quant: places[target]}, machine.cores())

    target = f"chat/base-{quant}.gguf"
    there = output_folder.valid(target, inputs)
    if there is None:
        with output_folder.lock():
            # Forced: chat/ in a run is ggufy's own, and a file that has lost its stamp is made again.
            there = output_folder.make({target: inputs}, build, force=True)[target]
    return there.path
