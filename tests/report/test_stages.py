"""What people are shown of each stage: short, plain, and the same numbers everywhere."""

import csv
import re
from copy import deepcopy

import pytest

from pipeline import report
from pipeline.evaluation.intervals import TOO_FEW
from pipeline.report import show

#: Words that nobody outside the project would use.
RIDDLES = re.compile(
    r"\b(told?|foretold|foretell|mend|fix|fixes|habits?|honest|honestly|F\d+|treatment|here|there)\b"
)


def finding(severity, check="copies", where="source"):
    return {
        "check": check, "severity": severity, "where": where, "text": "1 image is a copy",
        "examples": "a/p1_0.png", "advice": "Remove it", "values": {},
    }  # fmt: skip


AUDIT = {
    "schema": 4, "study": "made up", "images": 120, "measured": 3, "seconds": 1.0,
    "counts": {"leak": 1, "warning": 2, "note": 0, "ok": 1},
    "findings": [
        finding("leak"), finding("warning"), finding("warning", where="far"),
        finding("ok", "patients", "all roles"),
    ],
    "near_copies": [
        {
            "number": number, "likeness": 0.999, "how": "mirrored",
            "images": [{"path": f"{name}.png", "role": name, "label": "a"} for name in "xy"],
        }
        for number in range(7)
    ],
    "leave_out": ["there/y.png"],
}  # fmt: skip
FEATURES = {
    "failures": {},
    "backbones": [
        {
            "backbone": "tiny", "computed": 40, "reused": 20, "skipped": 12, "images_in": 72,
            "seconds": 2.0, "images_per_second": 20.0, "dim": 8, "store": "features/tiny-0",
        }
    ],
    "skipped": [
        {"domain": "far", "path": f"{k}.png", "reason": "not an image"} for k in range(12)
    ],
}  # fmt: skip


def test_what_was_shown_is_not_shown_again(records):
    """More scores in the record show nothing new; a second backbone is shown, though equal."""
    heads = records["heads"]
    backbone = deepcopy(heads["backbones"][0])
    for row in backbone["domains"][0]["rows"]:
        row["scores"]["brier"] = row["clinical"] = None
    before = heads | {"backbones": [backbone]}
    assert show("heads", heads, before) == ""
    twice = heads | {"backbones": 2 * heads["backbones"]}
    assert show("heads", twice, before) == show("heads", heads)


@pytest.mark.parametrize("stage", ["heads", "finetune", "shift", "audit", "features"])
def test_the_text_fits_a_terminal_and_uses_the_fields_words(records, stage):
    """120 columns, 40 lines a target, of eleven heads too; no word needs a glossary of ours."""
    for domain in records["heads"]["backbones"][0]["domains"]:
        domain["rows"] += [{**domain["rows"][0], "head": name} for name in "abcdefgh"]
    text = show(stage, (records | {"audit": AUDIT})[stage])
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) <= 40
    assert not RIDDLES.findall(text)


def test_files_have_the_numbers_of_the_record(records):
    """A CSV file for each key."""
    files = {name: data.decode() for name, data in report.files("shift", records["shift"]).items()}
    wanted = {"shift_effects.csv", "shift_adaptation.csv", "shift_errors.csv"}
    assert wanted <= files.keys()
    rows = list(csv.DictReader(files["shift_adaptation.csv"].splitlines()))
    (target,) = records["shift"]["targets"]
    assert [float(row["accuracy"]) for row in rows] == [m["accuracy"] for m in target["adaptation"]]
    assert {row["target"] for row in rows} == {"far"}


def test_what_a_table_of_heads_leaves_open_says_how_many_patients_would_settle_it(records):
    """Below it, once: for an interval, and for a difference."""
    for row in records["heads"]["backbones"][0]["domains"][0]["rows"]:
        row["scores"]["auroc"] = {"estimate": 0.9, "low": None, "high": None, "method": TOO_FEW}
        patients = {"mlp": 1240}.get(row["head"])
        row["differences"]["accuracy"] = {"patients_to_settle": patients}
    text = " ".join(show("heads", records["heads"]).split())
    assert text.count("Too few patients for an interval of AUROC: 2 of each") == 1
    assert "decide the differences left open: mlp 1,240." in text


def test_audit_shows_the_worst_first_and_each_advice_once():
    """Images are named in the file alone."""
    text = show("audit", AUDIT)
    assert text.index("1 leak") < text.index("2 warnings")
    assert text.count("copies, patients: Remove it.") == text.count("Remove it") == 1
    for sentence in (
        "The images are named in audit.json.",
        "These checks found nothing: patients (all roles).",
        "2 more pairs are in audit.json.",
    ):
        assert sentence in text
    assert "p1_0" not in text
    assert "No leak" not in text
    assert "No leak was found." in show("audit", AUDIT | {"counts": AUDIT["counts"] | {"leak": 0}})


def test_features_count_what_was_done_and_skipped():
    """The first images with their reasons, and how many more there are."""
    text = show("features", FEATURES)
    done = "tiny: 40 computed in 2.0 s (20.0/s), 20 reused, 12 skipped of 72 images"
    assert text.startswith(done)
    assert text.count("not an image") == 10
    assert "2 more are in features.json." in text
    again = FEATURES["backbones"][0] | {"computed": 0}
    assert "tiny: nothing to do" in show("features", FEATURES | {"backbones": [again]})
