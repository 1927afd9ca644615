"""Small trainings that tests run here, and under ``torchrun``."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.loop import train
from pipeline.finetune.methods import TrainingSettings

IDENTITY = {"study": "tiny", "method": "full", "data": [1, 2]}
#: Two epochs of two steps, the second of one row; dropout, moments, best weights at work.
SETTINGS = TrainingSettings(epochs=2, batch_size=4, patience=2, seed=1, augmentation="light")


class Pictures:
    """Pixels in memory, of two classes that a small network can tell apart."""

    def __init__(self, count=5, *, side=8, seed=0, pause=0.0):
        rng = np.random.default_rng(seed)
        self.label = np.arange(count, dtype=np.int64) % 2
        bright = 60 + 90 * self.label[:, None, None, None]
        self.pixels = (bright + rng.integers(0, 60, (count, side, side, 3))).astype(np.uint8)
        self.pause = pause
        self.asked = 0

    def __len__(self):
        return len(self.label)

    def batch(self, rows):
        time.sleep(self.pause)
        self.asked += len(rows)
        return torch.from_numpy(self.pixels[rows])


class SmallNet(nn.Module):
    """Pixels to two logits; dropout and, where asked for, BatchNorm on the way."""

    def __init__(self, *, norm=True, dropout=0.5):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AvgPool2d(4),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))

    def forward(self, pixels):
        return self.head(self.body(pixels.permute(0, 3, 1, 2).float().div(255)))


def small_net(seed=0, **options):
    """The same initial weights for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallNet(**options)


def tensors(model):
    """Copies of all parameters and buffers, by name."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(some, others):
    """Whether two trainings ended with the very same bits."""
    return some.keys() == others.keys() and all(torch.equal(some[k], others[k]) for k in some)


class CutOff(Checkpoints):
    """Ends its process, or raises, after the third save."""

    saves, last = 0, 3

    def save(self, *args):
        super().save(*args)
        self.saves += 1
        if self.saves == self.last:
            self.end()

    def end(self):
        raise KeyboardInterrupt


class Noted(Checkpoints):
    """Checkpoints that note each save down once it has returned."""

    notes = None

    def save(self, state, tensors_):
        super().save(state, tensors_)
        if self.notes:
            self.notes.note("ack", path=self.folder / self.newest, keys=["checkpoint"])


def train_job(folder, *, settings=SETTINGS, notes=None):
    """Train with a checkpoint after every step; final tensors and the rows of the epochs."""
    model = small_net()
    checkpoints = Noted(Path(folder), IDENTITY, seconds=0.0)
    checkpoints.notes = notes
    rows = train(model, Pictures(), Pictures(3, seed=1), settings, checkpoints=checkpoints)
    return tensors(model), rows
