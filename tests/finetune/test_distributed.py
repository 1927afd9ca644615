"""Two processes train as one does: the same loss curve, one writer, one model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import EngineError
from pipeline.finetune import distributed as parallel
from pipeline.finetune.distributed import Group, joined
from tests.finetune.jobs import IDENTITY, CutOff
from tests.finetune.parallel_jobs import curves

ROOT = Path(__file__).parents[2]


def _torchrun(job, folder):
    """Run a job in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.finetune.parallel_jobs", job, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def _answers(job, folder):
    """What both ranks found."""
    done = _torchrun(job, folder)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{job}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone():
    """The training as one process does it."""
    return curves()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the two processes of a group found."""
    folder = tmp_path_factory.mktemp("group")
    for name in ("taken over", "own-0"):
        with pytest.raises(KeyboardInterrupt):
            curves(checkpoints=CutOff(folder / name, IDENTITY, seconds=0))
    return _answers("compared", folder)


def _flat(found):
    return np.ravel(found["rows"])


def test_two_processes_have_the_loss_curve_of_one(alone, both):
    """Within 1e-5, with shares of unequal size and one without a row; so are the weights."""
    assert [one["group"] for one in both] == [{"rank": 0, "size": 2}, {"rank": 1, "size": 2}]
    for one in both:
        assert np.abs(_flat(one["plain"]) - _flat(alone)).max() < 1e-5
        for name, values in one["plain"]["weights"].items():
            assert np.abs(np.array(values) - alone["weights"][name]).max() < 1e-5
    losses = [row[0] for row in alone["rows"]]
    assert max(losses) - min(losses) > 1e-3  # or the comparison would say nothing


@pytest.mark.parametrize("training", ["plain", "norm and dropout", "taken over"])
def test_all_processes_end_with_the_same_model_and_numbers(both, training):
    """Weights, running statistics, scores and the epoch that is kept: to the last bit."""
    assert both[0][training] == both[1][training]


def test_a_group_goes_on_where_one_process_stopped(alone, both):
    """The number of processes is no part of what a checkpoint is of."""
    assert np.abs(_flat(both[0]["taken over"]) - _flat(alone)).max() < 1e-5


def test_processes_that_see_different_checkpoints_stop(both):
    """Each says so, and none waits for the other forever."""
    for one in both:
        assert "the processes see different checkpoints" in one["error"]
        assert "one shared results folder" in one["error"]


@given(n=st.integers(1, 20), size=st.integers(1, 6), seed=st.integers(0, 9))
def test_the_mean_over_processes_is_the_mean_over_rows(n, size, seed):
    """Whatever the shares, each row counts once; a share without a row counts nothing."""
    values = np.random.default_rng(seed).normal(size=n)
    shares = [Group(rank=rank, size=size).share(np.arange(n)) for rank in range(size)]
    mean = sum(factor * values[own].mean() for own, factor in shares) / size
    assert mean == pytest.approx(values.mean())
    assert [row for own, factor in shares if factor for row in own] == list(range(n))


def test_one_process_is_a_group_of_one(monkeypatch):
    """Nothing is started without ``torchrun``, and nothing is waited for."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as device:
        assert device == "cpu"
        assert parallel.group() == Group(rank=0, size=1)
        assert parallel.summed(torch.ones(1)).item() == 1


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    """The message says how many to start."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match="process 4 .* 2 CUDA devices.*--nproc-per-node 2"):
        joined("cuda").__enter__()
