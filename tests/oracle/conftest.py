"""What several oracle tests need."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufy.export import native
from ggufy.export.kernels import build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh build of the kernels' source, whatever is installed."""
    folder = tmp_path_factory.mktemp("kernels")
    try:
        build.build(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no compiler: {error}")
    return folder


@pytest.fixture(scope="module")
def kernels(built: Path) -> Iterator[Path]:
    """That build is the one that is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.PLACE, str(built))
        yield built
