"""Copies: shown side by side, and listed to be left out."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.audit.contact_sheet import SIDE, SheetEntry, draw_sheet
from pipeline.data.tables import read_lines
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.study import load_study
from tests.audit_worlds import smooth_study
from tests.test_cli import run
from tests.tiny import install_tiny_backbone

#: Numbers of pictures that are in fit, and their copies in the target.
IN_FIT = (4, 6, 10)
COPIED = tuple(f"there/a/pt{k + 4:03}.png" for k in IN_FIT)
TORCH = EngineChoice(engine="torch", device="cpu", batch_size=8)


@pytest.fixture
def copied_study(tmp_path, monkeypatch):
    """Three copies of fit in the target."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    kinds = ("scaled by 1/2", "recompressed", "mirrored")
    study_file = smooth_study(
        tmp_path, [(k, k + 4, how) for k, how in zip(IN_FIT, kinds, strict=True)]
    )
    study = load_study(study_file)
    extract(study, TORCH)
    run("heads", study_file, "--only", "linear", "--quick")
    return study_file


def test_a_leak_of_near_copies_is_said_everywhere_and_can_be_left_out(copied_study):
    """By the audit's exit code, above the table of heads, by shift; and no more afterwards."""
    shown = run("audit", copied_study, "--no-shortcuts", "--write-exclude", "out.txt", code=3)
    assert "source fit and there: 3 near copies are in both" in shown.stderr
    assert shown.stdout.count("lists the images") == 1
    assert read_lines(Path("out.txt")) == COPIED
    with Image.open("results/smooth/near_copies.png") as sheet:
        assert sheet.width > 2 * (2 * SIDE)
    heads = run("heads", copied_study, "--only", "linear", "--quick").stdout
    assert heads.startswith("Do not trust these numbers. source fit and there: 3 near copies")
    assert "3 near copies" in run("shift", copied_study, "--quick", code=3).stderr
    copied_study.write_text('exclude = "out.txt"\n' + copied_study.read_text())
    again = json.loads(run("audit", copied_study, "--no-shortcuts", "--json").stdout)
    assert (again["images"], again["counts"]["leak"]) == (197, 0)
    assert again["leave_out"] == list(COPIED)
    assert not Path("results/smooth/near_copies.png").exists()
    assert "Do not trust" not in run("heads", copied_study, "--only", "linear", "--quick").stdout


def test_a_sheet_has_both_pictures_side_by_side():
    """Left and right picture keep their grey; a long line does not leave its column."""
    grey = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (40, 90)]
    data = draw_sheet([SheetEntry(pixels=(grey[0], grey[1]), lines=("1.", "long " * 40))])
    sheet = np.asarray(Image.open(BytesIO(data)))
    assert (sheet[20, 20, 0], sheet[20, 20 + SIDE, 0]) == (40, 90)
    assert (sheet[:, -10:] == 255).all()
