"""What the tests on real weights share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import made_once
from tests.real import smollm2


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in 16 bits; to be read, not to be written."""
    smollm2.source()
    return made_once(tmp_path_factory, "smollm2", smollm2.write)
