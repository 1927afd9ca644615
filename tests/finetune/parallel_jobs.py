"""What ``torchrun`` starts in tests: one process of a group of two, on gloo.

Usage: ``parallel_jobs.py FOLDER``; each rank leaves ``<rank>.json`` there.
"""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pipeline.errors import EngineError
from pipeline.finetune import distributed as parallel
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.loop import train
from pipeline.finetune.methods import TrainingSettings
from tests.finetune.jobs import IDENTITY, Pictures, small_net, tensors

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
    answers = {"plain": curves()}
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    with parallel.joined("cpu") as device:
        assert device == "cpu"
        answer = {**_compared(where), "group": asdict(parallel.group())}
    (where / f"{os.environ['RANK']}.json").write_text(json.dumps(answer))
