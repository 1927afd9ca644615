"""Parallel work: in threads, in forks of this process, or in separate processes.

Forks see this process's arrays without a copy, and do not wait for Python's lock. Two threads that
fit heads are 1.2 times as fast as one, two forks 1.9 times. What macOS and Windows offer instead
would import everything again, so there jobs are done one after the other, each with all cores.

:class:`Processes`, which decode, are not forks: they are started beside torch, whose threads a
fork would lack. Each may share memory with this process, so that pixels need not travel through
its pipe. The memory has no name and the process reads from the pipe, so both are gone when this
process ends, in whatever way.
"""

import gc
import io
import logging
import mmap
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, partial
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, Protocol, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pipeline.errors import EngineError, PipelineError

T = TypeVar("T")
R = TypeVar("R")
_LARGEST_BLOCK = 64
_SERVE = "from pipeline.parallel import serve; serve()"
_FORKS = sys.platform == "linux"
#: Seconds between two checks of the other processes.
_POLL_SECONDS = 0.02
_TIMEOUT_TEXT = "it did not end within {:g} s"
_in_worker = False


class Mapper(Protocol):
    """A way to apply one function to many values: in turn, in threads, or on many machines."""

    def __call__(self, function: Callable[[T], R], values: Sequence[T]) -> Iterator[R]:
        """The results of the function, in the order of the values."""


def in_turn(function: Callable[[T], R], values: Sequence[T]) -> Iterator[R]:
    """See :class:`Mapper`: one after the other."""
    return map(function, values)


def in_threads(function: Callable[[T], R], values: Sequence[T]) -> Iterator[R]:
    """See :class:`Mapper`: with a thread for each core of this machine."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for answers in pool.map(partial(map_block, function), _blocks_of(values, threads)):
            yield from answers


def map_block(function: Callable[[T], R], block: Sequence[T]) -> list[R]:
    """The results of the function for the values of a block."""
    return [function(value) for value in block]


def _blocks_of(values: Sequence[T], workers: int) -> list[Sequence[T]]:
    """Blocks of values; handing out single values would take longer than reading a small file."""
    size = max(1, min(_LARGEST_BLOCK, len(values) // (4 * workers)))
    return [values[at : at + size] for at in range(0, len(values), size)]


# Forks.


class _Worker:
    """A fork of this process that does jobs, one after the other."""

    def __init__(self, jobs: Sequence[Callable[[], Any]], shared: Sequence[Any]) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipe, other = fork.Pipe()
        self._shared = shared
        arguments = jobs, shared, other, self.pipe
        _thread_pools(len(sys.modules))  # looked for once, and not in every fork
        self._process = fork.Process(target=_serve, args=arguments, daemon=True)
        # Ctrl-C is this process's alone.
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of threads that a fork has not: those of BLAS are made anew.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        other.close()

    def submit(self, number: int) -> None:
        """Start a job; its answer must be taken before the next job."""
        with suppress(BrokenPipeError):  # the answer says so
            self.pipe.send(number)

    def answer(self) -> Any:
        """The result of the job, or the exception that it raised."""
        try:
            return _unpickled(self.pipe.recv_bytes(), self._shared)
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            return EngineError(f"a process has ended ({code}): is there enough memory?")

    def is_alive(self) -> bool:
        """Whether it can do another job."""
        return bool(self._process.is_alive())

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def run_parallel(
    jobs: Sequence[Callable[[], T]], *, done: Callable[[], None] = lambda: None
) -> list[T]:
    """The results of the jobs, in their order; the first exception is raised.

    A job works on a copy of this process's data: only its result comes back, pickled. Jobs that a
    job starts are done one after the other.

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
    limit: float | None = None,
    done: Callable[[int, T | BaseException | None], None] = lambda _number, _outcome: None,
    is_wanted: Callable[[int], bool] = lambda _number: True,
    meanwhile: Callable[[], object] | None = None,
    shared: Sequence[Any] = (),
) -> list[T | BaseException | None]:
    """The results or exceptions of the jobs, in their order.

    Args:
        jobs: See :func:`run_parallel`. A single job has all cores, unless it uses OpenMP.
        limit: Seconds after which a job is stopped with a ``TimeoutError``. Without forks
            (macOS, Windows, in a worker, after CUDA was started) it cannot be stopped: its
            result is ignored, and it goes on until this process ends.
        done: Called after each job with its number and its result or exception.
        is_wanted: Called with the number of a job before it begins; if False, the result is
            None.
        meanwhile: Work that this process does itself on one of the cores; it must not raise.
            It is finished when this returns.
        shared: Arrays of this process that results may contain; they are not pickled.
    """
    workers = min(len(jobs), _cores())
    if not _may_fork() or not jobs or (workers < 2 and limit is None):
        if meanwhile:
            meanwhile()
        outcomes: list[Any] = [None] * len(jobs)
        for number, job in enumerate(jobs):
            if is_wanted(number):
                outcomes[number] = _outcome_within(job, limit)
            done(number, outcomes[number])
        return outcomes
    return _run_in_workers(jobs, limit, done, is_wanted, meanwhile, shared)


def in_worker() -> bool:
    """Whether this process is a worker, a fork among several, in which CUDA cannot be used."""
    return _in_worker


def _run_in_workers(
    jobs: Sequence[Callable[[], Any]],
    limit: float | None,
    done: Callable[[int, Any], None],
    is_wanted: Callable[[int], bool],
    meanwhile: Callable[[], object] | None,
    shared: Sequence[Any],
) -> list[Any]:
    outcomes: list[Any] = [None] * len(jobs)
    waiting = list(range(len(jobs)))
    idle: list[_Worker] = []
    new_worker = partial(_Worker, jobs, shared)
    busy: dict[_Worker, tuple[int, float]] = {}
    thread = Thread(target=meanwhile)
    # Set before the forks: one that sets it itself first starts a thread for each core, which
    # wait busily; of 16 forks on 16 cores that took five times the processor time of the fits.
    pools = _thread_pools(len(sys.modules)).limit(limits={"blas": None if len(jobs) == 1 else 1})
    try:
        if meanwhile:
            # First all forks: one made while a thread imports would wait for its locks without end,
            # and BLAS that is imported is not limited.
            idle += [new_worker() for _ in range(min(len(waiting), _cores()))]
            thread.start()
        while waiting or busy:
            room = max(1, _cores() - thread.is_alive())
            while len(busy) < room and waiting:
                number = waiting.pop(0)
                if not is_wanted(number):
                    done(number, None)
                    continue
                worker = idle.pop() if idle else _after(thread, new_worker)
                busy[worker] = number, time.monotonic()
                worker.submit(number)
            seconds = _POLL_SECONDS if thread.is_alive() else _seconds_left(busy, limit)
            ready = wait([worker.pipe for worker in busy], seconds)
            for worker, (number, start) in list(busy.items()):
                if worker.pipe in ready:
                    outcomes[number] = worker.answer()
                elif limit is not None and time.monotonic() - start > limit:
                    worker.end()
                    outcomes[number] = TimeoutError(_TIMEOUT_TEXT.format(limit))
                else:
                    continue
                del busy[worker]
                if worker.is_alive():
                    idle.append(worker)
                done(number, outcomes[number])
    finally:
        for worker in (*idle, *busy):
            worker.end()
        _wait_for(thread)
        pools.restore_original_limits()
    return outcomes


def _after(thread: Thread, new_worker: Callable[[], _Worker]) -> _Worker:
    _wait_for(thread)
    return new_worker()


def _wait_for(thread: Thread) -> None:
    if thread.is_alive():
        thread.join()


def _seconds_left(busy: dict[_Worker, tuple[int, float]], limit: float | None) -> float | None:
    if limit is None or not busy:
        return None if busy else 0
    return max(0.01, min(start for _, start in busy.values()) + limit - time.monotonic())


def _serve(
    jobs: Sequence[Callable[[], Any]],
    shared: Sequence[Any],
    pipe: Connection,
    parents: Connection,
) -> None:
    """The main loop of a worker, until the pipe's other end is closed."""
    global _in_worker  # noqa: PLW0603 - it is true of the whole process
    _in_worker = True
    parents.close()
    gc.freeze()  # to look through all that the parent holds would copy it
    # A fork has none of the threads of OpenMP, and would wait for a second one without end.
    openmp = _thread_pools(len(sys.modules)).limit(limits={"openmp": 1})
    with openmp, suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send_bytes(_pickled(_outcome(jobs[pipe.recv()]), shared))


@lru_cache(maxsize=1)
def _thread_pools(_modules: int) -> ThreadpoolController:
    """The thread pools of BLAS and OpenMP, which are loaded with modules."""
    return ThreadpoolController()


def _outcome(job: Callable[[], T]) -> T | BaseException:
    try:
        return job()
    except KeyboardInterrupt:
        raise
    except BaseException as cause:  # noqa: BLE001 - whoever asked decides what to do with it
        return cause


def _outcome_within(job: Callable[[], Any], limit: float | None) -> Any:
    """The outcome of a job in a thread, which is abandoned after the limit."""
    if limit is None:
        return _outcome(job)
    outcomes: list[Any] = []
    thread = Thread(target=lambda: outcomes.append(_outcome(job)), daemon=True)
    thread.start()
    thread.join(limit)
    return outcomes[0] if outcomes else TimeoutError(_TIMEOUT_TEXT.format(limit))


class _Pickler(pickle.Pickler):
    """Pickles numbers of shared arrays instead of the arrays."""

    shared: Sequence[Any] = ()

    def persistent_id(self, value: Any) -> int | None:
        return next((k for k, array in enumerate(self.shared) if array is value), None)


class _Unpickler(pickle.Unpickler):
    shared: Sequence[Any] = ()

    def persistent_load(self, number: Any) -> Any:
        return self.shared[number]


def _pickled(outcome: Any, shared: Sequence[Any]) -> memoryview:
    if isinstance(outcome, BaseException):  # a traceback is not pickled, a note is
        outcome.add_note("".join(traceback.format_exception(outcome)))
    file = io.BytesIO()
    pickler = _Pickler(file, pickle.HIGHEST_PROTOCOL)
    pickler.shared = shared
    try:
        pickler.dump(outcome)
        if isinstance(outcome, BaseException):
            _unpickled(file.getvalue(), shared)  # not every exception can be made again
    except Exception as cause:  # noqa: BLE001 - whatever cannot be sent
        what = outcome if isinstance(outcome, BaseException) else cause
        return memoryview(pickle.dumps(RuntimeError(f"{type(what).__name__}: {what}")))
    return file.getbuffer()


def _unpickled(data: bytes, shared: Sequence[Any]) -> Any:
    unpickler = _Unpickler(io.BytesIO(data))
    unpickler.shared = shared
    return unpickler.load()


def _may_fork() -> bool:
    """Whether forks are possible: not in a worker, and not after CUDA was started."""
    torch = sys.modules.get("torch")
    return _FORKS and not _in_worker and not (torch and torch.cuda.is_initialized())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Separate processes: Python's lock lets only one thread of each process work.


def can_share_memory() -> bool:
    """Whether this system has memory that :class:`Processes` can share."""
    return hasattr(os, "memfd_create")


class Processes:
    """Context manager: processes, each with shared memory, that call functions for this one."""

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
        """An idle process; waits until there is one."""
        process = self._idle.get()
        try:
            yield process
        finally:
            self._idle.put(process)

    def submit(self, function: Callable[..., R], *arguments: Any) -> "Future[R]":
        """The future result of a call in one of them; see :meth:`Process.call`."""

        def call() -> R:
            with self.idle() as process:
                answer: R = process.call(function, *arguments)
                return answer

        return self._threads.submit(call)

    def map(self, function: Callable[[T], R], values: Sequence[T]) -> Iterator[R]:
        """See :class:`Mapper`."""
        blocks = _blocks_of(values, len(self._running))
        for answers in [self.submit(map_block, function, block) for block in blocks]:
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
        """The result of a function that is called in the process.

        Raises:
            PipelineError: The function raised it, or another error with this text.
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
    """In such a process: the memory that it shares with its parent."""
    return _mapped(int(sys.argv[1]))


def serve() -> None:
    """The main loop of such a process: call function after function, until its parent ends."""
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
