"""kill -9 at any moment of a training, saves included: the same command ends with the same adapter, every time.

How the moments are chosen is told in chaos.py. GGUFY_KILL_MOMENTS sets how many; `all` takes every boundary of every
file, about half an hour.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(7200)
def test_a_training_killed_anywhere_ends_with_the_same_adapter(env: dict[str, str], tmp_path: Path) -> None:
    moments = os.environ.get("GGUFY_KILL_MOMENTS", "20")
    chaos = Path(__file__).with_name("chaos.py")
    env = env | {"PYTHONPATH": os.pathsep.join([str(chaos.parents[1]), env.get("PYTHONPATH", "")])}
    command = [sys.executable, str(chaos), str(tmp_path), moments]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    killed, _, tried = done.stdout.splitlines()[-1].partition(" ended")[0].partition(" of ")
    assert killed == tried
    assert moments in (tried, "all")
