"""Whether the pinned Unsloth has every function and argument that ggufy calls it with. No GPU is needed.

    python tests/train/unsloth_signatures.py [FOLDER]        `make unsloth-signatures`

Makes a virtual environment in FOLDER (a temporary one without it), installs the pinned versions there with a CPU torch,
and asks them in a process of its own, with UNSLOTH_ALLOW_CPU=1. torchvision, xformers and triton's accelerators are
left out: the import does without them, and their builds are for CUDA. Whether training works is for tests/gpu.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
import warnings
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"torchvision", "xformers"}
PINNED = ("unsloth", "unsloth_zoo")


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--inside":
        inside(Path(sys.argv[2]))
        return
    if len(sys.argv) > 1:
        check(Path(sys.argv[1]).absolute())
        return
    with tempfile.TemporaryDirectory(prefix="ggufy-unsloth-") as name:
        check(Path(name) / "venv")


def check(folder: Path) -> None:
    """Install what is missing and look at it."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install(python)
    with tempfile.TemporaryDirectory(prefix="ggufy-unsloth-") as scratch:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("UNSLOTH_", "PYTHONPATH"))}
        env |= {"UNSLOTH_ALLOW_CPU": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([python, __file__, "--inside", scratch], cwd=scratch, env=env, text=True, check=False)
        strays = sorted(path.name for path in Path(scratch).iterdir() if path.name != "run")
    if strays:
        print(f"WRONG  importing it left {', '.join(strays)} in the current folder")
    sys.exit(done.returncode or bool(strays))


def install(python: Path) -> None:
    """The versions of pyproject.toml: Unsloth's own first, then what they need, but for what needs CUDA."""
    try:
        import tomllib
    except ModuleNotFoundError:
        sys.exit("this script reads pyproject.toml with tomllib: run it with Python 3.11 or later")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    own = [requirement for requirement in extras["unsloth"] if not requirement.startswith("ggufy")]
    train = [requirement.partition(";")[0].strip() for requirement in extras["train"]]
    light = [requirement for requirement in project["dependencies"] if not requirement.startswith("llama-cpp-python")]
    pip(python, "--no-deps", *own)
    asked = "import importlib.metadata as m, json; print(json.dumps([r for n in {} for r in m.requires(n)]))"
    listed = subprocess.run([python, "-c", asked.format(PINNED)], capture_output=True, text=True, check=True)
    needed = [requirement for requirement in json.loads(listed.stdout) if "extra ==" not in requirement]
    rest = [requirement for requirement in needed if name_of(requirement) not in {*LEFT_OUT, *PINNED}]
    pip(python, *light, *train, *rest)


def pip(python: Path, *requirements: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def inside(scratch: Path) -> None:
    """What runs in that environment."""
    from ggufy.recipe import recipe
    from ggufy.train import job

    work = job.Job(
        recipe=recipe.load("3b_qlora", ["lora.dora=true"]),
        base=scratch / "run/base",
        data=scratch / "run/data",
        checkpoints=scratch / "run/checkpoints",
        metrics=scratch / "run/metrics.jsonl",
        identity="",
    )
    job._calm(work)
    # It says so itself where something it has to patch was imported before it.
    warnings.filterwarnings("error", ".*should be imported before")
    unsloth = import_module(job.BACKENDS["unsloth"])
    trainer = unsloth.trainer

    import torch
    from unsloth.utils import packing

    wrong = [
        *missing(
            unsloth.FastLanguageModel.from_pretrained, unsloth.loading(work, torch.bfloat16), via={"local_files_only"}
        ),
        *missing(unsloth.FastLanguageModel.get_peft_model, unsloth.adapting(work), via={"use_dora"}, given=1),
        *missing(trainer.SFTTrainer.__init__, dict.fromkeys(PARTS), given=1),
        *missing(trainer.config.SFTConfig, dict.fromkeys(settings(work, trainer.config))),
        *packed(packing, torch),
    ]
    compiled = (work.metrics.parent / job.COMPILED).absolute().as_posix()
    from unsloth_zoo import compiler

    if compiled != compiler.UNSLOTH_COMPILE_LOCATION:
        wrong.append(f"it compiles to {compiler.UNSLOTH_COMPILE_LOCATION}, not to {compiled}")
    if unsloth.FastLanguageModel.__module__.partition(".")[0] != "unsloth":
        wrong.append("FastLanguageModel is not Unsloth's")
    for line in wrong:
        print("WRONG ", line)
    from importlib import metadata

    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in (*PINNED, "torch", "transformers", "trl", "peft")
    )
    print(f"{len(wrong)} wrong, with {versions}")
    sys.exit(bool(wrong))


PARTS = ("model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class")


def missing(call: object, arguments: dict[str, object], via: set[str] = frozenset(), given: int = 0) -> list[str]:  # type: ignore[assignment]
    """Arguments that the signature does not name; those in `via` may go through its **kwargs."""
    parameters = inspect.signature(call).parameters  # type: ignore[arg-type]
    name = getattr(call, "__qualname__", str(call))
    named = [key for key, kind in parameters.items() if kind.kind in (kind.POSITIONAL_OR_KEYWORD, kind.KEYWORD_ONLY)]
    wrong = [f"{name} has no argument {key}" for key in arguments if key not in named and key not in via]
    through = any(kind.kind is kind.VAR_KEYWORD for kind in parameters.values())
    wrong += [f"{name} takes no other arguments, such as {key}" for key in via & arguments.keys() if not through]
    print(f"{name}: {len(arguments)} arguments, {len(wrong)} wrong")
    return wrong if len(parameters) > given else [f"{name} takes nothing"]


def settings(work: object, config: object) -> dict[str, object]:
    """What ggufy passes to SFTConfig, seen by a stand-in in its place."""
    import types

    import torch

    seen: dict[str, object] = {}
    real = config.SFTConfig  # type: ignore[attr-defined]
    config.SFTConfig = lambda **named: seen.update(named) or types.SimpleNamespace(n_gpu=1)  # type: ignore[attr-defined,func-returns-value]
    try:
        config.arguments(work, torch.bfloat16, checkpointing=False)  # type: ignore[attr-defined]
    finally:
        config.SFTConfig = real  # type: ignore[attr-defined]
    return seen


def packed(packing: object, torch: object) -> list[str]:
    """Whether the lengths of a packed batch are what Unsloth's attention asks for."""
    from ggufy.train import batches

    rows = [{"input_ids": [5] * 7, "labels": [5] * 7, "seq_lengths": [4, 3]}]
    batch = batches.Collate(0, flat=True)([*rows, *rows])
    found = packing.get_packed_info_from_kwargs(dict(batch), torch.device("cpu"))  # type: ignore[attr-defined]
    if found is None:
        return ["get_packed_info_from_kwargs does not know packed_seq_lengths"]
    starts = found[1].tolist()
    return [] if starts == [0, 4, 7, 11, 14] else [f"packed conversations begin at {starts}, not at 0, 4, 7, 11, 14"]


if __name__ == "__main__":
    main()
