"""Compiles ggufy's kernels while it is installed or packed. Without a compiler it goes on without them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg,misc]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "ggufy" / "export" / "kernels"
        # By path: ggufy itself needs packages that are not there while it is built.
        build = runpy.run_path(str(folder / "build.py"))
        try:
            library = build["build"](folder)
        except (OSError, subprocess.CalledProcessError) as error:
            said = f"ggufy's kernels are not compiled ({error}); llama.cpp's are used. {build['NEEDS']}"
            print(said, file=sys.stderr)  # noqa: T201
            return
        build_data["artifacts"].append(library.relative_to(self.root).as_posix())
        build_data["pure_python"] = False
        # They are loaded by ctypes, so any Python 3 of this platform will do.
        build_data["tag"] = f"py3-none-{_platform()}"


def _platform() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
