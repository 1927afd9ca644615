"""Small trainings that tests run here, in processes that are killed, and under ``torchrun``.

``python -m tests.finetune.jobs`` is a nursery: it has torch imported, and forks a child
for each line of JSON on its standard input, so a killed training costs milliseconds.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first optimiser would import it in every child
from torch import nn

from cache.errors import CacheError
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.loop import train
from pipeline.finetune.methods import TrainingSettings
from tests.cache_jobs import Fault, seam

IDENTITY = {"study": "tiny", "method": "full", "data": [1, 2]}
#: Two epochs of two steps, the second of one row; dropout, moments, best weights at work.
SETTINGS = TrainingSettings(epochs=2, batch_size=4, patience=2, seed=1, augmentation="light")
LONGER = replace(SETTINGS, epochs=15, patience=0)


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


def train_job(folder, *, settings=SETTINGS, pause=0.0, notes=None):
    """Train with a checkpoint after every step; final tensors and the rows of the epochs."""
    model = small_net()
    checkpoints = Noted(Path(folder), IDENTITY, seconds=0.0)
    checkpoints.notes = notes
    validation = Pictures(3, seed=1)
    rows = train(model, Pictures(pause=pause), validation, settings, checkpoints=checkpoints)
    return tensors(model), rows


def noted_job(folder, log, fault=None, **options):
    """The same before a disk that fails or kills; an error is noted too."""
    with seam(Path(log), fault) as notes:
        try:
            train_job(folder, notes=notes, **options)
        except (OSError, CacheError) as error:
            notes.note("error", kind=type(error).__name__, text=str(error), errno=error.errno)
        else:
            notes.note("done")


class Nursery:
    """A process with torch in memory that forks a child for each job."""

    def __init__(self):
        command = [sys.executable, "-W", "error", "-m", "tests.finetune.jobs"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_root())}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, folder, log, *, fault=None, kill_after=None):
        """Run :func:`noted_job` in a child; its exit code, negative for a signal.

        With a time to be killed after, it is a longer job that takes a while.
        """
        job = {"folder": str(folder), "log": str(log), "kill_after": kill_after}
        if fault:
            job |= {"call": fault.call, "kind": fault.kind}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        assert self._process.wait() == 0
        self._process.stdout.close()


def _root():
    return Path(__file__).parents[2]


def _fork(job):
    child = os.fork()
    if child == 0:
        with Path(os.devnull).open("w") as silence, contextlib.redirect_stderr(silence):
            fault = Fault(call=job["call"], kind=job["kind"]) if "kind" in job else None
            code = 1
            try:
                slow = job["kill_after"] is not None
                options = {"settings": LONGER, "pause": 0.01} if slow else {}
                noted_job(job["folder"], job["log"], fault, **options)
                code = 0
            finally:
                os._exit(code)
    if job["kill_after"] is not None:
        time.sleep(job["kill_after"])
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        print(_fork(json.loads(line)), flush=True)
