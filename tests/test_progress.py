"""Long work is never silent; short work says nothing."""

import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline import progress
from pipeline.compare import QUICK, compare
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.progress import Progress
from pipeline.study_file import load_study
from tests.tiny import install_tiny_backbone


@pytest.mark.parametrize("done", [0, 3])
def test_a_line_comes_also_where_nothing_gets_done(monkeypatch, capsys, done):
    """One long step looks like a hang without it."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.01)
    with Progress("scores", 4, unit="domains") as shown:
        shown.advance(done)
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert lines[-1].startswith(f"scores: {done}/4, ")
    assert lines[-1].endswith(" s to go" if done else "0.0 domains/s")


def test_short_work_says_nothing(capsys):
    """A line for each of many short steps would hide the others."""
    with Progress("scores", 1) as shown:
        shown.advance()
    assert capsys.readouterr().err == ""


def test_long_work_ends_with_its_rate(monkeypatch, capsys):
    """What was done, and how fast."""
    monkeypatch.setattr(progress, "_SECONDS_OF_SHORT_WORK", 0)
    with Progress("facts", 2) as shown:
        shown.advance(2)
    assert capsys.readouterr().err.startswith("facts: 2/2, ")


@pytest.mark.slow
def test_heads_of_three_hundred_classes_are_never_silent(tmp_path, monkeypatch, capsys):
    """2,400 images; a line every few seconds, where no terminal is."""
    rng = np.random.default_rng(0)
    for i in range(2400):
        folder = tmp_path / "here" / f"class{i % 300:03}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(60 + i % 300 * 0.4, 25, (40, 40)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"p{i}_0.png")
    (tmp_path / "study.toml").write_text(
        'name = "many"\n[source]\npath = "here"\nignore = []\n'
        "group = '^(p\\d+)'\n[backbone.tiny]\n"
    )
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    study = load_study(tmp_path / "study.toml")
    extract(study, EngineChoice(engine="torch", device="cpu"))
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 1)
    capsys.readouterr()
    start = time.process_time()
    compare(study, replace(QUICK, heads=("linear", "ridge")))
    assert time.process_time() - start < 60
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("heads")]
    assert len(lines) > 2
    assert "/3, " in lines[-1]
