"""Fixtures of this room: one tiny study in which every stage has run once."""

import shutil

import pytest

from pipeline.report.page import STAGES
from tests.test_cli import run
from tests.tiny import install_trainable_tiny, record_of, write_images

#: Class names that try to become markup, to leave an attribute, and to turn the text round.
HOSTILE = ("<script>alert(1)", 'b" onmouseover="x\u202e{{7*7}}')
STUDY = r"""name = "tiny"
[source]
path = "a"
group = '^(p\d+)'
attributes = "sex.csv"
[target.far]
path = "b"
group = '^(p\d+)'
attributes = "sex.csv"
[subgroups]
sex = true
[store]
path = "features"
[backbone.tiny]
"""
CPU = ["--device", "cpu", "--no-figures"]


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The folder of the study.

    Some labels are wrong, so that heads err; an image has a copy; of some no sex is known.
    """
    folder = tmp_path_factory.mktemp("study")
    for number, (domain, count) in enumerate({"a": 60, "b": 120}.items(), start=1):
        write_images(folder / domain, count, seed=number, shift=20 * number)
        for path in sorted((folder / domain).glob("*/*.png"))[::7]:
            path.rename(folder / domain / "ba"["ab".index(path.parent.name)] / path.name)
        for plain, hostile in zip("ab", HOSTILE, strict=True):
            (folder / domain / plain).rename(folder / domain / hostile)
    image = min((folder / "a" / HOSTILE[0]).iterdir())
    shutil.copy(image, image.with_name(f"{image.stem}<img src=x onerror=y>.png"))
    sexes = [f"p{d}{k:03},{'$F$' if k < 14 else 'M'}" for d in (1, 2) for k in range(26)]
    (folder / "sex.csv").write_text("\n".join(["patient,sex", *sexes]))
    (folder / "study.toml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        install_trainable_tiny(patch, folder)
        patch.chdir(folder)
        for stage, *flags in (
            ["features", "--engine", "torch"],
            ["audit", "--no-shortcuts"],
            ["heads", "--only", "linear,prior,mlp", "--no-figures"],
            ["finetune", "--method", "lp", "--method", "last_block", "--epochs", "2", *CPU],
            ["shift", "--quick", "--no-figures"],
        ):
            run(stage, "study.toml", *flags)
    return folder


@pytest.fixture(scope="session")
def results(original):
    """The folder of its results, for tests that only read."""
    return original / "results" / "tiny"


@pytest.fixture
def records(results):
    """The record of each stage, to be changed."""
    return {stage: record_of(results / f"{stage}.json") for stage in STAGES}
