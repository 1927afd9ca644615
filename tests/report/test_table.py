"""One table, four outputs, names stay names; what is shown of each stage is short and plain."""

import csv
import io
import re
from copy import deepcopy

import pytest

from pipeline import report
from pipeline.evaluation.intervals import TOO_FEW
from pipeline.report import show
from pipeline.report.shift import shift as shift_parts
from pipeline.report.table import (
    Column,
    Detail,
    Heading,
    Table,
    format_value,
    terminal_text,
    to_csv,
)
from pipeline.words import printable


def interval(estimate, low=None, high=None):
    return {"estimate": estimate, "low": low, "high": high}


TABLE = Table(
    "validation: 400 images",
    (
        Column("head"),
        Column("best", "mark"),
        Column("accuracy", "share", interval=True, field="scores"),
        Column("points", "points", interval=True, help="Against the baseline.", field="gain"),
        Column("p", "p"),
        Column("AUROC", "share"),
        Column("fit s", "seconds", field="seconds"),
    ),
    [
        {
            "head": "mlp", "best": True, "scores": interval(0.96, 0.9391, 0.9782),
            "gain": interval(0.0049, -0.0071, 0.0131), "p": 1.0, "seconds": 40.82,
        },
        {"head": "linear", "best": False, "scores": interval(0.955), "seconds": 6.0},
        {
            "head": "prior", "best": False, "scores": interval(0.5, 0.4431, 1.0),
            "gain": interval(-0.455, -0.515, -0.393), "p": 0.0002, "seconds": 0.004,
        },
    ],
    notes=("The baseline is linear; see headrace heads.",),
    key="heads",
    about={"domain": "source"},
)  # fmt: skip
#: Names that rich or HTML would take for markup.
NAMES = ["[/old]", "[red]ill[/red]", ":smile:", "a\\[b]", "<b>", "a|b", "*x*", "_y_", "`c`", "$d$"]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("share", 1.0, "1.00"),
        ("share", (0.96, 0.9391, 1.0), ".960 [.939, 1.00]"),
        ("share", (0.96, None, None), ".960"),
        ("percent", 0.0411, "4.1"),
        ("points", (-4.4e-18, -0.0412, 0.0446), "+0.0 [-4.1, +4.5]"),
        ("points", -0.0004, "-0.0"),
        ("change", (0.351, -0.1, 0.8), "+0.35 [-0.10, +0.80]"),
        ("p", 0.0009, "<.001"),
        ("p", 0.001, ".001"),
        ("number", 0.4352, "0.435"),
        ("ratio", (39.949, 4.135, 143196.6), "39.95 [4.13, 143,197]"),
        ("count", 12345, "12,345"),
        ("share", None, "-"),
        ("text", None, ""),
        ("text", True, "yes"),
        ("mark", False, ""),
    ],
)
def test_a_number_is_written_by_the_kind_of_its_column(kind, value, text):
    """What rounding leaves of nothing has no sign; a p-value is never zero."""
    assert format_value(value, kind) == text


def test_a_terminal_shows_what_is_known_with_numbers_to_the_right():
    """The AUROC that no row has is left out, and so are details."""
    hidden = Table("hidden", (Column("x"),), [{"x": "1"}], detail=True)
    parts = [Heading("b on net"), "Accuracy falls.", Detail("One seed."), hidden, TABLE]
    heading, _, sentence, _, *lines = terminal_text(parts).splitlines()
    assert (heading, sentence, lines[0]) == ("b on net", "Accuracy falls.", TABLE.title)
    assert lines[1].split() == ["head", "accuracy", "points", "p", "fit", "s"]
    assert lines[3] == " mlp      *   .960 [.939, .978]      +0.5 [-0.7, +1.3]    1.00    40.8"
    assert len({len(line) for line in lines[3:6]}) == 1
    assert lines[6:] == ["The baseline is linear; see headrace heads."]


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_shows_a_name_as_it_is(name):
    """In a cell, a header, a title and a note; the page is tested with hostile names too."""
    table = Table(name, (Column(name),), [{name: name}], notes=(name,))
    lines = [line.strip() for line in terminal_text([table]).splitlines() if "─" not in line]
    assert lines == [name] * 4


def test_csv_has_every_digit_and_a_column_for_each_bound():
    """Columns without values too; tables of one key stand below one another."""
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert list(rows[0]) == [
        *("domain", "head", "best", "accuracy", "accuracy_low", "accuracy_high"),
        *("points", "points_low", "points_high", "p", "auroc", "fit_s"),
    ]
    assert rows[0]["accuracy_low"] == "0.9391"
    assert (rows[1]["accuracy"], rows[1]["accuracy_low"], rows[1]["points"]) == ("0.955", "", "")
    assert {row["domain"] for row in rows} == {"source"}
    first, second = (
        Table("", (Column("x"), Column(name)), [{"x": name}], about={"target": name})
        for name in "ab"
    )
    assert to_csv(first, second) == "target,x,a,b\na,a,,\nb,b,,\n"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        *((name, f"'{name}") for name in ("=cmd|'/c calc'!A0", "+1", "-1+2", "@SUM(A1)")),
        *((name, printable(name)) for name in ("\t=1", "\r=1", "a\nb", "\udce4")),
    ],
)
def test_a_name_that_would_be_a_formula_or_a_line_is_text(name, cell):
    """A spreadsheet does not show the apostrophe in front; numbers below 0 stay numbers."""
    assert cell.isascii()
    table = Table("", (Column("x"),), [{"x": name}, {"x": -0.5}, {"x": "a=b"}])
    assert to_csv(table) == f"x\n{cell}\n-0.5\na=b\n"


# What people are shown of each stage: short, plain, and the same numbers everywhere.

#: Words that nobody outside the project would use.
RIDDLES = re.compile(
    r"\b(told?|foretold|foretell|mend|fix|fixes|habits?|honest|honestly|F\d+|treatment|here|there)\b"
)


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


@pytest.mark.parametrize("stage", ["heads", "finetune", "shift", "features", "audit"])
def test_the_text_fits_a_terminal_and_uses_the_fields_words(records, stage):
    """120 columns, 40 lines a target, of eleven heads too; no word needs a glossary of ours."""
    for domain in records["heads"]["backbones"][0]["domains"]:
        domain["rows"] += [{**domain["rows"][0], "head": name} for name in "abcdefgh"]
    text = show(stage, records[stage])
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


def test_predictive_values_are_said_to_be_at_the_class_mix_of_the_target(records):
    """In the rows of the source too, whose own share of positive images may be another."""
    tables = (p for p in shift_parts(records["shift"]) if isinstance(p, Table))
    (thresholds,) = (table for table in tables if table.key == "shift_thresholds")
    helps = {column.name: column.help for column in thresholds.columns}
    for name in ("PPV", "NPV"):
        assert helps[name].endswith("right, at the class mix of the target.")


def test_what_a_table_of_heads_leaves_open_says_how_many_patients_would_settle_it(records):
    """Below it, once: for an interval, and for a difference."""
    for row in records["heads"]["backbones"][0]["domains"][0]["rows"]:
        row["scores"]["auroc"] = {"estimate": 0.9, "low": None, "high": None, "method": TOO_FEW}
        patients = {"mlp": 1240}.get(row["head"])
        row["differences"]["accuracy"] = {"patients_needed": patients}
    text = " ".join(show("heads", records["heads"]).split())
    assert (
        text.count("too few patients for an interval of AUROC. An interval needs at least 2") == 1
    )
    assert "or by less than one point: mlp 1,240." in text


def test_points_are_explained_where_there_are_points(records):
    """Without lp no method has any, and those against a head are the method minus the head."""
    assert "Points: accuracy minus that of lp" in show("finetune", records["finetune"])
    for domain in records["finetune"]["backbones"][0]["domains"]:
        for row in domain["rows"]:
            row["differences"].pop("lp", None)
    assert "minus that of lp" not in show("finetune", records["finetune"])


@pytest.mark.parametrize("stage", ["heads", "finetune"])
@pytest.mark.parametrize(("patients", "is_rare"), [([40, 10], False), ([40, 9], True)])
def test_a_class_of_few_patients_is_named_below_its_table(records, stage, patients, is_rare):
    """Where an AUROC of 1.00 and equal accuracies say little: from as few as leave out its test."""
    record = records[stage] | {"classes": ["well", "ill"]}
    validation, target = record["backbones"][0]["domains"]
    validation["class_patients"], target["class_patients"] = [40, 40], patients
    text = " ".join(show(stage, record).split())
    sentence = "Class ill has only 9 patients: below 10, AUROC and accuracy say little."
    assert text.count(sentence) == text.count("say little") == is_rare
    assert "say little" not in text.partition("far: ")[0]


@pytest.mark.parametrize("p", [None, 0.2])
def test_a_table_over_findings_says_why_there_is_no_p(p):
    """Below it, once."""
    row = {"finding": "Mass", "backbone": "tiny", "domain": "far", "role": "target", "p": p}
    text = " ".join(show("findings", {"stage": "heads", "rows": [row] * 2}).split())
    words = "Without p, a class has fewer than 10 patients: its AUROC says little."
    assert text.count(words) == (p is None)


def test_audit_shows_the_worst_first_and_each_advice_once(records):
    """Images are named in the file alone, all but those of the nearest pairs."""
    audit = records["audit"]
    assert "No leak was found." in show("audit", audit)
    (copies,) = [result for result in audit["results"] if result["check"] == "copies"]
    copies["severity"] = "leak"
    audit["counts"] |= {"leak": 1, "note": audit["counts"]["note"] - 1}
    audit["results"].append({**copies, "check": "patients"})
    pair = [{"path": f"{name}.png", "role": name, "label": "a"} for name in "xy"]
    audit["near_duplicates"] = 7 * [{"similarity": 0.999, "how": "mirrored", "images": pair}]
    text = " ".join(show("audit", audit).split())
    assert text.index("leak") < text.index("2 warnings") < text.index(" notes")
    assert text.count("copies, patients: Each copy counts") == text.count("Each copy counts") == 1
    for words in (
        "The images are named in audit.json.",
        "These checks found nothing: overlap (all images)",
        "x.png (x, a) y.png (y, a) mirrored 0.999",
        "2 more pairs are in audit.json.",
    ):
        assert words in text
    assert copies["examples"]
    assert copies["examples"] not in text
    assert "No leak" not in text


def test_features_count_what_was_done_and_skipped(records):
    """The first images with their reasons, and how many more there are."""
    features = records["features"]
    (row,) = features["backbones"]
    row |= {"computed": 40, "seconds": 2.0, "images_per_second": 20.0, "skipped": 12}
    reason = {"domain": "far", "reason": "not an image"}
    features["skipped"] = [{**reason, "path": f"{k}.png"} for k in range(12)]
    text = show("features", features)
    done = "tiny: 40 computed in 2.0 s (20.0/s), 0 reused, 12 skipped of 181 images"
    assert text.startswith(done)
    assert text.count("not an image") == 10
    assert "2 more are in features.json." in text
    row["computed"] = 0
    assert "tiny: nothing to do" in show("features", features)
