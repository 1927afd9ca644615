"""Small trainings that tests run here, in child processes, and under ``torchrun``."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.finetune.checkpoints import Checkpoints
from pipeline.finetune.loop import LoopSettings, train

IDENTITY = {"study": "tiny", "method": "full"}
#: Shares of three rows for two processes, a last batch of one, dropout and clipping at work.
SETTINGS = LoopSettings(epochs=3, batch_size=3, patience=2, seed=1, augmentation="light")


class Pictures:
    """Pixels in memory, of two classes that a small network can tell apart."""

    def __init__(self, count=10, *, side=8, seed=0):
        rng = np.random.default_rng(seed)
        self.label = np.arange(count, dtype=np.int64) % 2
        bright = 60 + 90 * self.label[:, None, None, None]
        self.pixels = (bright + rng.integers(0, 60, (count, side, side, 3))).astype(np.uint8)

    def __len__(self):
        return len(self.label)

    def batch(self, rows):
        return torch.from_numpy(self.pixels[rows])


class Rows:
    """Stored activations: any array, with labels."""

    def __init__(self, X, label):
        self.X, self.label = X, label

    def __len__(self):
        return len(self.label)

    def batch(self, rows):
        return torch.from_numpy(self.X[rows])


class SmallNet(nn.Module):
    """Pixels to two logits; dropout and, where asked for, BatchNorm on the way."""

    def __init__(self, *, norm=True, dropout=0.5):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
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


def train_job(folder: Path, *, seconds=0.0, settings=SETTINGS):
    """Train with a checkpoint at every step; returns the final tensors by name, and the history."""
    model = small_net()
    watched = {"validation": Pictures(6, seed=1)}
    checkpoints = Checkpoints(folder, IDENTITY, seconds=seconds)
    history = train(model, Pictures(), watched, settings, checkpoints=checkpoints)
    return {name: value.numpy() for name, value in model.state_dict().items()}, history
