"""Processes that work for this one: in order, loud, and gone with it."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.data.items import in_threads, list_folder
from pipeline.data.processes import Processes
from pipeline.errors import EngineError, StudyError


def test_answers_come_in_order_as_from_threads():
    """Whatever process did which block."""
    values = [str(i) for i in range(1000)]
    with Processes(2) as processes:
        assert list(processes.each(int, values)) == list(in_threads(int, values)) == [*range(1000)]


def test_what_a_function_refuses_is_raised_here(tmp_path):
    """A folder that cannot be listed, for example; the process serves on."""
    with Processes(1) as processes:
        with pytest.raises(StudyError, match="cannot be listed: No such file"):
            list(processes.each(list_folder, [tmp_path / "none"]))
        assert list(processes.each(len, ["abc"])) == [3]


def test_a_mistake_in_a_function_is_an_error_here_with_its_text():
    """The process serves on, and nothing of it reaches the terminal."""
    with Processes(1) as processes:
        with pytest.raises(EngineError, match="ValueError: invalid literal for int"):
            processes.submit(int, "x").result()
        assert processes.submit(print, "text").result() is None


def test_ctrl_c_of_a_terminal_does_not_reach_the_processes():
    """From their first moment on: else each would print a traceback."""
    with Processes(1) as processes:
        child = processes._running[0]._child.pid
        assert os.getpgid(child) not in (0, os.getpgid(0))


def test_a_process_that_ends_stops_the_run(monkeypatch):
    """For want of memory, perhaps; nothing waits for it for ever."""
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(EngineError, match=r"has ended .* enough memory"), Processes(1) as processes:
        list(processes.each(len, ["abc"]))


def test_no_process_is_left_when_it_is_over():
    """Of those that were idle too."""
    with Processes(2) as processes:
        children = [Path(f"/proc/{p._child.pid}") for p in processes._running]
        assert all(child.exists() for child in children)
    assert not any(child.exists() for child in children)
