"""One table, four outputs: the numbers are the same, and names stay names."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.table import (
    NUMBERS,
    Column,
    Detail,
    Heading,
    Table,
    csv_files,
    format_value,
    markdown_text,
    table_of,
    terminal_text,
    to_csv,
    to_html,
    to_markdown,
    to_terminal,
)
from pipeline.words import printable

TABLE = Table(
    title="validation: 400 images",
    columns=(
        Column("head"),
        Column("best", "mark"),
        Column("accuracy", "share", interval=True),
        Column("points", "points", interval=True, help="Against the baseline."),
        Column("p", "p"),
        Column("AUROC", "share"),
        Column("fit s", "seconds"),
    ),
    rows=(
        ("mlp", True, (0.96, 0.9391, 0.9782), (0.0049, -0.0071, 0.0131), 1.0, None, 40.82),
        ("linear", False, (0.955, None, None), None, None, None, 6.0),
        ("prior", False, (0.5, 0.4431, 1.0), (-0.455, -0.515, -0.393), 0.0002, None, 0.004),
    ),
    notes=("The baseline is linear; see `headrace heads STUDY`.",),
    key="heads",
    about={"domain": "source"},
)
#: Names that rich, Markdown or HTML would take for markup.
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
    lines = to_terminal(TABLE).splitlines()
    assert lines[0] == "validation: 400 images"
    assert lines[1].split() == ["head", "accuracy", "points", "p", "fit", "s"]
    assert lines[3].split("  ")[0].strip() == "mlp"
    assert lines[3] == " mlp      *   .960 [.939, .978]      +0.5 [-0.7, +1.3]    1.00    40.8"
    assert len({len(line) for line in lines[3:6]}) == 1
    assert lines[-1] == "The baseline is linear; see `headrace heads STUDY`."


def test_no_number_is_cut_where_words_are_long():
    """A name takes several lines instead."""
    rows = tuple((f"{k}" * 200, *row[1:]) for k, row in enumerate(TABLE.rows))
    text = to_terminal(Table(title="", columns=TABLE.columns, rows=rows))
    assert max(map(len, text.splitlines())) <= 120
    assert ".960 [.939, .978]" in text
    assert "-45.5 [-51.5, -39.3]" in text


def test_markdown_has_the_numbers_of_the_terminal():
    """The same texts, and what a column means."""
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "### validation: 400 images"
    assert lines[4] == "| mlp | \\* | .960 [.939, .978] | +0.5 [-0.7, +1.3] | 1.00 | 40.8 |"
    assert lines[-2] == "- The baseline is linear; see `headrace heads STUDY`."
    assert lines[-1] == "- points: Against the baseline."


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


def test_tables_of_one_key_share_a_file():
    """The rows of every target stand below one another; a table without a key has no file."""
    one, other = (
        Table(title="", columns=(Column("x"),), rows=((k,),), key="k", about={"target": k})
        for k in "ab"
    )
    parts = [one, "a sentence", Table(title="", columns=(Column("y"),), rows=()), other]
    assert csv_files(parts) == {"k": "target,x\na,a\nb,b\n"}


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A0", "+1", "-1+2", "@SUM(A1)"])
def test_a_name_that_would_be_a_formula_is_text(name):
    """A spreadsheet does not show the apostrophe in front; numbers below 0 stay numbers."""
    table = Table(title="", columns=(Column("x"),), rows=((name,), (-0.5,), ("a=b",)))
    assert to_csv(table) == f"x\n'{name}\n-0.5\na=b\n"


@pytest.mark.parametrize("name", ["\t=1", "\r=1", "a\nb", "\udce4"])
def test_a_name_of_control_characters_is_one_line(name):
    """Such a character is written as an escape, in which no formula begins."""
    table = Table(title="", columns=(Column("x"),), rows=((name,),))
    assert to_csv(table) == f"x\n{printable(name)}\n"
    assert printable(name).isascii()


class _Texts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name):
    """In a cell, a header, a title and a note."""
    column = Column(name, help=name)
    table = Table(title=name, columns=(column,), rows=((name,),), notes=(name,))
    assert [line.strip() for line in to_terminal(table).splitlines() if "─" not in line] == (
        [name] * 4
    )
    page = _Texts()
    page.feed(to_html(table))
    assert [text for text in page.texts if text.strip()] == [name, name, name, f"{name}: {name}"]
    assert set(page.tags) == {"div", "table", "thead", "tbody", "tr", "th", "p"}


@given(st.text(min_size=1, max_size=12))
def test_a_cell_of_markdown_stays_one_cell(name):
    """Whatever bytes a folder's name holds: two bars that are not escaped, one line."""
    table = Table(title="", columns=(Column("x"),), rows=((name,),))
    line = to_markdown(table).splitlines()[2]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 2
    assert "<" not in line.replace("&lt;", "")


def test_html_marks_numbers_and_names_the_rows():
    """Screen readers get a header for each row and column."""
    html = to_html(TABLE)
    assert '<th scope="row">mlp</th>' in html
    assert '<td class="n">.960 [.939, .978]</td>' in html
    assert "<code>headrace heads STUDY</code>" in html


def test_details_are_not_on_the_terminal():
    """They are in the document; a terminal has the headings and the sentences."""
    hidden = Table(title="hidden", columns=(Column("x"),), rows=(("1",),), detail=True)
    parts = [Heading("b on net"), "Accuracy falls.", Detail("One seed."), hidden, TABLE]
    text = terminal_text(parts)
    assert text.startswith("b on net\n\nAccuracy falls.\n\nvalidation: 400 images\n")
    assert "hidden" not in text
    assert "One seed." not in text
    document = markdown_text("Shift", parts)
    assert document.startswith("# Shift\n\n## b on net\n\nAccuracy falls.\n\nOne seed.\n\n### hid")


def test_a_table_without_rows_shows_its_title_and_notes():
    """An empty grid says nothing; a CSV file still has its header."""
    empty = Table(title="t", columns=(Column("x", "p"),), rows=(), notes=("None.",))
    assert to_terminal(empty) == "t\nNone."
    assert to_markdown(empty) == "### t\n\n- None."
    assert to_html(empty) == '\n<p class="note">None.</p>'
    assert to_csv(empty) == "x\n"


def test_a_table_is_made_of_the_rows_of_a_record():
    """An interval is the row's own, or that of a field; what a row lacks is not known."""
    rows = [
        {"name": "a", "estimate": 0.9, "low": 0.8, "high": 0.95, "images": 40, "gain": None},
        {"name": "b", "estimate": None, "gain": {"estimate": 0.1, "low": None, "high": None}},
    ]
    columns = (
        Column("method", field="name"),
        Column("accuracy", "share", interval=True),
        Column("images", "count"),
        Column("points", "points", interval=True, field="gain"),
    )
    table = table_of("t", columns, rows, key="k")
    assert table.rows == (
        ("a", (0.9, 0.8, 0.95), 40, None),
        ("b", None, None, (0.1, None, None)),
    )
    assert (table.title, table.key, table.values("method")) == ("t", "k", ["a", "b"])
    assert set(NUMBERS) >= {"share", "percent", "points", "p", "number", "count", "seconds"}
