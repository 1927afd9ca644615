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
