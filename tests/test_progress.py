"""Long work is never silent; short work says nothing."""

import time

import pytest

from pipeline import progress
from pipeline.progress import Progress


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
