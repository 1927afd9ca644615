"""Attributes of patients: what a CSV file may say, how it is refused, whose group is whose."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.attributes import _MOST_GROUPS, UNKNOWN, groupings, read_attributes
from pipeline.data.samples import load_samples
from pipeline.errors import StudyError
from pipeline.study import Attribute
from pipeline.study_file import load_study
from tests.tiny import edited

SEX = Attribute(name="sex")
AGE = Attribute(name="age", edges=(18.0, 40.0, 65.5))


def test_a_number_falls_into_its_bin(tmp_path):
    """An edge belongs to the bin above it; an empty cell is unknown."""
    ages = ("-1", "17.9", "18", "39.99", "40", "65.5", "1e3", "", "  ")
    rows = "".join(f"p{row},{age}\n" for row, age in enumerate(ages))
    (tmp_path / "a.csv").write_text(f"patient,age\n{rows}")
    names = ("< 18", "18 to < 40", "40 to < 65.5", "65.5 or more")
    groups = read_attributes(tmp_path / "a.csv", [AGE])[1]
    found = [name for (name,) in groups.values()]
    assert found == [*np.repeat(names, (2, 2, 1, 2)), UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_what_spreadsheets_write_is_read(tmp_path, line):
    """A byte order mark, CRLF, quotes, outer spaces, blank lines, columns of no interest.

    A row may stand twice if it says the same.
    """
    lines = ['"a/x, 1.png", F ,"two\nlines"', "", "a/y.png,NA,", ",,", "b,F,", "b,F,again"]
    text = line.join(["\ufeffpath, sex ,note", *lines])
    (tmp_path / "a.csv").write_bytes(text.encode())
    key, groups = read_attributes(tmp_path / "a.csv", [SEX])
    assert key == "path"
    # NA is a text like others: nobody says that it means nothing.
    assert groups == {"a/x, 1.png": ("F",), "a/y.png": ("NA",), "b": ("F",)}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"line 1: the columns.* are nothing; allowed as the first is path or pat"),
        (b"id,sex\np1,F", r"commas, are id, sex; allowed as the first is path or pat"),
        (b"patient:sex\np1:F", r"columns, separated by commas, are patient:sex; allowed"),
        (b"patient,age\np1,3", r"no column 'sex' for \[subgroups\]; the columns are patient, age"),
        (b"patient,sex,age,sex\n", r"two columns are called 'sex': rename one"),
        (b"patient,sex,age\np1,F\n", r"line 2: 2 cells, but the header has 3"),
        (b"patient,sex,age\n,F,3\n", r"line 2: the patient is empty: give it, or remove"),
        (b"patient,sex,age\np1,F,old\n", r"line 2: age is 'old', .* allowed are numbers, and an"),
        (b"patient,sex,age\np1,F,nan\n", r"line 2: age is 'nan'"),
        (
            b"patient,sex,age\np1,F,3\n\np1,M,3\n",
            r"line 4: an earlier line says other things of the same patient: keep one, or give a r",
        ),
        (b"path,sex,age\nx,F,3\nx,F,44\n", r"other things of the same path: keep one$"),
        (b"patient,sex,age\np1,\xe9,3\n", r"line 2 is not UTF-8 \(byte 0xe9\): save .*CSV UTF-8"),
        (b'patient,sex,age\np1,"F,3\n', r"not CSV .*put quotes around cells with commas"),
    ],
)
def test_a_mistake_is_refused_with_file_line_and_remedy(tmp_path, content, sentence):
    """What was got, what is allowed, what to do next."""
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(StudyError, match=sentence) as error:
        read_attributes(tmp_path / "a.csv", [SEX, AGE])
    assert str(error.value).startswith(str(tmp_path / "a.csv"))


@pytest.fixture
def divided(study_file):
    """Write files of attributes beside a tiny study; gives what its images are divided into."""

    def divide(here: str, there: str | None = None, look="sex = true", *, group=True):
        changes = {"[store]": f"[subgroups]\n{look}\n[store]"}
        changes |= {} if group else {"group = '": "# group = '"}
        for name, content in (("here", here), ("there", there)):
            if content is not None:
                Path(f"{name}.csv").write_text(content)
                path = f'path = "{name}"'
                changes[path] = f'{path}\nattributes = "{name}.csv"'
        study = edited(study_file, changes)
        samples, _ = load_samples(study)
        return groupings(study, samples, {}), samples

    return divide


def test_patients_and_paths_find_their_images(divided):
    """A patient's row counts for each image; a path for one; both domains share the groups."""
    found, samples = divided("patient,sex\np1000,M\np1001,F\n", "path,sex\na/p2000_0.png,X\n")
    (here,), (there,) = found["source"], found["there"]
    assert here.names == there.names == ("F", "M", "X", UNKNOWN)
    paths = {d: [item.path for item in samples.where(samples.domain == d).items] for d in found}
    for path, member in zip(paths["source"], here.member, strict=True):
        patient = re.search(r"p\d+", path)[0]
        assert here.names[member] == {"p1000": "M", "p1001": "F"}.get(patient, UNKNOWN)
    assert [there.names[m] for m in there.member].count("X") == 1
    assert there.names[there.member[paths["there"].index("a/p2000_0.png")]] == "X"


def test_rows_that_name_no_image_are_an_error_with_both_spellings(divided):
    """Silently, everybody would be unknown."""
    with pytest.raises(
        StudyError,
        match="none of its 1 rows names an image of source; its first path is here/a/x.png, "
        r"that of the images a/p1000_0.png: write them alike",
    ):
        divided("path,sex\nhere/a/x.png,F\n")


def test_a_bad_file_of_a_target_costs_the_target_alone(divided):
    """Its reason is among the failures; the others are divided."""
    divided("patient,sex\np1000,M\n", "path,sex\na/p2000_0.png,X\n")
    Path("there.csv").write_text("name,sex\nx,F\n")
    study, failures = load_study(Path("study.toml")), {}
    groups = groupings(study, load_samples(study)[0], failures)
    assert [*groups] == ["source"]
    assert "allowed as the first is path or patient" in str(failures["there"])


def test_rows_by_patient_need_a_pattern_that_finds_patients(divided):
    """Without one there are no ids to compare with."""
    with pytest.raises(
        StudyError,
        match=r"patients of source are found by no `group` pattern .*: give one, or rows by",
    ):
        divided("patient,sex\np1000,F\n", group=False)


def test_more_texts_than_groups_ask_for_bins(divided):
    """Ages taken as texts are the usual case; exactly as many as allowed pass."""
    rows = [f"a/p1{i // 4:03}_{i}.png,{i}\n" for i in range(0, 24, 2)]
    rows += [f"b/p1{i // 4:03}_{i}.png,{i}\n" for i in range(1, 24, 2)]
    allowed = "path,age\n" + "".join(rows[:_MOST_GROUPS])
    found, _ = divided(allowed, look="age = true")
    assert len(found["source"][0].names) == _MOST_GROUPS + 1
    Path("here.csv").write_text("path,age\n" + "".join(rows[: _MOST_GROUPS + 1]))
    study = load_study(Path("study.toml"))
    with pytest.raises(StudyError, match=r"age has 13 .*give bins .*age = \[18, 40, 65\]"):
        groupings(study, load_samples(study)[0], {})
