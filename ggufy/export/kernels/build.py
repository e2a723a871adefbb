"""Compile kernels.c and merge.c, once for each variant this machine's architecture has, into one shared library.

    python ggufy/export/kernels/build.py FOLDER

-O3 without fast-math reorders no float operation. -ffp-contract=off: a fused multiply-add rounds once where llama.cpp
rounds twice. -fno-math-errno and -fno-trapping-math let square roots and selects be single instructions; they change
no value. -fvisibility=hidden leaves only the kernels' names.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "kernels.c", FOLDER / "merge.c")
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
FLAGS += ["-fvisibility=hidden", "-Wall", "-Wextra"]
NEEDS = "GCC 12 or clang compiles them; CC names another compiler than the usual one"
_X86 = {
    "sse2": ["-DGGUFY_LANES=4", "-msse2"],
    "avx2": ["-DGGUFY_LANES=8", "-mavx2", "-mf16c"],
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


def fingerprint() -> str:
    """What tells this source, with its flags, from any other; empty where it is not there."""
    files = [*sorted(FOLDER.glob("*.[ch]")), FOLDER / "build.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if len(files) > 1 else ""


def _command(compiler: str) -> list[str]:
    wanted = compiler or os.environ.get("CC")
    try:
        words = shlex.split(wanted or sysconfig.get_config_var("CC") or "cc")
    except ValueError as error:
        raise OSError(f"the compiler is said to be {wanted}, which cannot be read: {error}") from None
    # The compiler that made Python need not be on this machine.
    return words if wanted or shutil.which(words[0]) else ["cc"]


def compiler() -> str | None:
    """Where the compiler is that `build` would start, or None where there is none."""
    return shutil.which(_command("")[0])


def variants(machine: str = "") -> dict[str, list[str]]:
    """The variants of an architecture, and what compiles each; the first runs everywhere."""
    return VARIANTS.get((machine or platform.machine()).lower(), GENERIC)


def build(folder: Path, compiler: str = "", extra: Sequence[str] = ()) -> Path:
    """Compile the library into `folder`. Raises OSError or CalledProcessError where that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / name()
    # What cannot be compiled anew is not to be found as it was.
    library.unlink(missing_ok=True)
    command = _command(compiler)
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for number, (variant, flags) in enumerate(variants().items()):
            defines = [f"-DGGUFY_VARIANT={variant}"]
            if number == 0:
                defines += ["-DGGUFY_DISPATCH", f'-DGGUFY_SOURCE="{fingerprint()}"']
            for source in SOURCES:
                objects.append(str(Path(scratch) / f"{source.stem}-{variant}.o"))
                compiling = [*command, *FLAGS, *flags, *defines, *extra, "-c", str(source), "-o", objects[-1]]
                subprocess.run(compiling, check=True)
        subprocess.run([*command, "-shared", *extra, *objects, "-o", str(library)], check=True)
    return library


def driver(
    source: Path, program: Path, variant: str, extra: Sequence[str] = (), compiler: str = "", machine: str = ""
) -> None:
    """Compile one variant with a program around it. Raises as `build` does."""
    flags = [*FLAGS, *variants(machine)[variant], f"-DGGUFY_VARIANT={variant}", f"-I{FOLDER}", *extra]
    subprocess.run([*_command(compiler), *flags, str(source), *map(str, SOURCES), "-o", str(program)], check=True)


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1])))  # noqa: T201
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: the kernels cannot be compiled: {error}\n  {NEEDS}")
