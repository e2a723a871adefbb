"""`ggufy doctor`: check what works on this machine, and give the command that fixes what does not.

Versions are read from the packages' records; nothing heavy is imported unless there is a GPU to ask about.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ggufy import installed
from ggufy.runs import run
from ggufy.system import machine, user_folders

OK, MISSING, BROKEN = "ok", "missing", "broken"
"""It works; it is optional and missing, or could be better; it has to be fixed."""

_SECONDS = 5.0
_LOW, _TOO_LOW = 10e9, 1e9
_TRAINING = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow", "bitsandbytes")


@dataclass(frozen=True)
class Check:
    """One line of the report. `mend` is a command or what to do, empty if there is nothing to fix."""

    name: str
    state: str
    text: str
    mend: str = ""


def checks() -> Iterator[Check]:
    """Everything, one at a time: the slow ones come last. Never raises: what fails is said in its own line."""
    card = machine.card()
    parts: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("command", _command),
        ("packages", _core),
        ("training", lambda: _training(card)),
        ("GPU", lambda: _gpu(card)),
        ("unsloth", lambda: _unsloth(card)),
        ("llama.cpp", _llama_cpp),
        ("kernels", _kernels),
        ("memory", _memory),
        ("disk", _disks),
        ("Hub", _hub),
    ]
    for name, part in parts:
        try:
            yield from part()
        except Exception as error:  # noqa: BLE001 - a doctor that dies of what it finds helps nobody
            reason = " ".join(str(error).split())[:200]
            yield Check(
                name, BROKEN, f"{type(error).__name__}: {reason}", installed.command(options="--force-reinstall")
            )


def healthy(found: list[Check]) -> bool:
    return all(check.state != BROKEN for check in found)


def in_lines(check: Check) -> list[str]:
    """A check for people."""
    lines = [f"{check.state:<8} {check.name:<12} {check.text}"]
    return lines + ([f"{'':<21} -> {check.mend}"] if check.mend else [])


def _python() -> Iterator[Check]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 10) <= sys.version_info[:2] < (3, 14):
        yield Check("Python", OK, text)
    else:
        yield Check("Python", BROKEN, f"{text}; ggufy needs 3.10 to 3.13", "install Python 3.12 and ggufy in it")


def _command() -> Iterator[Check]:
    """Whether `ggufy` is this ggufy: another distribution on the public index has a program of that name."""
    if rivals := installed.rivals():
        text = f"{', '.join(rivals)} is another program with a command named `ggufy`: each takes the other's place"
        again = installed.command(options="--force-reinstall --no-deps")
        gone = installed.removal(*(rival.split()[0] for rival in rivals))
        yield Check("command", BROKEN, text, f"{gone}, then {again}")
        return
    script, first = Path(sys.executable).parent / "ggufy", shutil.which("ggufy")
    if first and script.exists() and not Path(first).samefile(script):
        text = f"`ggufy` calls {first}, which is not this ggufy"
        yield Check("command", MISSING, text, f"call {script}, or put {script.parent} first in PATH")


def requirements(extra: str = "") -> dict[str, Any]:
    """What ggufy's own record says it needs, by package: all the time, or with an extra. Empty without a record."""
    from packaging.requirements import Requirement

    try:
        listed = metadata.requires(installed.DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for text in listed:
        need = Requirement(text)
        always = need.marker is None or need.marker.evaluate({"extra": ""})
        if not always and extra and need.marker is not None:
            if need.marker.evaluate({"extra": extra}):
                found[need.name] = need
        elif always and not extra:
            found[need.name] = need
    return found


def misfit(need: Any) -> str:
    """What is wrong with the installed version of a requirement; empty where it fits, or is not installed."""
    have = machine.version(need.name)
    if have is None or need.specifier.contains(have.partition("+")[0], prereleases=True):
        return ""
    return f"{need.name} {have} is not {need.specifier}"


def _core() -> Iterator[Check]:
    needs = requirements()
    if not needs:
        yield Check("packages", MISSING, "ggufy is not installed, but run from its folder", installed.command())
        return
    absent = [name for name in needs if machine.version(name) is None]
    wrong = [problem for need in needs.values() if (problem := misfit(need))]
    if absent or wrong:
        text = "; ".join([*(f"{name} is not installed" for name in absent), *wrong])
        yield Check("packages", BROKEN, text, installed.command(options="--upgrade"))
    else:
        yield Check("packages", OK, f"the {len(needs)} that export and chat need are compatible")


def _training(card: machine.Card | None) -> Iterator[Check]:
    have = {name: version for name in _TRAINING if (version := machine.version(name))}
    if "torch" not in have:
        yield Check("training", MISSING, "torch is not installed; export and chat work", installed.command("train"))
        return
    needs = requirements("train")
    absent = [f"{name} is not installed" for name in needs if machine.version(name) is None]
    wrong = [problem for need in needs.values() if (problem := misfit(need))]
    if absent or wrong:
        yield Check("training", BROKEN, "; ".join(absent + wrong), installed.command("train", options="--upgrade"))
    else:
        listed = ", ".join(f"{name} {version}" for name, version in have.items() if name != "pyarrow")
        fits = "" if needs else " (not compared with what ggufy needs: its package metadata is missing here)"
        yield Check("training", OK, f"{listed}{fits}")
    if card and "+cpu" in have["torch"]:
        yield Check(
            "torch",
            BROKEN,
            f"torch {have['torch']} is the CPU build, but there is a {card.name}",
            f"{installed.removal('torch')}, then install its CUDA build as pytorch.org says for this machine",
        )


def _gpu(card: machine.Card | None) -> Iterator[Check]:
    if card is None:
        text = "none is visible; training is slow here, except for the tiny recipe"
        yield Check("GPU", MISSING, text, "use a machine with a GPU, such as a free Colab T4, to train 1B and 3B")
        return
    kind = "bf16" if card.bf16 else "no bf16: fp16 is used"
    driver = f", driver {card.driver}" if card.driver else ""
    yield Check("GPU", OK, f"{card.name}, {card.bytes / 2**30:.1f} GiB, {kind}{driver}")
    version = machine.version("torch")
    if version is None or "+cpu" in version:
        return
    import torch

    if not torch.cuda.is_available():
        text = f"torch {version} (CUDA {torch.version.cuda}) cannot use it; the driver is {card.driver or 'not known'}"
        yield Check("CUDA", BROKEN, text, "update the driver, or install a torch built for an older CUDA")
        return
    yield Check("CUDA", OK, f"torch {version} with CUDA {torch.version.cuda}")
    if machine.version("bitsandbytes"):
        yield _bitsandbytes(torch)


def _bitsandbytes(torch: Any) -> Check:
    """A few numbers into 4 bits and back on the GPU: its library is only looked for when it is called."""
    try:
        import bitsandbytes.functional as bnb

        values = torch.linspace(-1, 1, 256, device="cuda")
        packed, state = bnb.quantize_4bit(values, quant_type="nf4")
        off = float((bnb.dequantize_4bit(packed, state) - values).abs().max())
    except (RuntimeError, OSError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        return Check(
            "bitsandbytes", BROKEN, f"4 bits do not work: {reason}", installed.command("train", options="--upgrade")
        )
    # The widest gap of NF4's levels, between -1 and -0.696, is 0.304.
    if off > 0.16:
        return Check(
            "bitsandbytes", BROKEN, f"4 bits are off by {off:.2f}", installed.command("train", options="--upgrade")
        )
    return Check("bitsandbytes", OK, "4 bits work on the GPU")


def _unsloth(card: machine.Card | None) -> Iterator[Check]:
    version = machine.version("unsloth")
    if version is None:
        if card:
            yield Check("unsloth", MISSING, "not installed", installed.command("unsloth"))
        return
    wrong = [problem for need in requirements("unsloth").values() if (problem := misfit(need))]
    if "+cpu" in (machine.version("torch") or ""):
        wrong.append("it needs a torch with CUDA, and its torchvision breaks a CPU torch")
        mend = installed.removal("unsloth", "unsloth_zoo", "torchvision")
    else:
        mend = installed.command("unsloth", options="--upgrade")
    yield Check("unsloth", BROKEN, "; ".join(wrong), mend) if wrong else Check("unsloth", OK, version)


def _llama_cpp() -> Iterator[Check]:
    version = machine.version("llama-cpp-python")
    wanted = f"llama-cpp-python{'==' + version if version else ''}"
    mend = installed.command_for(wanted, options="--force-reinstall --no-cache-dir")
    try:
        import llama_cpp

        said = llama_cpp.llama_print_system_info().decode()
        offload = bool(llama_cpp.llama_supports_gpu_offload())
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        yield Check("llama.cpp", BROKEN, f"cannot be loaded: {' '.join(str(error).split())[:160]}", mend)
        return
    features = [part.split("=")[0].strip() for part in said.replace("CPU :", "").split("|") if "= 1" in part]
    where = "GPU and CPU" if offload else "CPU"
    yield Check("llama.cpp", OK, f"llama-cpp-python {version}, {where}: {' '.join(features)}")


def _kernels() -> Iterator[Check]:
    from ggufy.export.kernels import build, native

    if runs := native.variants():
        others = f" (also {', '.join(runs[1:])})" if runs[1:] else ""
        yield Check("kernels", OK, f"ggufy's own, {runs[0]}{others}")
        return
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    why = "ggufy's own are not compiled; they need GCC 12 or clang"
    if compiler is None:
        why = "ggufy was installed without a C compiler"
    elif native.refused():
        why = "ggufy's own are compiled from other source, or for another machine"
    again = installed.command(options=f"--force-reinstall --no-deps --no-binary {installed.DISTRIBUTION}")
    if (Path(__file__).parents[2] / "pyproject.toml").is_file():
        again = f"python {os.path.relpath(build.__file__)} {os.path.relpath(build.FOLDER)}"
    first = "" if compiler else "install a C compiler, GCC 12 or clang (Debian: apt-get install build-essential), then "
    yield Check("kernels", MISSING, f"llama.cpp's, several times slower: {why}", first + again)


def _memory() -> Iterator[Check]:
    whole, now = machine.memory()
    text = f"{now / 1e9:.1f} of {whole / 1e9:.1f} GB available"
    if now < _TOO_LOW:
        yield Check("memory", BROKEN, text, "close other programs")
    else:
        yield Check("memory", OK, text)


def _disks() -> Iterator[Check]:
    from huggingface_hub import constants

    folders = {"runs": run.runs_folder(), "Hub cache": Path(constants.HF_HUB_CACHE), "cache": user_folders.cache()}
    variables = {"runs": "GGUFY_RUNS", "Hub cache": "HF_HOME", "cache": "GGUFY_CACHE"}
    for name, folder in folders.items():
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        left = machine.free(folder)
        shown = folder.as_posix().replace(f"{Path.home().as_posix()}/", "~/")
        text = f"{left / 1e9:.1f} GB free for {shown}"
        mend = f"free some space, or set {variables[name]} to a folder on another disk"
        if not os.access(there, os.W_OK):
            mend = f"set {variables[name]} to a folder you may write to"
            yield Check(name, BROKEN, f"{shown} cannot be written to", mend)
        elif left < _TOO_LOW:
            yield Check(name, BROKEN, text, mend)
        else:
            yield Check(name, OK if left >= _LOW else MISSING, text, "" if left >= _LOW else mend)


def _hub() -> Iterator[Check]:
    """Who the Hub says we are, and whether that may write. The token itself is never shown."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield Check("Hub", MISSING, "offline: HF_HUB_OFFLINE is set; only what is in the cache is used")
        return
    token = get_token()
    if not token:
        yield Check("Hub", MISSING, "not logged in: needed for gated bases and to push", "hf auth login")
        return
    yield _login(f"{constants.ENDPOINT}/api/whoami-v2", token)


def _login(address: str, token: str) -> Check:
    import httpx

    # The client logs every request.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        answer = httpx.get(
            address, headers={"Authorization": f"Bearer {token}"}, timeout=_SECONDS, follow_redirects=True
        )
        if answer.status_code == 401:
            return Check("Hub", BROKEN, "it no longer accepts the token", "hf auth login")
        answer.raise_for_status()
        who = answer.json()
        name, access = str(who["name"]), who.get("auth", {}).get("accessToken", {})
    except httpx.HTTPError as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).replace(token, "...")[:160]
        return Check(
            "Hub", MISSING, f"cannot be reached: {reason}", "check the network; what is in the cache still works"
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Check("Hub", MISSING, f"{address} does not answer like the Hub", "check HF_ENDPOINT")
    if _writes(access):
        return Check("Hub", OK, f"logged in as {name}, may write")
    mend = "make a token with write access in the Hub's settings, then hf auth login"
    return Check("Hub", MISSING, f"logged in as {name}, may only read: no pushing", mend)


def _writes(access: dict[str, Any]) -> bool:
    """Whether a token may write to repositories: its role says so, or for a fine-grained one a permission."""
    if access.get("role") != "fineGrained":
        return access.get("role") == "write"
    scopes = access.get("fineGrained", {}).get("scoped", [])
    return any("repo.write" in scope.get("permissions", []) for scope in scopes)
