"""Subgroups through stage 4: from the study file to JSON, Markdown, CSV, lines and figure."""

import json
from pathlib import Path

import pytest

from pipeline import report as reports
from pipeline.errors import StudyError
from pipeline.report import figures
from pipeline.shift import known
from pipeline.shift.record import to_json
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study import load_study
from pipeline.words import to_jsonable
from tests.tiny import stored_tiny_study

SHORT = ShiftOptions(draws=49, seeds=1)


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch):
    """A tiny study with features stored and, beside it, attributes of its patients."""
    file = stored_tiny_study(tmp_path, monkeypatch, source=120, target=120)
    for number, site in enumerate(("here", "there"), start=1):
        rows = [f"p{number}{i:03},{'FM'[i % 2]},{20.0625 + 2 * i}" for i in range(29)]
        Path(f"{site}.csv").write_text("\n".join(["patient,sex,age", *rows]))
    return file


def asking(file, *, source=True):
    """The study with ``[subgroups]``."""
    text = file.read_text()
    for site in ("here", "there") if source else ("there",):
        text = text.replace(f'path = "{site}"', f'path = "{site}"\nattributes = "{site}.csv"')
    look = "[subgroups]\nsex = true\nage = [50]\n"
    file.write_text(text.replace("[store]", f"{look}[store]"))
    return load_study(file)


def test_groups_are_in_every_file_with_the_same_numbers(study_file):
    """JSON, CSV, Markdown and the lines say the same of the same groups."""
    study = asking(study_file)
    analyse(study, SHORT)
    (target,) = json.loads((study.results / "shift.json").read_text())["targets"]
    tables = target["subgroups"]
    assert [(t["domain"], t["attribute"]) for t in tables] == [
        ("source", "sex"), ("source", "age"), ("target", "sex"), ("target", "age")
    ]  # fmt: skip
    sizes = [[(g["name"], g["images"]) for g in table["groups"]] for table in tables]
    assert sizes[0] == sizes[2] == [("F", 60), ("M", 56), ("unknown", 4)]
    assert sizes[1] == [("< 50", 60), ("50 or more", 56), ("unknown", 4)]
    carried = next(
        use["point"]
        for use in target["operating_points"]
        if (use["rule"], use["domain"], use["way"]) == ("youden", "target", "carried")
    )
    assert {table["threshold"] for table in tables} == {carried["threshold"]}
    hits = sum(
        round(v["estimate"] * v["n"])
        for v in (g["metrics"].get("sensitivity") for g in tables[2]["groups"])
        if v
    )
    assert (
        hits <= round(carried["sensitivity"]["estimate"] * carried["sensitivity"]["n"]) <= hits + 2
    )


def test_nothing_of_a_patient_is_written(study_file):
    """Names of groups and counts are; values, ids and how the file is called are not."""
    study = asking(study_file)
    analyse(study, SHORT)
    written = [path.read_bytes() for path in study.results.iterdir() if path.is_file()]
    for secret in (b"p1003", b"20.0625", b"26.0625", b"here.csv"):
        assert not any(secret in content for content in written)


def the_target(study):
    """What ``shift.json`` says of the target, but for the time it took."""
    (target,) = json.loads((study.results / "shift.json").read_text())["targets"]
    return {name: value for name, value in target.items() if name != "seconds"}


def test_a_study_that_does_not_ask_gets_nothing(study_file, caplog, monkeypatch):
    """No key, table, chapter, figure or word; what an earlier run left is gone."""
    only = {"shift-subgroups": figures.FIGURES["shift-subgroups"]}
    monkeypatch.setattr(figures, "FIGURES", only)
    text, without = study_file.read_text(), load_study(study_file)
    results = without.results
    record = to_jsonable(to_json(analyse(asking(study_file), SHORT)))
    reports.write("shift", record, results)
    figures.draw("shift", record, results)
    asked = the_target(without)
    assert (results / "shift_subgroups.csv").exists()
    assert (results / "figures" / "shift-subgroups-tiny.png").exists()
    study_file.write_text(text)
    record = to_jsonable(to_json(analyse(without, SHORT)))
    reports.write("shift", record, results)
    figures.draw("shift", record, results)
    # What is not about subgroups is the same to the last digit.
    assert asked.pop("subgroups")
    assert the_target(without) == asked
    assert not (results / "shift_subgroups.csv").exists()
    assert "ubgroup" not in (results / "shift.md").read_text()
    assert "ubgroup" not in caplog.text
    assert not list((results / "figures").iterdir())


def test_only_the_target_may_have_attributes(study_file):
    """A source without a file has no table."""
    report = analyse(asking(study_file, source=False), SHORT)
    assert {table.domain for table in report.targets[0].subgroups} == {"target"}


def test_a_wrong_file_stops_before_any_work(study_file, monkeypatch):
    """The head is not fitted for an hour to learn of a slip of the pen."""
    study = asking(study_file)
    Path("there.csv").write_text("patient,age\np2000,3\n")
    monkeypatch.setattr(known, "here_of", None)
    with pytest.raises(StudyError, match="no column 'sex'"):
        analyse(study, SHORT)
