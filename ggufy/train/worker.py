"""One process of several that train: `python -m ggufy.train.worker JOB OUT`, started by ggufy.train.distributed."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

from ggufy.train import distributed, job

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    out = Path(sys.argv[2])
    log = logging.getLogger("ggufy")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    # One voice is enough.
    log.setLevel(logging.INFO if distributed.place()[0] == 0 else logging.ERROR)
    code = 0
    try:
        job.fit(distributed.read(Path(sys.argv[1])), out)
    except BaseException as error:
        code = distributed.answer(out, error)
        if "--debug" in sys.argv:
            raise
    sys.stderr.flush()
    # Without tidying up: that would wait for processes that may be gone.
    os._exit(code)


if __name__ == "__main__":
    main()
