"""What a finished GGUF is verified against: base, adapter, and the training model, each made ready once."""

from __future__ import annotations

from pathlib import Path

from ggufy import calibration
from ggufy.export import reference
from ggufy.export import verify as verifying
from ggufy.export.expected import Expected
from ggufy.export.reference import Reference
from ggufy.export.verify import Verified
from ggufy.subject import Subject


class Verifier:
    """Verifies files of one subject. With `logits` against the training model too, which takes its memory."""

    def __init__(self, this: Subject, threads: int, *, logits: bool) -> None:
        self.this, self.threads = this, threads
        self._reference = None if logits else reference.NOTHING
        self._expected: Expected | None = None
        self._opened = False

    def verify(self, path: Path) -> Verified:
        """Check one GGUF: a file, or a folder of the files it is split into. Raises Unverified."""
        if not self._opened:
            self._expected, self._opened = Expected.of(self.this.base.path, self.this.adapter), True
        return verifying.verify(path, self.this.base.path, self.threads, self._logits(), self._expected)

    def _logits(self) -> Reference:
        if self._reference is None:
            this = self.this
            self._reference = reference.of(this.base.path, this.adapter, lambda: calibration.probes(this))
        return self._reference
