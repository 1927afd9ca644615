"""Long work is never silent; short work says nothing."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import progress
from pipeline.compare import QUICK, compare
from pipeline.features.extract import extract
from pipeline.progress import Progress
from pipeline.study_file import load_study
from tests.tiny import TORCH, install_tiny_backbone


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


@pytest.mark.parametrize(("seconds", "said"), [(60, ""), (0, "heads: 2/2, ")])
def test_only_long_work_ends_with_its_rate(monkeypatch, capsys, seconds, said):
    """A line for each of many short steps would hide the others."""
    monkeypatch.setattr(progress, "_SECONDS_OF_SHORT_WORK", seconds)
    with Progress("heads", 2) as shown:
        shown.advance(2)
    assert capsys.readouterr().err[:12] == said


@pytest.mark.slow
def test_heads_of_three_hundred_classes_are_never_silent(tmp_path, monkeypatch, capsys):
    """2,400 images; a line every few seconds, where no terminal is."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    label = np.arange(2400) % 300
    pixels = np.random.default_rng(0).normal(60 + 0.4 * label, 25, (40, 40, 2400))
    images = pixels.transpose(2, 0, 1).clip(0, 255).astype(np.uint8)
    np.savez("many.npz", all_images=images, all_labels=label)
    text = 'name = "many"\n[source]\npath = "many.npz"\n[backbone.tiny]\n'
    Path("study.toml").write_text(text)
    study = load_study(Path("study.toml"))
    extract(study, TORCH)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 1)
    capsys.readouterr()
    start = time.process_time()
    compare(study, replace(QUICK, heads=("linear", "ridge")))
    assert time.process_time() - start < 60
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("heads")]
    assert len(lines) > 2
    assert "/3, " in lines[-1]
