"""Jobs at the same time give what jobs one after the other give, and nothing outlives them."""

import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_info

from pipeline import parallel
from pipeline.data.items import list_folder
from pipeline.errors import EngineError, StudyError
from pipeline.parallel import Processes, in_threads, run_each, run_parallel


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Whatever this machine has; afterwards no process is left."""
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    yield
    assert not multiprocessing.active_children()


def threads(api=""):
    np.eye(2) @ np.eye(2)
    return {pool["num_threads"] for pool in threadpool_info() if api in pool["user_api"]}


def test_two_jobs_run_at_once_and_answer_in_their_order():
    """Each waits for the other, which one after the other would never end."""
    meet = multiprocessing.get_context("fork").Barrier(2, timeout=20)

    def job(number):
        meet.wait()
        return number

    assert run_parallel([lambda: job(1), lambda: job(2)]) == [1, 2]


def test_a_job_has_one_core_and_starts_no_further_processes():
    """Two cores are two jobs, at whatever depth: BLAS and OpenMP too; here nothing changes."""
    before = threads()
    jobs = [lambda: (os.getpid(), run_parallel([os.getpid, os.getpid]), threads())] * 3
    for process, inner, of_job in run_parallel(jobs):
        assert process != os.getpid()
        assert (inner, of_job) == ([process] * 2, {1})
    assert threads() == before


def test_a_job_alone_has_all_cores_but_for_openmp():
    """Whose threads are missing in a fork: scikit-learn would wait for them without end."""
    rows = np.random.default_rng(0).normal(size=(2000, 8))
    neighbours = KNeighborsClassifier().fit(rows, rows[:, 0] > 0)
    expected = neighbours.predict_proba(rows)  # by several threads

    def job():
        return neighbours.predict_proba(rows), openmp(), blas()

    openmp, blas = (partial(threads, api) for api in ("openmp", "blas"))
    before = openmp(), blas()
    ((proba, *of_job),) = run_each([job], limit=60)
    np.testing.assert_array_equal(proba, expected)
    assert of_job == [{1}, before[1]]
    assert (openmp(), blas()) == before


def test_an_error_is_raised_with_the_place_where_it_arose():
    """Also one that cannot be made again from its message."""

    class TwoArgumentsError(Exception):
        def __init__(self, kind, text):
            super().__init__(f"{kind}: {text}")

    def fails(error):
        raise error

    with pytest.raises(ValueError, match="singular") as caught:
        run_parallel([lambda: fails(ValueError("singular"))] * 2)
    assert "in fails" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="TwoArgumentsError: solver: singular"):
        run_parallel([lambda: fails(TwoArgumentsError("solver", "singular"))] * 2)


def test_a_job_that_never_ends_is_given_up_and_its_place_taken():
    """Each is told of once, and what is no longer wanted is left out."""
    done = []

    def endless():
        while True:
            time.sleep(0.001)

    jobs = [endless, endless, lambda: 1, lambda: 2]
    outcomes = run_each(
        jobs,
        limit=0.5,
        done=lambda number, _: done.append(number),
        is_wanted=lambda number: number != 3,
    )
    assert outcomes[2:] == [1, None]
    assert all("did not end within 0.5 s" in str(late) for late in outcomes[:2])
    assert sorted(done) == list(range(4))


def test_a_process_that_dies_costs_its_own_job_alone():
    """As when memory runs out."""
    died, *others = run_each([lambda: os.kill(os.getpid(), signal.SIGKILL), int, int])
    assert str(died) == "a process has ended (-9): is there enough memory?"
    assert others == [0, 0]


def test_ctrl_c_ends_the_jobs_without_a_word_of_them(capfd):
    """The terminal sends it to every process."""

    def interrupted(*_):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_each([lambda: time.sleep(60), int, int], done=interrupted)
    assert capfd.readouterr() == ("", "")


def test_what_is_done_beside_is_done_while_a_job_runs():
    """On one core each; a job that begins later sees what it has done, and so does this process."""
    ready, done = multiprocessing.get_context("fork").Event(), []

    def other_work():
        assert ready.wait(20)
        done.append(True)

    assert run_each([ready.set, lambda: len(done)], limit=20, meanwhile=other_work) == [None, 0]
    assert run_each([lambda: len(done)], limit=20) == [1]
    assert run_each([], meanwhile=lambda: done.append(True)) == []
    assert len(done) == 2


def test_shared_arrays_do_not_travel():
    """Nor do what holds them; others are copies."""
    shared, other = np.ones(3), np.ones(3)
    ((held, copied),) = run_each([lambda: ({"rows": shared}, other)], limit=20, shared=[shared])
    assert held["rows"] is shared
    assert copied is not other
    np.testing.assert_array_equal(copied, other)


def test_without_forks_a_job_is_given_up_too(monkeypatch):
    """As on macOS and Windows; the next is done meanwhile."""
    monkeypatch.setattr(parallel, "_FORKS", False)
    late, two = run_each([lambda: time.sleep(2), lambda: 2], limit=0.1)
    assert str(late) == "it did not end within 0.1 s"
    assert two == 2


# --- processes that are no forks


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has forks that are safe")
def test_a_fork_of_several_starts_no_threads():
    """BLAS would start one for each core in each fork, and all would wait busily."""

    def multiply():
        rows = np.ones((300, 300))
        rows @ rows
        return len(os.listdir("/proc/self/task"))

    multiply()
    before = threads("blas")
    assert run_each([multiply] * 3) == [1, 1, 1]
    assert threads("blas") == before


def test_answers_come_in_order_as_from_threads_and_no_process_is_left():
    """Whatever process did which block; of those that were idle too."""
    values = [str(i) for i in range(1000)]
    with Processes(2) as processes:
        assert list(processes.map(int, values)) == list(in_threads(int, values)) == [*range(1000)]
        children = [Path(f"/proc/{p._child.pid}") for p in processes._running]
        assert [child.exists() for child in children] == [True, True]
    assert not any(child.exists() for child in children)


def test_an_error_of_a_function_is_raised_here_and_the_process_serves_on(tmp_path):
    """A refusal as it is, a mistake with its text; nothing of it reaches the terminal."""
    with Processes(1) as processes:
        with pytest.raises(StudyError, match="cannot be listed: No such file"):
            list(processes.map(list_folder, [tmp_path / "none"]))
        with pytest.raises(EngineError, match="ValueError: invalid literal for int"):
            processes.submit(int, "x").result()
        assert processes.submit(print, "text").result() is None
        assert list(processes.map(len, ["abc"])) == [3]


def test_ctrl_c_of_a_terminal_does_not_reach_the_processes():
    """From their first moment on: else each would print a traceback."""
    with Processes(1) as processes:
        child = processes._running[0]._child.pid
        assert os.getpgid(child) not in (0, os.getpgid(0))


def test_a_process_that_ends_stops_the_run(monkeypatch):
    """For want of memory, perhaps; nothing waits for it for ever."""
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(EngineError, match=r"has ended .* enough memory"), Processes(1) as processes:
        list(processes.map(len, ["abc"]))
