"""Independent fits at the same time: a thread for each core, and one core for each fit.

Products of a few thousand rows do not share well: two threads that wait for each other in
every one of them cost more than they give. Two fits that know nothing of each other do.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
#: Features beyond so many numbers (64 MB) are not copied for several fits at once.
MOST = 16 << 20
_inside = threading.local()


def side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What the jobs return, in their order; the first that raises is heard.

    Jobs share nothing that they write. Jobs of a job are done one after the other.
    """
    workers = min(len(jobs), _cores())
    if workers < 2 or getattr(_inside, "job", False):
        return [job() for job in jobs]
    with one_thread(), ThreadPoolExecutor(workers, "fit", initializer=_enter) as pool:
        return list(pool.map(lambda job: job(), jobs))


@contextmanager
def one_thread() -> Iterator[None]:
    """Products inside use one core; afterwards as many as before."""
    import torch

    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)  # also for threads that have yet to begin
        try:
            yield
        finally:
            torch.set_num_threads(before)


def folded(
    fit: Callable[..., T], folds: Sequence[tuple[object, ...]], cells: int | None
) -> list[T]:
    """``fit`` of each fold's rows, at the same time where copies of the features are small.

    Args:
        fit: Takes what a fold is made of.
        folds: Its arguments.
        cells: Numbers in the features that are divided; None: one fold after the other.
    """
    jobs = [partial(fit, *fold) for fold in folds]
    return [job() for job in jobs] if cells is None or cells > MOST else side_by_side(jobs)


def _enter() -> None:
    """OpenMP counts its threads for each thread of ours."""
    _inside.job = True
    threadpool_limits(1)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
