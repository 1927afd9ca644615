"""Names, counts and numbers as text for people, values for JSON, and progress of long work."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import progress
from pipeline.compare import QUICK, compare
from pipeline.features.extract import extract
from pipeline.progress import Progress
from pipeline.study_file import load_study
from pipeline.words import as_file_name, first_of, printable, to_jsonable, zero_noise
from tests.tiny import TORCH


@pytest.mark.parametrize(
    ("value", "shown"), [(-4.4e-18, 0.0), (1.1e-16, 0.0), (-0.0, 0.0), (-4e-4, -4e-4), (1e-8, 1e-8)]
)
def test_only_what_rounding_leaves_is_nothing(value, shown):
    """Small values stay, with their sign: an interval that ends at -0.0 points ends below 0."""
    assert str(zero_noise(value)) == str(shown)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Zürich", "Zürich"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("p\udcff", "p\\udcff"),
        ("b\u202e", "b\\u202e"),
    ],
)
def test_a_name_cannot_drive_a_terminal(name, shown):
    """What is not UTF-8, or turns the text round, is an escape; a file's name is in no folder."""
    assert printable(name) == shown
    assert as_file_name(f"timm:{name}/b+c")[:5] == "timm_"
    assert as_file_name(f"timm:{name}/b+c")[-4:] == "_b+c"


def test_of_many_texts_three_are_named_and_the_others_counted():
    """A message stays readable whatever the number of images."""
    assert first_of("abc") == "a; b; c"
    assert first_of("abcde") == "a; b; c; and 2 more"


@dataclass
class _Row:
    x: object


def test_values_become_json():
    """Dataclasses, arrays, tuples and numbers of NumPy; what is not finite is null."""
    value = {1: _Row(x=np.array([1.5, np.nan])), "b": (np.float32(0.5), np.bool_(True), np.inf)}
    plain = to_jsonable(value)
    assert plain == {"1": {"x": [1.5, None]}, "b": [0.5, True, None]}
    json.dumps(plain, allow_nan=False)


# Long work is never silent; short work says nothing.


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
def test_heads_of_three_hundred_classes_are_never_silent(tiny_folder, monkeypatch, capsys):
    """2,400 images; a line every few seconds, where no terminal is."""
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
