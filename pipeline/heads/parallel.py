"""Independent jobs at the same time: a thread for each core, and one core for each job.

Products of a few thousand rows do not share well: two threads that wait for each other in
every one of them cost more than they give. Two fits that know nothing of each other do.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
_thread = threading.local()


def run_parallel(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What the jobs return, in their order; the first exception is raised.

    Jobs share nothing that they write. Jobs of a job are done one after the other.
    """
    workers = min(len(jobs), _cores())
    if workers < 2 or _in_job():
        return [job() for job in jobs]
    before = _torch_threads()
    try:
        with threadpool_limits(1), ThreadPoolExecutor(workers, "fit", initializer=_enter) as pool:
            return list(pool.map(lambda job: job(), jobs))
    finally:
        if "torch" in sys.modules:  # a job may have imported it
            sys.modules["torch"].set_num_threads(before)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch computes on one core inside, and afterwards on as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        if not _in_job():  # another job may still need it; run_parallel puts it back
            torch.set_num_threads(before)


def _enter() -> None:
    """OpenMP counts its threads for each thread of ours."""
    _thread.in_job = True
    threadpool_limits(1)


def _in_job() -> bool:
    return getattr(_thread, "in_job", False)


def _torch_threads() -> int:
    """As many as torch uses, or will use when it is imported."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else _cores()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
