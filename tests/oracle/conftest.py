"""What several oracle tests need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufy.export.kernels import build, native


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh build of the kernels' source, whatever is installed. Where there is a compiler it has to succeed."""
    if not build.compiler():
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("kernels")
    build.build(folder)
    return folder


@pytest.fixture(scope="module")
def kernels(built: Path) -> Iterator[Path]:
    """That build is the one that is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.PLACE, str(built))
        yield built
