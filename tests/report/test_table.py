"""One table, four outputs: the numbers are the same, and names stay names."""

import csv
import io

import pytest

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


RECORDS = [
    {
        "head": "mlp", "best": True, "scores": interval(0.96, 0.9391, 0.9782),
        "gain": interval(0.0049, -0.0071, 0.0131), "p": 1.0, "seconds": 40.82,
    },
    {"head": "linear", "best": False, "scores": interval(0.955), "seconds": 6.0},
    {
        "head": "prior", "best": False, "scores": interval(0.5, 0.4431, 1.0),
        "gain": interval(-0.455, -0.515, -0.393), "p": 0.0002, "seconds": 0.004,
    },
]  # fmt: skip
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
    RECORDS,
    notes=("The baseline is linear; see headrace heads.",),
    key="heads",
    about={"domain": "source"},
)
#: Names that rich or HTML would take for markup.
NAMES = ["[/old]", "[red]ill[/red]", ":smile:", "a\\[b]", "<b>", "a|b", "*x*", "_y_", "`c`", "$d$"]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("share", 0.96, ".960"),
        ("share", 1.0, "1.00"),
        ("share", (0.96, 0.9391, 1.0), ".960 [.939, 1.00]"),
        ("share", (0.96, None, None), ".960"),
        ("percent", 0.0411, "4.1"),
        ("points", (-4.4e-18, -0.0412, 0.0446), "+0.0 [-4.1, +4.5]"),
        ("points", -0.0004, "-0.0"),
        ("change", (0.351, -0.1, 0.8), "+0.35 [-0.10, +0.80]"),
        ("p", 0.0009, "<.001"),
        ("p", 0.001, ".001"),
        ("p", 1.0, "1.00"),
        ("number", 0.4352, "0.435"),
        ("count", 12345, "12,345"),
        ("seconds", 40.82, "40.8"),
        ("share", None, "-"),
        ("text", None, ""),
        ("text", True, "yes"),
        ("mark", True, "*"),
        ("mark", False, ""),
    ],
)
def test_a_number_is_written_by_the_kind_of_its_column(kind, value, text):
    """What rounding leaves of nothing has no sign; a p-value is never zero."""
    assert format_value(value, kind) == text


def test_a_terminal_shows_what_is_known_with_numbers_to_the_right():
    """The AUROC that no row has is left out."""
    lines = terminal_text([TABLE]).splitlines()
    assert lines[0] == "validation: 400 images"
    assert lines[1].split() == ["head", "accuracy", "points", "p", "fit", "s"]
    assert lines[3].split("  ")[0].strip() == "mlp"
    assert lines[3] == " mlp      *   .960 [.939, .978]      +0.5 [-0.7, +1.3]    1.00    40.8"
    assert len({len(line) for line in lines[3:6]}) == 1
    assert lines[-1] == "The baseline is linear; see headrace heads."


def test_csv_has_every_digit_and_a_column_for_each_bound():
    """Columns without values are there too: a file has the same columns in every study."""
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert list(rows[0]) == [
        *("domain", "head", "best", "accuracy", "accuracy_low", "accuracy_high"),
        *("points", "points_low", "points_high", "p", "auroc", "fit_s"),
    ]
    assert rows[0]["accuracy_low"] == "0.9391"
    assert (rows[1]["accuracy"], rows[1]["accuracy_low"], rows[1]["points"]) == ("0.955", "", "")
    assert {row["domain"] for row in rows} == {"source"}


def of_names(*names, title=""):
    """A table of names alone."""
    return Table(title, (Column("x"),), [{"x": name} for name in names])


def test_tables_of_one_key_stand_below_one_another():
    """The rows of every target; columns that a table lacks are empty."""
    first, second = (
        Table("", (Column("x"), Column(name)), [{"x": name}], about={"target": name})
        for name in "ab"
    )
    assert to_csv(first, second) == "target,x,a,b\na,a,,\nb,b,,\n"


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A0", "+1", "-1+2", "@SUM(A1)"])
def test_a_name_that_would_be_a_formula_is_text(name):
    """A spreadsheet does not show the apostrophe in front; numbers below 0 stay numbers."""
    assert to_csv(of_names(name, -0.5, "a=b")) == f"x\n'{name}\n-0.5\na=b\n"


@pytest.mark.parametrize("name", ["\t=1", "\r=1", "a\nb", "\udce4"])
def test_a_name_of_control_characters_is_one_line(name):
    """Such a character is written as an escape, in which no formula begins."""
    assert to_csv(of_names(name)) == f"x\n{printable(name)}\n"
    assert printable(name).isascii()


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_shows_a_name_as_it_is(name):
    """In a cell, a header, a title and a note; the page is tested with hostile names too."""
    table = Table(name, (Column(name),), [{name: name}], notes=(name,))
    lines = [line.strip() for line in terminal_text([table]).splitlines() if "─" not in line]
    assert lines == [name] * 4


def test_details_are_not_on_the_terminal():
    """They are on the page; a terminal has the headings and the sentences."""
    hidden = Table("hidden", (Column("x"),), [{"x": "1"}], detail=True)
    parts = [Heading("b on net"), "Accuracy falls.", Detail("One seed."), hidden, TABLE]
    text = terminal_text(parts)
    assert text.startswith("b on net\n\nAccuracy falls.\n\nvalidation: 400 images\n")
    assert "hidden" not in text
    assert "One seed." not in text
