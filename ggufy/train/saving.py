"""Save the finished adapter to a folder: the same layout from every backend, the same bytes on any day."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ggufy.errors import TrainError
from ggufy.train import checkpoints
from ggufy.train.job import Job

WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def save(model: Any, job: Job, out: Path, *, best: Path | None = None) -> None:
    """Write the adapter with the tokenizer of its base; `best` is the checkpoint whose weights it gets."""
    if best is not None and (problem := checkpoints.damage(best)):
        raise TrainError(
            f"the best checkpoint, {best.as_posix()}, cannot be used: {problem}",
            f"give --fresh to train again, or take the last one with `ggufy export {_last(job)}`",
        )
    if out.exists():
        shutil.rmtree(out)
    try:
        model.save_pretrained(out, safe_serialization=True)
    except Exception as error:
        if problem := checkpoints.no_room(error):
            raise TrainError(
                f"{out.as_posix()}: {problem} while the adapter was written; the checkpoints are kept",
                "free some space and run the same command again: it trains no step twice",
            ) from error
        raise
    if best is not None:
        shutil.copyfile(best / WEIGHTS, out / WEIGHTS)
    (out / "README.md").unlink(missing_ok=True)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    recipe = job.recipe
    config["base_model_name_or_path"] = recipe.model.base
    config["revision"] = recipe.model.revision
    # Unsloth notes here which class it has changed, which plain peft has no use for.
    config["auto_mapping"] = None
    # peft keeps these as sets, whose order changes from process to process.
    config["target_modules"] = sorted(job.targets)
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n", encoding="utf-8")
    for name in _TOKENIZER_FILES:
        if (job.base / name).is_file():
            shutil.copyfile(job.base / name, out / name)


def _last(job: Job) -> str:
    last = checkpoints.last_sealed(job.checkpoints)
    return last.as_posix() if last else "FOLDER"
