"""The tiny study that the tests of fine-tuning share."""

import pytest

from pipeline.features.extract import extract
from pipeline.study_file import load_study
from tests.tiny import TORCH, install_trainable_tiny, write_tiny_study


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
