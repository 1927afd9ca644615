"""``headrace`` with a small backbone of its own, as ``torchrun`` starts it in tests.

    python -m tests.finetune.command FOLDER [--die] ARGUMENTS...

Each process leaves ``published-<rank>.json`` in the folder, the names of the files that it
put in place. With ``--die`` rank 0 kills itself after its first checkpoint.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from torch import nn

from cache import disk
from pipeline.cli import main
from pipeline.finetune import networks, runs
from tests.finetune.tiny_trainable import install_trainable_tiny


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


def _die_at_first_checkpoint(monkeypatch):
    real = runs.Checkpoints.save

    def save(self, *args):
        real(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(runs.Checkpoints, "save", save)


def _note_published(monkeypatch):
    names, real = [], disk.replace

    def replace(temporary, path):
        names.append(path.name)
        real(temporary, path)

    monkeypatch.setattr(disk, "replace", replace)
    return names


def _run(folder, arguments):
    rank = os.environ["RANK"]
    with pytest.MonkeyPatch.context() as patch:
        install_repeatable_tiny(patch, folder / f"weights-{rank}")
        if arguments[0] == "--die":
            del arguments[0]
            _die_at_first_checkpoint(patch)
        published = _note_published(patch)
        main(arguments, standalone_mode=False)
    (folder / f"published-{rank}.json").write_text(json.dumps(published))


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2:])
