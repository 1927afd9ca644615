"""What ``torchrun`` starts in tests: one process of a group of two, on gloo.

    python -m tests.finetune.group FOLDER [[--die] ARGUMENTS...]

Without arguments it trains; each rank leaves ``<rank>.json`` in the folder. With arguments of
``headrace`` it runs the command, and leaves the names of the files that it put in place; with
``--die`` rank 0 kills itself after its first checkpoint.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cache import disk
from pipeline.cli import main
from pipeline.errors import EngineError
from pipeline.finetune import distributed as parallel
from pipeline.finetune import networks
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.loop import train
from pipeline.finetune.methods import TrainingSettings
from tests.finetune.jobs import IDENTITY, Pictures, small_net, tensors
from tests.finetune.tiny_trainable import install_trainable_tiny

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
    answers = {"plain": curves(), "group": asdict(parallel.group())}
    answers["norm and dropout"] = curves(
        norm=True, dropout=0.5, settings=replace(SETTINGS, patience=1)
    )
    answers["taken over"] = curves(checkpoints=Checkpoints(folder / "taken over", IDENTITY))
    alone = folder / f"alone-{parallel.group().rank}"
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


if __name__ == "__main__":
    where, arguments = Path(sys.argv[1]), sys.argv[2:]
    if arguments:
        answer = _published(where, arguments)
    else:
        torch.set_num_threads(1)
        with parallel.process_group("cpu") as device:
            assert device == "cpu"
            answer = _compared(where)
    (where / f"{os.environ['RANK']}.json").write_text(json.dumps(answer))
