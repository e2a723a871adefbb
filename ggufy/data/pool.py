"""Process batches of rows on all cores, and return the results in order.

The workers are processes of their own (rendering templates is Python, which uses one core), started by a plain command:
a fork would copy the threads of libraries that are loaded by now, and multiprocessing's other ways import the user's
script once more. At most a few batches a worker are under way, so memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

from ggufy import errors
from ggufy.data.mix import Row
from ggufy.data.work import Plan, Result, Worker
from ggufy.errors import DataError, GgufyError

_AHEAD = 3


def results(plan: Plan, batches: Iterable[Sequence[Row]], processes: int) -> Iterator[Result]:
    """The results of the batches, in their order. Raises what a worker raised."""
    workers = [_Process(plan) for _ in range(processes)]
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def work(batch: Sequence[Row]) -> Result:
        worker = idle.get()
        try:
            return worker.batch(batch)
        finally:
            idle.put(worker)

    pending: deque[Future[Result]] = deque()
    threads = ThreadPoolExecutor(processes)
    try:
        for batch in batches:
            pending.append(threads.submit(work, batch))
            if len(pending) >= _AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for worker in workers:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


class _Process:
    """One worker, spoken to over its pipes."""

    def __init__(self, plan: Plan) -> None:
        start = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from ggufy.data.pool import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A Ctrl-C is this process's to act on; its end closes the pipes, which ends the workers too.
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to: IO[bytes] = self.process.stdin
        self.back: IO[bytes] = self.process.stdout
        self._send(plan)

    def batch(self, rows: Sequence[Row]) -> Result:
        try:
            self._send(rows)
            answer = pickle.load(self.back)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self.process.wait()
            raise DataError(
                f"a process that prepared the data ended early ({'signal' if code < 0 else 'exit code'} {abs(code)})",
                "too little memory may be the reason; run the same command again to start over",
            ) from None
        if isinstance(answer, Result):
            return answer
        kind, message, hint = answer
        error: GgufyError = getattr(errors, kind, GgufyError)(message, hint)
        raise error

    def kill(self) -> None:
        """End it, also in the middle of a batch that nobody waits for any more."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.back.close()
        # What it had not read yet is lost, and may be.
        with contextlib.suppress(OSError):
            self.to.close()

    def _send(self, what: object) -> None:
        pickle.dump(what, self.to, protocol=5)
        self.to.flush()


def serve() -> None:
    """The worker's side: a plan, then batches until the pipe is closed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    to, sys.stdout = sys.stdout.buffer, sys.stderr
    source = sys.stdin.buffer
    worker: Worker | None = None
    plan = pickle.load(source)
    while True:
        try:
            rows = pickle.load(source)
        except EOFError:
            return
        answer: object
        try:
            worker = worker or Worker(plan)
            answer = worker.batch(rows)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side says it
            known = errors.from_lower(error)
            answer = (type(known).__name__, known.message, known.hint)
        try:
            pickle.dump(answer, to, protocol=5)
            to.flush()
        except BrokenPipeError:
            return
