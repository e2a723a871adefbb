"""Facts about this machine: GPU, memory, disks and libraries, found without importing torch if possible.

A GPU is asked of `nvidia-smi`, which answers in a moment and without torch; torch only where that is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_SECONDS = 10


@dataclass(frozen=True)
class Card:
    """A GPU that is in this machine. `bytes` is its whole memory."""

    name: str
    bytes: int
    capability: tuple[int, int]
    driver: str = ""

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16 itself: NVIDIA's from Ampere on (compute capability 8.0)."""
        return self.capability >= (8, 0)


def card() -> Card | None:
    """The GPU that training would take: the first that CUDA_VISIBLE_DEVICES leaves visible, or None."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first in ("", "-1"):
        return None
    tool = shutil.which("nvidia-smi")
    if tool and (found := _from_tool(tool, first)):
        return found
    return _from_torch() if "+cpu" not in (version("torch") or "+cpu") else None


def _from_tool(tool: str, which: str) -> Card | None:
    fields = "name,memory.total,compute_cap,driver_version"
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={which}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        return read_card(done.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def read_card(line: str) -> Card:
    """One line of nvidia-smi: `Tesla T4, 15360, 7.5, 550.54.15`, the memory in MiB. Raises ValueError for others."""
    name, memory, capability, driver = (part.strip() for part in line.rsplit(",", 3))
    major, _, minor = capability.partition(".")
    return Card(name, int(memory) << 20, (int(major), int(minor)), driver)


def _from_torch() -> Card | None:
    import torch

    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(0)
    return Card(facts.name, facts.total_memory, (facts.major, facts.minor))


def version(package: str) -> str | None:
    """The installed version of a package, read without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """The cores that this process may use, which in a container are fewer than there are."""
    try:
        free = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        free = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        free = max(1, min(free, round(int(quota) / int(period))))
    return free


def memory() -> tuple[int, int]:
    """Bytes of main memory: all of it, and what can be had now."""
    page = os.sysconf("SC_PAGE_SIZE")
    whole = page * os.sysconf("SC_PHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return whole, int(line.split()[1]) * 1024
    except OSError:  # not Linux
        pass
    return whole, whole


def free(folder: Path) -> int:
    """Bytes free on the disk where a folder is, or would be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
