"""Jobs at the same time give what jobs one after the other give, and threads are put back."""

import threading
import time

import pytest
from threadpoolctl import threadpool_info

from pipeline.heads import parallel
from pipeline.heads.parallel import run_each, run_parallel


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Whatever this machine has."""
    monkeypatch.setattr(parallel, "_cores", lambda: 2)


def test_two_jobs_run_at_once_and_answer_in_their_order():
    """Each waits for the other, which one after the other would never end."""
    meet = threading.Barrier(2, timeout=20)

    def job(number):
        meet.wait()
        return number

    assert run_parallel([lambda: job(1), lambda: job(2)]) == [1, 2]


def test_a_job_has_one_core_and_starts_no_further_threads():
    """Two cores are two jobs, at whatever depth: BLAS, OpenMP and our own threads."""

    def job():
        inner = run_parallel([threading.get_ident, threading.get_ident])
        return threading.get_ident(), set(inner), {p["num_threads"] for p in threadpool_info()}

    for own, inner, threads in run_parallel([job, job, job]):
        assert (inner, threads) == ({own}, {1})


def test_one_worker_alone_has_all_cores():
    """A head that must not run beside others still uses the machine."""
    expected = [pool["num_threads"] for pool in threadpool_info()]
    jobs = [lambda: [pool["num_threads"] for pool in threadpool_info()]] * 2
    assert run_each(jobs, workers=1, limit=60) == [expected] * 2


def test_after_an_error_threads_are_as_before():
    """The error is raised."""

    def fails():
        raise ValueError("singular")

    pools = threadpool_info()
    with pytest.raises(ValueError, match="singular"):
        run_parallel([fails, fails])
    assert [pool["num_threads"] for pool in threadpool_info()] == [p["num_threads"] for p in pools]


def test_a_job_that_never_ends_is_given_up_and_its_place_taken():
    """The others are done; the thread ends as soon as it runs Python again."""
    ended, done = threading.Event(), []

    def endless():
        try:
            while True:
                time.sleep(0.001)
        finally:
            ended.set()

    jobs = [endless, endless, lambda: 1, lambda: 2]
    outcomes = run_each(jobs, limit=0.2, done=lambda number, _: done.append(number))
    assert outcomes[2:] == [1, 2]
    assert all("did not end within 0.2 s" in str(late) for late in outcomes[:2])
    assert sorted(done) == [0, 1, 2, 3]
    assert ended.wait(5)


def test_ctrl_c_starts_no_further_job(monkeypatch):
    """What is waiting stays undone."""
    started = []

    def job():
        started.append(1)
        time.sleep(0.2)

    def interrupted(*_):
        time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Condition, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_each([job] * 8)
    time.sleep(0.3)
    assert len(started) <= 2
