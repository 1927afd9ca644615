"""Jobs at the same time give what jobs one after the other give, and threads are put back."""

import threading

import pytest
import torch
from threadpoolctl import threadpool_info

from pipeline.heads import parallel
from pipeline.heads.parallel import one_torch_thread, run_parallel


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
    """Two cores are two jobs, at whatever depth: BLAS, OpenMP, torch and our own threads."""

    def job():
        inner = run_parallel([threading.get_ident, threading.get_ident])
        with one_torch_thread():
            threads = {pool["num_threads"] for pool in threadpool_info()}
            return threading.get_ident(), set(inner), threads, torch.get_num_threads()

    for own, inner, threads, of_torch in run_parallel([job, job]):
        assert (inner, threads, of_torch) == ({own}, {1}, 1)


def test_after_an_error_threads_are_as_before():
    """Here and in threads that begin afterwards; the error is raised."""

    def fails():
        with one_torch_thread():
            raise ValueError("singular")

    before, pools = torch.get_num_threads(), threadpool_info()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="singular"):
            run_parallel([fails, fails])
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (2, [2])
    finally:
        torch.set_num_threads(before)
    assert [pool["num_threads"] for pool in threadpool_info()] == [p["num_threads"] for p in pools]
