"""Ask a judge several questions at a time; a kill, a fault or a limit loses no reply that has arrived."""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from ggufy.errors import JudgeError
from ggufy.evaluate.judge import prompt
from ggufy.evaluate.judge.cache import Cache
from ggufy.evaluate.judge.client import Client, Failure, Halted, RateLimit, Reply, Unreached, one_line
from ggufy.evaluate.judge.plan import Call, Plan
from ggufy.evaluate.judge.prompt import Grades
from ggufy.system import progress

log = logging.getLogger("ggufy")

# How often one question is put in all, where the reply is not what was asked for.
ROUNDS = 3
# After so many questions in a row that nobody answered, the others are not tried.
_PATIENCE = 3
# Seconds that replies under way have once somebody pressed Ctrl-C.
_GRACE = 5.0
_REFUSALS = re.compile(
    r"\W*(i('m| am) (very |really )?sorry|sorry|i can(no|')t|i won't|i('m| am) (not able|unable))\b", re.I
)
NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Settings:
    parallel: int = 4
    per_minute: float | None = None
    timeout: float = 120.0
    """Seconds for one reply."""
    most_tokens: int = 1024
    """Of one reply."""
    pause: float = 0.5
    """Seconds before a second attempt; each further one waits twice as long."""


@dataclass
class Replies:
    """What came back, by the key of each call."""

    grades: dict[str, list[Grades]] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    asked: int = 0
    """Answered with grades now; the others were known."""
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0
    """Replies whose endpoint did not say how many tokens they were."""
    models: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    stopped: JudgeError | None = None
    """Why the rest was not asked."""


def ask(plan: Plan, settings: Settings) -> Replies:
    """The replies to all calls of a plan. What fails is in `failures`; KeyboardInterrupt comes through."""
    replies = Replies(grades=dict(plan.known))
    if plan.open:
        _Asking(plan, settings, replies).run()
    for call in plan.calls:
        if call.key not in replies.grades:
            replies.failures.setdefault(call.key, Failure(NOT_ASKED, "the judging ended before this question"))
    return replies


class _Asking:
    def __init__(self, plan: Plan, settings: Settings, replies: Replies) -> None:
        self.cache: Cache = plan.cache
        self.replies = replies
        self.settings = settings
        self.stop = threading.Event()
        self.waiting: queue.SimpleQueue[Call] = queue.SimpleQueue()
        for call in plan.open.values():
            self.waiting.put(call)
        self.total = len(plan.open)
        self.done: queue.SimpleQueue[tuple[Call, list[Grades] | Failure | BaseException | None]] = queue.SimpleQueue()
        rate_limit = RateLimit(self.stop, settings.per_minute)
        self.client = Client(
            plan.where, rate_limit, timeout=settings.timeout, most_tokens=settings.most_tokens, pause=settings.pause
        )
        self.lock = threading.Lock()
        self.unreached = 0

    def run(self) -> None:
        count = min(self.settings.parallel, self.total)
        threads: list[threading.Thread] = []
        try:
            self.cache.prepare()
            self.client.check()
            # Daemons: one that waits for a reply does not hold up the end of the process.
            threads += [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
            for thread in threads:
                thread.start()
            self._gather(threads)
        except JudgeError as error:
            self.replies.stopped = error
        except KeyboardInterrupt:
            self._let_finish(threads)
            raise
        finally:
            self.stop.set()
            self.replies.notes += self.client.notes
            self.client.close()

    def _let_finish(self, threads: list[threading.Thread]) -> None:
        """Replies under way were paid for: wait a moment for them, and no longer if Ctrl-C is pressed again."""
        self.stop.set()
        deadline = time.monotonic() + _GRACE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _gather(self, threads: list[threading.Thread]) -> None:
        with progress.bar("judging", self.total) as bar:
            for count, (call, result) in enumerate(self._results(threads), 1):
                if isinstance(result, Failure):
                    self.replies.failures[call.key] = result
                elif isinstance(result, list):
                    self.replies.grades[call.key] = result
                    self.replies.asked += 1
                failed = len(self.replies.failures)
                bar.update(count, f"{self.replies.asked} graded" + (f", {failed} without grades" if failed else ""))

    def _results(self, threads: list[threading.Thread]) -> Iterator[tuple[Call, list[Grades] | Failure | None]]:
        """Results as they come, until no thread works on. Where one ends in an error the others finish theirs."""
        error: BaseException | None = None
        while any(thread.is_alive() for thread in threads) or not self.done.empty():
            with suppress(queue.Empty):
                call, result = self.done.get(timeout=0.1)
                if isinstance(result, BaseException) and not isinstance(result, Failure):
                    error = error or result
                else:
                    yield call, result
        if error is not None:
            raise error

    def _work(self) -> None:
        while not self.stop.is_set():
            try:
                call = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self.done.put((call, self._grades(call)))
            except Halted:
                return
            except Failure as error:
                self.done.put((call, error))
            except Exception as error:  # noqa: BLE001 - carried to the main thread, which raises it or keeps it
                self.stop.set()
                self.done.put((call, error))

    def _grades(self, call: Call) -> list[Grades]:
        """Raises Failure, JudgeError or Halted."""
        messages, count = call.messages, len(call.order)
        failure = Failure("malformed", "")
        for _ in range(ROUNDS):
            try:
                reply = self.client.ask(messages, count)
            except Unreached as error:
                self._lose_patience(error)
                raise
            except Failure as error:
                self.cache.add(call.key, error.detail, scored=False, facts={"kind": error.kind, **self._facts(None)})
                if error.kind != "refusal":
                    raise
                failure = error
                continue
            self._count(reply)
            try:
                grades = prompt.parse(reply.text, count)
            except ValueError as error:
                refused = _REFUSALS.match(reply.text)
                said = one_line(reply.text, 120)
                failure = Failure("refusal", said) if refused else Failure("malformed", f"{error}, in: {said}")
                facts = {"kind": failure.kind, **self._facts(reply)}
                self.cache.add(call.key, reply.text, scored=False, facts=facts)
                messages = [*call.messages, *prompt.again(reply.text[:2000], str(error))]
                continue
            self.cache.add(call.key, reply.text, scored=True, facts=self._facts(reply))
            return grades
        raise failure

    def _facts(self, reply: Reply | None) -> dict[str, Any]:
        """What the cache says beside a reply, for whoever looks into it."""
        facts: dict[str, Any] = {"at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        facts |= {"url": self.client.where.url, "model": self.client.where.model}
        if reply:
            facts |= {"answered_by": reply.model, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
        return facts

    def _count(self, reply: Reply) -> None:
        with self.lock:
            self.unreached = 0
            self.replies.models.add(reply.model)
            self.replies.tokens_in += reply.tokens_in or 0
            self.replies.tokens_out += reply.tokens_out or 0
            self.replies.uncounted += reply.tokens_in is None or reply.tokens_out is None

    def _lose_patience(self, error: Unreached) -> None:
        with self.lock:
            self.unreached += 1
            lost = self.unreached >= _PATIENCE
        if lost:
            raise JudgeError(
                f"the judge at {self.client.where.url} does not answer: {error}",
                "run the same command again later; what was judged so far is kept",
            ) from None
