"""The tiny study that the tests of fine-tuning share, and two processes that train together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.study import load_study
from tests.finetune.tiny_trainable import install_trainable_tiny
from tests.tiny import write_tiny_study

TORCH = EngineChoice(engine="torch", device="cpu", batch_size=4)


def torchrun(folder, *arguments):
    """Run ``tests.finetune.group`` in two processes, in a folder; what they print is captured."""
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


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Sixty images, a backbone with a cut, nothing stored; the current folder holds all."""
    install_trainable_tiny(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return load_study(write_tiny_study(tmp_path))


@pytest.fixture
def stored(study):
    """The same with its features stored."""
    extract(study, TORCH)
    return study
