"""Two processes train as one does: the same loss curve, one writer, one model.

    python -m tests.finetune.test_distributed FOLDER [[--die] ARGUMENTS...]

is what ``torchrun`` starts: one process of a group of two, on gloo. Without arguments it trains;
each rank leaves ``<rank>.json`` in the folder. With arguments of ``headrace`` it runs the command,
and leaves the names of the files that it put in place; with ``--die`` rank 0 kills itself after its
first checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cache import disk
from pipeline.cli import main
from pipeline.errors import EngineError
from pipeline.features.extract import extract
from pipeline.finetune import distributed, networks
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.distributed import Group, process_group
from pipeline.finetune.loop import train
from pipeline.finetune.methods import TrainingSettings
from pipeline.study_file import load_study
from tests.finetune.jobs import IDENTITY, CutOff, Pictures, small_net, tensors
from tests.tiny import TORCH, install_trainable_tiny, record_of, write_tiny_study

#: Shares of 3 and 2 rows; of the last batch of one row, one share is empty.
SETTINGS = TrainingSettings(
    epochs=3, batch_size=5, learning_rate=0.01, augmentation="light", seed=2
)


def curves(*, norm=False, dropout=0.0, settings=SETTINGS, **options):
    """Train on 11 images; losses and accuracies, and every final weight, as JSON."""
    model = small_net(norm=norm, dropout=dropout)
    epochs = train(model, Pictures(11), Pictures(7, seed=1), settings, **options)
    rows = [[e.fit_loss, e.fit_accuracy, e.validation_loss, e.validation_accuracy] for e in epochs]
    weights = {name: value.double().tolist() for name, value in tensors(model).items()}
    return {"rows": rows, "weights": weights}


def _compared(folder):
    """Trainings that one process does too; the test left checkpoints of two that were cut off."""
    answers = {"plain": curves(), "group": asdict(distributed.group())}
    # The last step has shares of two rows and one, so that running statistics part.
    unequal = replace(SETTINGS, patience=1, batch_size=4)
    answers["norm and dropout"] = curves(norm=True, dropout=0.5, settings=unequal)
    answers["taken over"] = curves(checkpoints=Checkpoints(folder / "taken over", IDENTITY))
    alone = folder / f"alone-{distributed.group().rank}"
    try:
        curves(checkpoints=Checkpoints(alone, IDENTITY))
    except EngineError as error:
        answers["error"] = str(error)
    return answers


def install_repeatable_tiny(monkeypatch, folder):
    """The backbone ``tiny`` without what depends on how a batch is shared out.

    The head drops nothing, and BatchNorm, whose scale and shift are trained all the same,
    normalises by its running statistics instead of those of a process's share.
    """
    folder.mkdir(exist_ok=True)
    install_trainable_tiny(monkeypatch, folder)
    monkeypatch.setattr(networks, "_DROPOUT", 0.0)
    monkeypatch.setattr(
        nn.BatchNorm2d, "train", lambda norm, mode=True: nn.Module.train(norm, mode=False)
    )


def _published(folder, arguments):
    """Run the command; names of the files that this process put in place."""
    names, save, replace_file = [], Checkpoints.save, disk.replace

    def save_and_die(self, *args):
        save(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        install_repeatable_tiny(patch, folder / f"weights-{os.environ['RANK']}")
        patch.setattr(disk, "replace", lambda a, b: (names.append(b.name), replace_file(a, b))[1])
        if arguments[0] == "--die":
            patch.setattr(Checkpoints, "save", save_and_die)
        main([a for a in arguments if a != "--die"], standalone_mode=False)
    return names


def _torchrun(folder, *arguments):
    """Run this file in two processes; what they print is captured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [*command, "-m", "tests.finetune.test_distributed", str(folder), *arguments],
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


#: The source of the tiny study, with three findings; nobody has the first.
FINDINGS = """
findings = ["Hernia", "Bright", "Dark"]
[source]
table = "here.csv"
images = "here"
group = '^(p\\d+)'
[store]
path = "features"
[backbone.tiny]
"""


@pytest.mark.slow  # a start of torchrun
def test_several_findings_in_two_processes_are_printed_once(tmp_path, monkeypatch):
    """One fails in both processes; each of the others has a group of its own, with its own name.

    Otherwise the second group would find the addresses of the first, and fail or wait forever.
    """
    install_repeatable_tiny(monkeypatch, tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    file, images = write_tiny_study(tmp_path), sorted(Path("here").rglob("*.png"))
    marks = {"a": "0,0,1", "b": "0,1,0"}
    rows = [f"{i.relative_to('here')},{marks[i.parent.name]}" for i in images]
    Path("here.csv").write_text("\n".join(["path,Hernia,Bright,Dark", *rows]))
    file.write_text(FINDINGS)
    extract(load_study(file), TORCH)
    options = ["--method", "lp", "--epochs", "1", "--device", "cpu", "--no-figures", "--json"]
    done = _torchrun(tmp_path / "group", "finetune", str(file), *options)
    assert done.stderr.count("exitcode  : 1") == 1, done.stderr
    assert "Hernia: [source] " in done.stderr
    assert set(json.loads(done.stdout)["findings"]) == {"Bright", "Dark"}


if __name__ == "__main__":
    where, arguments = Path(sys.argv[1]), sys.argv[2:]
    if arguments:
        answer = _published(where, arguments)
    else:
        torch.set_num_threads(1)
        with process_group("cpu") as device:
            assert device == "cpu"
            answer = _compared(where)
    (where / f"{os.environ['RANK']}.json").write_text(json.dumps(answer))
