"""Independent jobs at the same time: a thread for each core, and one core for each job.

Products of a few thousand rows do not share well: two threads that wait for each other in
every one of them cost more than they give. Two fits that know nothing of each other do.
"""

import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
_thread = threading.local()


def run_parallel(
    jobs: Sequence[Callable[[], T]], *, done: Callable[[], None] = lambda: None
) -> list[T]:
    """What the jobs return, in their order; the first exception is raised.

    Jobs share nothing that they write. Jobs of a job are done one after the other.

    Args:
        jobs: See there.
        done: Called after each.
    """
    outcomes = run_each(jobs, done=lambda *_: done())
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes  # type: ignore[return-value]


def run_each(
    jobs: Sequence[Callable[[], T]],
    *,
    workers: int | None = None,
    limit: float | None = None,
    done: Callable[[int, T | BaseException], None] = lambda _number, _outcome: None,
) -> list[T | BaseException]:
    """What the jobs return or raise, in their order.

    Args:
        jobs: See :func:`run_parallel`.
        workers: Jobs at a time; None: one a core. One alone has all cores.
        limit: Seconds after which a job is given up, with a ``TimeoutError``. Its thread gets
            an exception, which ends whatever runs in Python; a library that never comes back
            keeps its core until the process ends.
        done: Called after each job with its number and what it returned or raised.
    """
    workers = min(len(jobs), workers or _cores())
    if _in_job() or not jobs or (workers < 2 and limit is None):
        outcomes = []
        for number, job in enumerate(jobs):
            outcomes.append(_outcome(job))
            done(number, outcomes[-1])
        return outcomes
    with threadpool_limits(1) if workers > 1 else nullcontext():
        return _Pool(jobs, limit, done, one_core=workers > 1).run(workers)


class _Pool:
    """Threads that take jobs; those of Python's own pool could never be left behind."""

    def __init__(
        self,
        jobs: Sequence[Callable[[], Any]],
        limit: float | None,
        done: Callable[[int, Any], None],
        *,
        one_core: bool,
    ) -> None:
        self.jobs, self.limit, self.done, self.one_core = jobs, limit, done, one_core
        self.waiting = deque(range(len(jobs)))
        self.running: dict[int, tuple[float, int]] = {}  # start, thread
        self.outcomes: dict[int, Any] = {}
        self.changed = threading.Condition()

    def run(self, workers: int) -> list[Any]:
        with self.changed:
            try:
                for _ in range(workers):
                    self._start_worker()
                while len(self.outcomes) < len(self.jobs):
                    self.changed.wait(self._seconds_left())
                    self._give_up_late_jobs()
            finally:
                self.waiting.clear()  # after Ctrl-C no thread takes another job
        return [self.outcomes[number] for number in range(len(self.jobs))]

    def _start_worker(self) -> None:
        threading.Thread(target=self._work, name="fit", daemon=True).start()

    def _work(self) -> None:
        _thread.in_job = True
        if self.one_core:
            threadpool_limits(1)  # OpenMP counts its threads for each thread of ours
        while True:
            with self.changed:
                if not self.waiting:
                    return
                number = self.waiting.popleft()
                self.running[number] = time.monotonic(), threading.get_ident()
            outcome = _outcome(self.jobs[number])
            with self.changed:
                if not self.running.pop(number, None):
                    return  # given up: another thread has taken the place of this one
                self._finish(number, outcome)

    def _finish(self, number: int, outcome: Any) -> None:
        self.outcomes[number] = outcome
        self.done(number, outcome)
        self.changed.notify_all()

    def _seconds_left(self) -> float | None:
        if self.limit is None:
            return None
        first = min((start for start, _ in self.running.values()), default=time.monotonic())
        return max(0.01, first + self.limit - time.monotonic())

    def _give_up_late_jobs(self) -> None:
        for number, (start, thread) in list(self.running.items()):
            if self.limit is not None and time.monotonic() - start > self.limit:
                del self.running[number]
                raised = ctypes.pythonapi.PyThreadState_SetAsyncExc
                raised(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))
                self._finish(number, TimeoutError(f"it did not end within {self.limit:g} s"))
                self._start_worker()


def _outcome(job: Callable[[], T]) -> T | BaseException:
    try:
        return job()
    except KeyboardInterrupt:
        raise
    except BaseException as cause:  # noqa: BLE001 - whoever asked decides what to do with it
        return cause


def _in_job() -> bool:
    return getattr(_thread, "in_job", False)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
