"""Processes that work for this one: Python's lock lets only one thread of each process work.

Each has memory that it shares with this process, so that pixels need not travel through its
pipe. The memory has no name and the process reads from the pipe, so both are gone when this
process is, however it ends.
"""

import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue
from typing import IO, Any, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.data.items import blocks_of, each_of
from pipeline.errors import EngineError, PipelineError

_SERVE = "from pipeline.data.processes import serve; serve()"
_T = TypeVar("_T")
_R = TypeVar("_R")


def can_share_memory() -> bool:
    """Whether this system has what :class:`Processes` need."""
    return hasattr(os, "memfd_create")


class Processes:
    """Context manager: processes that call functions; they end when it is left.

    Args:
        count: How many.
        memory: Bytes that each of them shares with this process.
    """

    def __init__(self, count: int, *, memory: int = mmap.PAGESIZE) -> None:
        self._running = [Process(memory) for _ in range(count)]
        self._idle: SimpleQueue[Process] = SimpleQueue()
        for process in self._running:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.end()

    @contextmanager
    def idle(self) -> Iterator["Process"]:
        """One that has nothing to do; waits until there is one."""
        process = self._idle.get()
        try:
            yield process
        finally:
            self._idle.put(process)

    def each(self, function: Callable[[_T], _R], values: Sequence[_T]) -> Iterator[_R]:
        """See :class:`pipeline.data.items.Each`."""

        def answers(block: Sequence[_T]) -> list[_R]:
            with self.idle() as process:
                found: list[_R] = process.call(each_of, function, block)
                return found

        count = len(self._running)
        with ThreadPoolExecutor(count) as pool:
            for block in pool.map(answers, blocks_of(values, count)):
                yield from block


class Process:
    """See :class:`Processes`.

    Attributes:
        shared: The memory that it shares with this process, uint8.
    """

    def __init__(self, memory: int) -> None:
        descriptor = os.memfd_create("headrace")
        os.ftruncate(descriptor, memory)
        self.shared = _mapped(descriptor)
        self._child = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", _SERVE, str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[descriptor],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        os.close(descriptor)  # the mapping holds it
        self._requests = cast("IO[bytes]", self._child.stdin)
        self._answers = cast("IO[bytes]", self._child.stdout)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns there.

        Raises:
            PipelineError: What the function raises.
            EngineError: The process has ended.
        """
        try:
            pickle.dump((function, arguments), self._requests)
            self._requests.flush()
            error, value = pickle.load(self._answers)  # noqa: S301 - our own child
        except (OSError, EOFError) as cause:
            raise EngineError(
                f"a process that reads images has ended (exit code {self._child.poll()}): is "
                "there enough memory?"
            ) from cause
        if error:
            raise error
        return value

    def end(self) -> None:
        """End the process; a call under way fails."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()


@cache
def shared_memory() -> NDArray[np.uint8]:
    """In a process that works for another: the memory that they share."""
    return _mapped(int(sys.argv[1]))


def serve() -> None:
    """What the process does: call function after function, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    with suppress(EOFError):
        while True:
            function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent
            try:
                answer: tuple[PipelineError | None, Any] = None, function(*arguments)
            except PipelineError as error:
                answer = error, None
            pickle.dump(answer, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _mapped(descriptor: int) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
