"""What the simulations of ``make calibration`` share: their options, and jobs in processes."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from threadpoolctl import threadpool_limits

Job = Callable[[], Any]


def parser(description: str | None, runs: int) -> argparse.ArgumentParser:
    """Options of a simulation: how many runs, in how many processes."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("runs", nargs="?", type=int, default=runs)
    options.add_argument("--jobs", type=int, help="Processes; one a core where left out.")
    return options


@contextmanager
def in_processes(count: int | None) -> Iterator[Callable[[Iterable[Job]], Iterator[Any]]]:
    """A function that runs jobs, one core each, and gives their results in order."""
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=threadpool_limits, initargs=(1,)
    ) as pool:
        yield partial(pool.map, _run)


def _run(job: Job) -> Any:
    return job()
