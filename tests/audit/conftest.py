"""The tiny study that the tests of the audit share."""

import pytest

from pipeline.features.engines import EngineChoice
from tests.tiny import install_tiny_backbone, write_tiny_study

TORCH = EngineChoice(engine="torch", device="cpu", batch_size=8)


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    """A tiny study of 80 images in the source and 40 in the target, in the current folder."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    return write_tiny_study(tmp_path, source=80, target=40)
