"""Two processes train as one does: the same loss curve, one writer, one model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.errors import EngineError
from pipeline.features.extract import extract
from pipeline.finetune.distributed import Group, process_group
from pipeline.study_file import load_study
from tests.finetune.conftest import TORCH
from tests.finetune.group import curves, install_repeatable_tiny
from tests.finetune.jobs import IDENTITY, CutOff
from tests.result_files import record_of
from tests.tiny import write_tiny_study


def _torchrun(folder, *arguments):
    """Run ``tests.finetune.group`` in two processes; what they print is captured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [*command, "-m", "tests.finetune.group", str(folder), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def alone():
    """The training as one process does it."""
    return curves()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the two processes of a group say."""
    folder = tmp_path_factory.mktemp("group")
    for name in ("taken over", "alone-0"):
        with pytest.raises(KeyboardInterrupt):
            curves(checkpoints=CutOff(folder / name, IDENTITY, seconds=0))
    done = _torchrun(folder)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def _flat(answer):
    return np.ravel(answer["rows"])


def test_two_processes_have_the_loss_curve_of_one(alone, both):
    """Within 1e-5, with shares of unequal size and one without a row; so are the weights."""
    assert [answer["group"] for answer in both] == [{"rank": rank, "size": 2} for rank in (0, 1)]
    for answer in both:
        assert np.abs(_flat(answer["plain"]) - _flat(alone)).max() < 1e-5
        for name, values in answer["plain"]["weights"].items():
            assert np.abs(np.array(values) - alone["weights"][name]).max() < 1e-5
    losses = [row[0] for row in alone["rows"]]
    assert max(losses) - min(losses) > 1e-3  # or the comparison would say nothing


def test_all_processes_end_with_the_same_model_and_numbers(alone, both):
    """To the last bit, with norm and dropout too; so does a group that takes a training over."""
    for training in ("plain", "norm and dropout", "taken over"):
        assert both[0][training] == both[1][training]
    # The number of processes is no part of what a checkpoint is of.
    assert np.abs(_flat(both[0]["taken over"]) - _flat(alone)).max() < 1e-5


def test_processes_that_see_different_checkpoints_stop(both):
    """Each says so, and none waits for the other forever."""
    for answer in both:
        assert "the processes see different checkpoints" in answer["error"]
        assert "one shared results folder" in answer["error"]


@given(n=st.integers(1, 20), size=st.integers(1, 6), seed=st.integers(0, 9))
def test_the_mean_over_processes_is_the_mean_over_rows(n, size, seed):
    """Whatever the shares, each row counts once; a share without a row counts nothing."""
    values = np.random.default_rng(seed).normal(size=n)
    shares = [Group(rank=rank, size=size).share(np.arange(n)) for rank in range(size)]
    mean = sum(factor * values[rows].mean() for rows, factor in shares) / size
    assert mean == pytest.approx(values.mean())
    assert [row for rows, factor in shares if factor for row in rows] == list(range(n))


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    """The message says how many to start."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match="process 4 .* 2 CUDA devices.*--nproc-per-node 2"):
        process_group("cuda").__enter__()


#: Of 32 images, seven steps: shares of 3 and 2 images, and one of one image each.
OPTIONS = ["--method", "full", "--epochs", "2", "--batch-size", "5", "--learning-rate", "0.01"]
OPTIONS += ["--device", "cpu", "--no-figures", "--json"]


def _curve(record):
    names = ["fit_loss", "fit_accuracy", "validation_loss", "validation_accuracy"]
    (model,) = record["backbones"][0]["models"]
    return np.array([[epoch[name] for name in names] for epoch in model["curves"]])


@pytest.mark.slow  # two starts of torchrun; one is above
def test_the_command_killed_in_two_processes_goes_on(tmp_path, monkeypatch):
    """Run again, it trains the second epoch alone, and the curve is that of one process.

    The first process alone prints, tells of epochs, and writes, once.
    """
    install_repeatable_tiny(monkeypatch, tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    file, group = write_tiny_study(tmp_path), tmp_path / "group"
    extract(load_study(file), TORCH)
    command = ["finetune", str(file), *OPTIONS]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    killed = _torchrun(group, "--die", *command)
    assert "exitcode  : -9" in killed.stderr
    assert "epoch 1/2: " in killed.stderr
    again = _torchrun(group, *command)
    assert again.returncode == 0, again.stderr
    assert "epoch 1/2: " not in again.stderr
    assert again.stderr.count("epoch 2/2: ") == again.stderr.count("full on tiny") == 1
    record = json.loads(again.stdout)
    assert record_of(group / "results" / "tiny" / "finetune.json") == record
    published = [json.loads((group / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert published[1] == []
    once = [name for name in published[0] if not name.startswith("checkpoint-")]
    assert sorted(once) == [
        "finetune.csv",
        "finetune.h5",
        "finetune.json",
        "finetune.json",  # with the tables that were made of it
        "finetune_costs.csv",
        "model.json",
        "model.safetensors",
        "probabilities.safetensors",
    ]
    of_group, of_one = _curve(record), _curve(json.loads(done.stdout))
    assert of_group.shape == (2, 4)
    assert np.abs(of_group - of_one).max() < 1e-5
    assert abs(of_one[0, 0] - of_one[1, 0]) > 1e-3  # or it would say nothing
