"""What ``torchrun`` starts in tests: one process of a group of two, on gloo.

Usage: ``parallel_jobs.py JOB FOLDER``; each rank leaves ``JOB-<rank>.json`` there.
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
    found = train(model, Pictures(11), Pictures(7, seed=1), settings, **options)
    rows = [[r.fit_loss, r.fit_accuracy, r.validation_loss, r.validation_accuracy] for r in found]
    weights = {name: value.double().tolist() for name, value in tensors(model).items()}
    return {"rows": rows, "weights": weights}


def _compared(folder):
    """Trainings that one process does too; the test left checkpoints of two that were cut off."""
    found = {"plain": curves()}
    found["norm and dropout"] = curves(
        norm=True, dropout=0.5, settings=replace(SETTINGS, patience=1)
    )
    found["taken over"] = curves(checkpoints=Checkpoints(folder / "taken over", IDENTITY))
    own = folder / f"own-{parallel.group().rank}"
    try:
        curves(checkpoints=Checkpoints(own, IDENTITY))
    except EngineError as error:
        found["error"] = str(error)
    return found


#: By the name on the command line.
JOBS = {"compared": _compared}

if __name__ == "__main__":
    torch.set_num_threads(1)
    name, where = sys.argv[1], Path(sys.argv[2])
    with parallel.joined("cpu") as device:
        assert device == "cpu"
        answer = JOBS[name](where)
        answer["group"] = asdict(parallel.group())
    rank_ = os.environ["RANK"]
    (where / f"{name}-{rank_}.json").write_text(json.dumps(answer))
