"""What is written for spreadsheets is a table and never a program."""

import csv
import io

import pytest

from pipeline.compare import Row, rows_as_csv
from pipeline.report.shift_chapters import TABLES, tables
from pipeline.report.text_tables import csv_text

#: What a target without labels has besides, as little as may be.
EMPTY = {
    "source_prediction": {"overall": {}, "by_class": []},
    "forecast": {"accuracy": {}, "prevalence": {}},
}


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A0", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_name_that_would_be_a_formula_is_text(name):
    """An apostrophe stands in front of it, in a cell and in a header."""
    assert csv_text([name], [[name]]) == f"'{name}\n'{name}\n"


def test_numbers_and_other_text_stay_what_they_are():
    """A negative number is a number; only the first character of a text matters."""
    row = [-0.5, -3, None, "a=b", "ill, or not", ""]
    (read,) = csv.reader(io.StringIO(csv_text(["a"], [row]).partition("\n")[2]))
    assert read == ["-0.5", "-3", "", "a=b", "ill, or not", ""]


def test_the_tables_of_heads_and_shift_are_written_so():
    """A head and a subgroup may be called anything."""
    row = Row(
        backbone="b", head="=1+1", seed=0, domain="source", role="validation", n=4, groups=2,
        metric="accuracy", value=-0.5, seconds=1.0, low=None, high=None, ci_method="none",
    )  # fmt: skip
    (read,) = csv.DictReader(io.StringIO(rows_as_csv([row])))
    assert (read["head"], read["value"], read["low"]) == ("'=1+1", "-0.5", "")
    group = {"backbone": "b", "target": "@t", "detect": [{"name": "-a", "statistic": -1.5}]}
    found = tables({"targets": [], "unlabelled": [{**group, **EMPTY}]})
    assert found["detect"].decode() == "backbone,target,name,statistic\nb,'@t,'-a,-1.5\n"


def test_a_table_without_rows_still_has_a_header():
    """A spreadsheet and a data frame open it as an empty table."""
    found = tables({"targets": [], "unlabelled": []})
    assert found == dict.fromkeys(TABLES, b"backbone,target\n")
