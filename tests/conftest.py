"""What all tests share: a tiny study, and counts of what was tried, shown at the very end."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("seeded", derandomize=True, deadline=None)  # a busy machine is no bug
settings.load_profile("seeded")

_COUNTS = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin with nothing counted, and with no place for stores that this machine may have."""
    os.environ.pop("HEADRACE_FEATURES", None)
    config.stash[_COUNTS] = Counter()


@pytest.fixture(scope="session")
def counts(pytestconfig: pytest.Config) -> Counter[str]:
    """Counts for the line in the terminal summary."""
    return pytestconfig.stash[_COUNTS]


@pytest.fixture
def tiny_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which the weights of the backbone ``tiny`` are."""
    from tests.tiny import install_tiny_backbone

    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def study_file(tiny_folder: Path) -> Path:
    """A tiny study; the current folder is its folder."""
    from tests.tiny import write_tiny_study

    return write_tiny_study(tiny_folder)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts of a worker process to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = {
            name: int(count) for name, count in session.config.stash[_COUNTS].items()
        }


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a worker process that ended."""
    node.config.stash[_COUNTS].update(getattr(node, "workeroutput", {}).get("counts", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the counts: how much was tried is part of the result."""
    counts = config.stash[_COUNTS]
    if counts:
        terminalreporter.write_line(
            f"store: {counts['faults']:,} faults injected ({counts['kills']:,} kills), "
            f"{counts['wrong rows']} wrong rows, {counts['lost rows']} acknowledged rows lost; "
            f"{counts['damaged files']:,} damaged files, {counts['served']} served; "
            f"{counts['bugs caught']}/{counts['bugs planted']} planted bugs caught"
        )
        terminalreporter.write_line(
            f"results: {counts['result faults']:,} faults injected ({counts['result kills']:,} "
            f"kills), {counts['mixed results']} sets of two runs believed; "
            f"{counts['altered bytes']:,} altered bytes, all found"
        )
