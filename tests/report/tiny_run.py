"""A tiny study in which every stage has run, and its results as figures take them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.evaluation.predictions import predictions_in
from pipeline.report import parts_of
from pipeline.report.figures import Results, stored_arrays
from pipeline.results import read_set
from tests.tiny import write_images

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


def run_every_stage(folder: Path) -> None:
    """In the current folder.

    Some labels are wrong, so that heads err; an image has a copy; of some no sex is known.
    """
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
    for stage, *flags in (
        ["features", "--engine", "torch"],
        ["audit", "--no-shortcuts"],
        ["heads", "--only", "linear,prior,mlp", "--no-figures"],
        ["finetune", "--method", "lp", "--method", "last_block", "--epochs", "2", *CPU],
        ["shift", "--quick", "--no-figures"],
    ):
        done = CliRunner().invoke(main, [stage, "study.toml", *flags])
        assert done.exit_code == 0, done.output


def results_of(folder: Path, stage: str, *, classes: int = 2) -> Results:
    """Of one stage; as if half of the second class were of a third one, where that is wanted."""
    results = read_set(folder / f"{stage}.json", stage)
    record, file = results.record, stored_arrays(results)
    stored = predictions_in(file).get("tiny")
    if classes == 3:
        record["classes"].append("c")
        third = (stored.label == 1) & (np.arange(len(stored.label)) % 4 < 2)
        parts = np.array([[0.6, 0.4]], np.float32)
        proba = {head: np.c_[p[:, :1], p[:, 1:] * parts] for head, p in stored.proba.items()}
        stored = replace(stored, classes=(*HOSTILE, "c"), label=stored.label + third, proba=proba)
    parts = tuple(parts_of(stage, record))
    return Results(file=file, backbone="tiny", record=record, parts=parts, predictions=stored)
