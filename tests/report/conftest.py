"""Fixtures of this room: one tiny study in which every stage has run once."""

import pytest

from pipeline.report.page import STAGES
from tests.finetune.tiny_trainable import install_trainable_tiny
from tests.report.tiny_run import run_every_stage
from tests.result_files import record_of


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The folder of the study."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        install_trainable_tiny(patch, folder)
        patch.chdir(folder)
        patch.delenv("HEADRACE_FEATURES", raising=False)
        run_every_stage(folder)
    return folder


@pytest.fixture(scope="session")
def results(original):
    """The folder of its results, for tests that only read."""
    return original / "results" / "tiny"


@pytest.fixture
def records(results):
    """The record of each stage, to be changed."""
    return {stage: record_of(results / f"{stage}.json") for stage in STAGES}
