"""Processes that work for this one: Python's lock lets only one thread of each process work.

Each may have memory that it shares with this process, so that pixels need not travel through its
pipe. The memory has no name and the process reads from the pipe, so both are gone when this
process is, however it ends.
"""

import logging
import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Whether this system has memory that :class:`Processes` can share."""
    return hasattr(os, "memfd_create")


class Processes:
    """Context manager: processes, each with shared bytes, that call functions until it is left."""

    def __init__(self, count: int, *, memory: int = 0) -> None:
        self._running = [Process(memory) for _ in range(count)]
        self._threads = ThreadPoolExecutor(max(count, 1), "process")
        self._idle: SimpleQueue[Process] = SimpleQueue()
        for process in self._running:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._running:
            process.end()
        self._threads.shutdown()

    @contextmanager
    def idle(self) -> Iterator["Process"]:
        """One that has nothing to do; waits until there is one."""
        process = self._idle.get()
        try:
            yield process
        finally:
            self._idle.put(process)

    def submit(self, function: Callable[..., _R], *arguments: Any) -> "Future[_R]":
        """What one of them will answer; see :meth:`Process.call`."""

        def call() -> _R:
            with self.idle() as process:
                answer: _R = process.call(function, *arguments)
                return answer

        return self._threads.submit(call)

    def each(self, function: Callable[[_T], _R], values: Sequence[_T]) -> Iterator[_R]:
        """See :class:`pipeline.data.items.Each`."""
        blocks = blocks_of(values, len(self._running))
        for answers in [self.submit(each_of, function, block) for block in blocks]:
            yield from answers.result()


class Process:
    """See :class:`Processes`; ``shared`` is its memory, uint8."""

    def __init__(self, memory: int) -> None:
        descriptors = [os.memfd_create("headrace")] if memory else []
        for descriptor in descriptors:
            os.ftruncate(descriptor, memory)
        self.shared = _mapped(descriptors[0]) if memory else np.empty(0, np.uint8)
        self._child = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", _SERVE, *map(str, descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            process_group=0,  # Ctrl-C is this process's, from the first moment on
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        for descriptor in descriptors:
            os.close(descriptor)  # the mapping holds it
        self._requests = cast("IO[bytes]", self._child.stdin)
        self._answers = cast("IO[bytes]", self._child.stdout)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns there.

        Raises:
            PipelineError: What the function raises; of any other error the text.
            EngineError: The process has ended.
        """
        try:
            pickle.dump((function, arguments), self._requests)
            self._requests.flush()
            error, value = pickle.load(self._answers)  # noqa: S301 - our own child
        except (OSError, EOFError) as cause:
            raise EngineError(
                f"a process of this run has ended (exit code {self._child.poll()}): is there "
                "enough memory?"
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where there are no process groups
    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # what libraries print is no answer
    with suppress(EOFError):
        while True:
            function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent
            error: PipelineError | None = None
            answer = None
            try:
                answer = function(*arguments)
            except PipelineError as refusal:
                error = refusal
            except Exception as mistake:  # noqa: BLE001 - raised by the parent
                error = EngineError(f"{type(mistake).__name__}: {mistake}")
            pickle.dump((error, answer), answers)
            answers.flush()


def _mapped(descriptor: int) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
