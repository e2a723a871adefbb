"""Compile kernels.c, once for each variant this machine's architecture has, into one shared library.

    python ggufy/export/kernels/build.py FOLDER

-O3 without fast-math reorders no float operation. -ffp-contract=off: a fused multiply-add rounds once where llama.cpp
rounds twice. -fno-math-errno and -fno-trapping-math let square roots and selects be single instructions; they change
no value. -fvisibility=hidden leaves only the kernels' names.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    "-std=c11 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -fPIC -fvisibility=hidden -Wall -Wextra".split()
)
_X86 = {
    "sse2": ["-DGGUFY_LANES=4", "-msse2"],
    "avx2": ["-DGGUFY_LANES=8", "-mavx2"],
    "avx512": ["-DGGUFY_LANES=16", "-mavx512f", "-mavx512dq", "-mprefer-vector-width=512"],
}
VARIANTS = {
    "x86_64": _X86,
    "amd64": _X86,
    "aarch64": {"neon": ["-DGGUFY_LANES=4"]},
    "arm64": {"neon": ["-DGGUFY_LANES=4"]},
}
GENERIC = {"generic": ["-DGGUFY_LANES=4"]}


def name() -> str:
    return "libggufy_kernels" + (".dylib" if sys.platform == "darwin" else ".so")


def build(folder: Path, compiler: str = "", extra: tuple[str, ...] = (), machine: str = "") -> Path:
    """Compile the library into `folder`. Raises OSError or CalledProcessError where that cannot be done."""
    command = shlex.split(compiler or os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]
    if compiler:
        command = shlex.split(compiler)
    variants = VARIANTS.get((machine or platform.machine()).lower(), GENERIC)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for number, (variant, flags) in enumerate(variants.items()):
            target = str(Path(scratch) / f"{variant}.o")
            dispatch = [] if number else ["-DGGUFY_DISPATCH"]
            define = f"-DGGUFY_VARIANT={variant}"
            subprocess.run([*command, *FLAGS, *flags, *dispatch, define, *extra, "-c", SOURCE, "-o", target], check=True)
            objects.append(target)
        library = folder / name()
        subprocess.run([*command, "-shared", *extra, *objects, "-o", library], check=True)
    return library


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))  # noqa: T201
