"""The command itself under ``torchrun``: two processes leave the results of one."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.features.extract import extract
from pipeline.study import load_study
from tests.finetune.command import install_repeatable_tiny
from tests.finetune.conftest import TORCH, torchrun
from tests.result_files import record_of
from tests.tiny import write_tiny_study

#: Of 32 images, seven steps: shares of 3 and 2 images, and one of one image each.
OPTIONS = ["--method", "full", "--epochs", "2", "--batch-size", "5", "--learning-rate", "0.01"]
OPTIONS += ["--device", "cpu", "--no-figures", "--json"]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """What one process finds; the features are there for the group too."""
    install_repeatable_tiny(monkeypatch, tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    study = write_tiny_study(tmp_path)
    extract(load_study(study), TORCH)
    done = CliRunner().invoke(main, ["finetune", str(study), *OPTIONS])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def _torchrun(folder, *arguments):
    """The command in two processes, with a folder of results to itself."""
    study = str(folder.parent / "study.toml")
    return torchrun(folder, "command", str(folder), *arguments, "finetune", study, *OPTIONS)


def _check_same_curve(*records):
    """Loss and accuracy of every epoch, within 1e-5."""
    names = ["fit_loss", "fit_accuracy", "validation_loss", "validation_accuracy"]
    group, alone = (
        np.array([[epoch[name] for name in names] for epoch in models[0]["curves"]])
        for models in (record["backbones"][0]["models"] for record in records)
    )
    assert group.shape == (2, 4)
    assert np.abs(group - alone).max() < 1e-5
    assert abs(alone[0, 0] - alone[1, 0]) > 1e-3  # or it would say nothing


@pytest.mark.slow  # two starts of torchrun; one is in the tests of the loop
def test_the_command_killed_in_two_processes_goes_on(alone, tmp_path):
    """Run again, it trains the second epoch alone, and the curve is that of one process.

    The first process alone prints, tells of epochs, and writes, once.
    """
    killed = _torchrun(tmp_path / "group", "--die")
    assert "exitcode  : -9" in killed.stderr
    assert "epoch 1/2: " in killed.stderr
    again = _torchrun(tmp_path / "group")
    assert again.returncode == 0, again.stderr
    assert "epoch 1/2: " not in again.stderr
    assert again.stderr.count("epoch 2/2: ") == again.stderr.count("full on tiny") == 1
    record = json.loads(again.stdout)
    assert record_of(tmp_path / "group" / "results" / "tiny" / "finetune.json") == record
    published = [
        json.loads((tmp_path / "group" / f"published-{rank}.json").read_text()) for rank in (0, 1)
    ]
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
    _check_same_curve(record, alone)
