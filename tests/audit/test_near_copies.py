"""Near copies: shown side by side, listed to be left out, and their weight in the scores."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from pipeline.audit.contact_sheet import SIDE, SheetPair, draw_sheet
from pipeline.audit.stage import audit
from pipeline.data.samples import read_exclusions
from pipeline.errors import StudyError
from pipeline.evaluation.predictions import PROBABILITIES, read_predictions
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.features.load import load_features
from pipeline.study import load_study
from tests.audit_worlds import near_copies_of, smooth_study
from tests.test_cli import run
from tests.tiny import install_tiny_backbone

TORCH = EngineChoice(engine="torch", device="cpu", batch_size=8)


@pytest.fixture
def copied_study(tmp_path, monkeypatch):
    """Two moved copies of fit in the target, with stage 2's probabilities; and the two pairs."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    study_file = smooth_study(tmp_path, [(4, 8, 1), (6, 10, 1)])
    study = load_study(study_file)
    extract(study, ExtractOptions(engine=TORCH))
    run("heads", study_file, "--only", "linear", "--quick")
    near = near_copies_of(study_file)[1:]
    monkeypatch.setattr("pipeline.audit.stage.check_near_copies", lambda *_: near)
    return study, near


def test_scores_are_given_with_and_without_near_copies(copied_study):
    """From stage 2's probabilities: the scores of scikit-learn on the rows that stay."""
    study, _ = copied_study
    (row,) = [r for r in audit(study, shortcuts=False)["scores"] if r["role"] == "there"]
    accuracy = [row[of]["accuracy"] for of in ("all_images", "without_near_copies")]
    assert [interval["images"] for interval in accuracy] == [160, 158]
    assert accuracy[0]["low"] < accuracy[0]["estimate"] < accuracy[0]["high"]
    stored = read_predictions(study.results / PROBABILITIES)["tiny"]
    in_target = stored.domain == "there"
    names = [i.path for i in load_features(study, study.backbones[0]).samples.items]
    stay = in_target & ~np.isin(names, ["a/pt008.png", "a/pt010.png"])
    for rows, of in ((in_target, "all_images"), (stay, "without_near_copies")):
        proba, label = stored.proba["linear", 0][rows], stored.label[rows]
        assert row[of]["auroc"] == pytest.approx(roc_auc_score(label, proba[:, 1]))
        assert row[of]["accuracy"]["estimate"] == (proba.argmax(axis=1) == label).mean()


def test_near_copies_can_be_left_out_by_the_list_that_the_audit_writes(copied_study, monkeypatch):
    """The study names the file; a second audit, which finds none, keeps its lines."""
    study, (_, findings) = copied_study
    report = audit(study, shortcuts=False)
    assert [pair["number"] for pair in report["near_copies"]] == [1, 2]
    with Image.open(study.results / "near_copies.png") as sheet:
        assert sheet.width > 2 * (2 * SIDE)
    listed = study.results / "leave_out.txt"
    assert read_exclusions(listed) == ("there/a/pt008.png", "there/a/pt010.png")
    nothing = ((), findings)
    monkeypatch.setattr("pipeline.audit.stage.check_near_copies", lambda *_: nothing)
    again = audit(replace(study, exclude=listed), shortcuts=False)
    assert again["images"] == report["images"] - 2
    assert not (study.results / "near_copies.png").exists()
    assert read_exclusions(listed) == report["leave_out"] == again["leave_out"]
    audit(study, shortcuts=False)
    assert not listed.exists()


def test_a_sheet_without_pairs_is_refused():
    """A mistake of ours, which says so."""
    with pytest.raises(StudyError, match="at least one pair"):
        draw_sheet([])


def test_a_sheet_has_both_pictures_side_by_side():
    """Left and right picture keep their grey; a long line does not leave its column."""
    grey = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (40, 90)]
    data = draw_sheet([SheetPair(pixels=(grey[0], grey[1]), lines=("1.", "long " * 40))])
    sheet = np.asarray(Image.open(BytesIO(data)))
    assert (sheet[20, 20, 0], sheet[20, 20 + SIDE, 0]) == (40, 90)
    assert (sheet[:, -10:] == 255).all()
