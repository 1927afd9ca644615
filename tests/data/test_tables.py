"""Tables of images: which column is what, which file a row means, and how a slip is refused."""

import logging
import re
import unicodedata
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.patients import patients_or_paths
from pipeline.data.sources import scan
from pipeline.data.tables import Row, read_table, several_findings
from pipeline.errors import StudyError
from pipeline.init import write_study
from pipeline.study import GIVEN, ImageTable, SourceDomain, TargetDomain
from tests.image_files import with_files

ROOT = ("a/1.png", "a/2.png", "b/3.png", "b/1.png")


@pytest.fixture
def root(tmp_path):
    """A folder with four images; two have one name."""
    return with_files(tmp_path / "images", *ROOT)


def domain(root: Path, text: str, *, split: str = "", suffix: str = ".csv", **table):
    """The images of a table's text."""
    file = root.parent / f"labels{suffix}"
    file.write_text(text)
    return SourceDomain(path=root, split=split, table=ImageTable(file=file, **table))


def rows_of(listing):
    return [(i.path, i.label, i.patient, i.split) for i in listing.items]


def test_a_row_becomes_an_image_with_class_and_patient(root):
    """Whatever its columns are called, where their names are usual."""
    text = "Image Index,Diagnosis,Patient_ID,,\na/1.png,ill,p1,3,\nb/3.png,well,p2,4,\n"
    listing = scan(domain(root, text))
    assert rows_of(listing) == [("a/1.png", "ill", "p1", ""), ("b/3.png", "well", "p2", "")]
    assert listing.ignored == {"in no row that is taken": 2}


@pytest.mark.parametrize(
    ("suffix", "separator"), [(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".tab", "\t")]
)
def test_cells_may_be_divided_by_commas_semicolons_or_tabs(root, suffix, separator):
    """As spreadsheets of any country write them, also below a blank line."""
    lines = [["file", "label"], ["a/1.png", "x, y" if separator == "\t" else "x"]]
    text = "\n".join(map(separator.join, lines))
    for above in ("", " \n"):
        assert scan(domain(root, above + text, suffix=suffix)).items[0].label == lines[1][1]


def test_parquet_is_read_as_the_same_texts(tmp_path):
    """Numbers and what is missing too."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"path": ["a", None], "age": [3, None], "mark": [1.0, 0.5]}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    header, rows = read_table(tmp_path / "t.parquet")
    assert [header, *rows] == [
        Row(1, ["path", "age", "mark"]),
        Row(2, ["a", "3", "1.0"]),
        Row(3, ["", "", "0.5"]),
    ]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(StudyError, match=r"bad\.parquet is no Parquet file"):
        read_table(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/1.png", "a/1.png"),
        ("a/1", "a/1.png"),
        ("2.png", "a/2.png"),
        ("2", "a/2.png"),
        ("set/v1/b/3.png", "b/3.png"),
        ("C:\\set\\b\\3.png", "b/3.png"),
        ("b\\3.png", "b/3.png"),
        ("b\\3", "b/3.png"),
        ("1.png", None),
        ("../../etc/passwd", None),
        ("elsewhere/2.png", None),
        ("", None),
    ],
)
def test_the_file_of_a_row_is_found_or_nothing(root, name, found, caplog):
    """Without its ending, by its bare name, from above the folder; never one of two."""
    other = "" if found == "a/1.png" else "a/1.png,y\n"
    listing = scan(domain(root, f"path,label\n{name or ' '},x\n{other}"))
    files = {str(Path(item.file).relative_to(root.resolve())): item.label for item in listing.items}
    assert files.get(found or "") == ("x" if found else None)
    assert len(files) == (1 if found in (None, "a/1.png") else 2)
    advice = "Write images = FOLDER, where its paths start" in caplog.text
    assert ("1 image of" in caplog.text) == advice == (found is None)


def test_paths_from_above_all_begin_alike(root):
    """test/b/3.png is not the train/b/3.png that is there."""
    text = "path,label\ntrain/a/1.png,x\ntrain/b/1.png,y\ntest/b/3.png,y\n"
    found = [item.path for item in scan(domain(root, text)).items]
    assert found == ["train/a/1.png", "train/b/1.png"]


def test_files_copied_from_macos_are_found(tmp_path):
    """Their names are decomposed, those in a table seldom are."""
    decomposed = "u\u0308/o\u0308.png"
    root = with_files(tmp_path / "images", decomposed, "v/1.png")
    text = f"path,label\n{unicodedata.normalize('NFC', decomposed)},x\nv/1.png,y\n"
    assert [item.label for item in scan(domain(root, text)).items] == ["y", "x"]


def test_classes_are_renamed_and_others_left_out_by_values(root, caplog):
    """Whole numbers as decimals, patterns, empty cells."""
    text = "path,label\na/1.png,1.0\na/2.png,0\nb/3.png,-1.0\nb/1.png,\n"
    table = {"values": {"ill": ("1",), "well": ("0",)}}
    assert [item.label for item in scan(domain(root, text, **table)).items] == ["ill", "well"]
    assert "source: 2 rows of" in caplog.text
    text = "path,label\na/1.png,Mass|Pneumonia\na/2.png,No Finding\n"
    table = {"values": {"ill": ("*Pneumonia*",), "well": ("No*",)}}
    assert [item.label for item in scan(domain(root, text, **table)).items] == ["ill", "well"]


def test_a_class_may_be_the_column_that_holds_a_one(root):
    """One of them; a row of none is left out."""
    columns = {"label": ("MEL", "NV")}
    text = "image,MEL,NV\na/1.png,1.0,0.0\na/2.png,0,1\nb/3.png,0,0\n"
    items = scan(domain(root, text, columns=columns)).items
    assert [item.label for item in items] == ["MEL", "NV"]
    with pytest.raises(StudyError, match=r"line 2: it is of MEL and NV; allowed is one class"):
        scan(domain(root, "image,MEL,NV\na/1.png,1,1\n", columns=columns))


def test_one_table_serves_several_hospitals(root):
    """Each takes its rows, and does not name the others'; a name of none of them is refused."""
    text = "path,label,site\na/1.png,x,A\na/2.png,y,A\nb/3.png,x,B\n"
    listing = scan(domain(root, text, domain="A"))
    assert len(listing.items) == 2
    assert listing.ignored == {"in no row that is taken": 1}
    assert len(scan(domain(root, text, domain="B")).items) == 1
    with pytest.raises(StudyError, match=r"no row of domain 'C'; it has A, B"):
        scan(domain(root, text, domain="C"))
    with pytest.raises(StudyError, match=r'a domain column is named; write domain = "TEXT"'):
        scan(domain(root, text, columns={"domain": ("site",)}))


def test_the_splits_of_a_table_are_taken_when_asked_for(root, caplog):
    """Fit and validation of the source, one part of a target; otherwise they are said."""
    text = "path,label,split\na/1.png,x,train\na/2.png,y,valid\nb/3.png,x,TEST\nb/1.png,y,train\n"
    given = scan(domain(root, text, split=GIVEN))
    assert [item.split for item in given.items] == ["fit", "validation", "fit"]
    assert given.ignored["of another split"] == 1
    whole = domain(root, text)
    target = TargetDomain(path=root, name="far", split="test", table=whole.table)
    assert [item.path for item in scan(target).items] == ["b/3.png"]
    caplog.set_level(logging.WARNING)
    assert {item.split for item in scan(whole).items} == {""}
    assert "the data are divided into train, valid, TEST; all are taken" in caplog.text
    with pytest.raises(StudyError, match=r'split = "dev" finds no such parts; the data have train'):
        scan(domain(root, text, split="dev"))


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("path,X\na/1.png,1.0\na/2.png,no\nb/3.png,-1.0\nb/1.png,\n", {}, ["X", "not X", "", ""]),
        ("path,x-ray\na/1.png,1\na/2.png,0\n", {"X": ("x-ray",)}, ["X", "not X"]),
        ("path,a,b\na/1.png,1,\na/2.png,0,\nb/3.png,0,0\n", {"X": ("a", "b")}, ["X", "", "not X"]),
        ("path,label\na/1.png,Y|X\na/2.png,XX|Y\nb/3.png,\n", {}, ["X", "not X", ""]),
        ("path,label\na/1.png,Y|x1\na/2.png,No\n", {"X": ("x*",)}, ["X", "not X"]),
        (
            "path,label\na/1.png,\"['Y', 'X ']\"\na/2.png,['XX']\nb/3.png,[]\n",
            {},
            ["X", "not X", ""],
        ),
        (
            "path,label\na/1.png,Y\na/1.png,X\na/1.png,\na/2.png,Y\na/2.png,Z\nb/3.png,\n",
            {},
            ["X", "not X", ""],
        ),
    ],
)
def test_a_finding_is_read_from_its_columns_or_from_texts(root, text, values, labels):
    """Present, absent, or an image without a label where it is not known."""
    items = {i.path: i.label for i in scan(domain(root, text, values=values, finding="X")).items}
    assert [items[path] for path in ROOT if path in items] == labels


def test_the_part_of_a_list_file_is_taken(root, caplog):
    """By path or name; names without an image are said; a list of other images is refused."""
    text = "path,label\na/1.png,x\na/2.png,y\nb/3.png,x\n"
    names = root.parent / "list.txt"
    names.write_text("# of the test part\na/1.png\n\n3.png\n8.png\n")
    listing = scan(domain(root, text, split=str(names)))
    assert [item.path for item in listing.items] == ["a/1.png", "b/3.png"]
    assert listing.ignored["of another split"] == 1
    assert re.search(r"1 name of .*list\.txt is not below .*; first: 8\.png", caplog.text)
    names.write_text("9.png")
    with pytest.raises(StudyError, match=r"list\.txt names no image of .*images"):
        scan(domain(root, text, split=str(names)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,X\na/1.png,2\n", r"line 2: X is '2'; allowed are 1, 0, and empty or -1 where"),
        ("path,X\na/1.png,\n", r"source: no row of .*labels\.csv names 'X'\. Write values = \{'X'"),
        ("path,label\na/1.png,Y|Z\n", r"no row of .* names 'X'.*; of a target, findings = "),
        (
            "path,X\na/1.png,1\na/1.png,0\n",
            r"another row that differs: give it one row \(X, not X\)$",
        ),
        ("path,Y\na/1.png,1\n", r"which column is the 'X'; .* path, Y\. Write values = \{'X'"),
    ],
)
def test_a_finding_that_cannot_be_read_is_refused(root, text, sentence):
    """A slip, and a name that no column has."""
    with pytest.raises(StudyError, match=sentence):
        scan(domain(root, text, finding="X"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"line 1: it is unclear which column is the path; the columns are nothing"),
        ("x,label\na/1.png,1", r"column is the path; the columns are x, label\. Write columns"),
        ("path,x\na/1.png,1", r"which column is the label; .*columns = \{label = \"NAME\"\}"),
        ("age,x\n1,2", r"column is the path; .* if none names images, add such a column"),
        ("path,file,label\n", r"path, file: which is the path\? Write columns = \{path = 'path'\}"),
        ("path,label,label\n", r"two columns are called 'label'"),
        ("path,label\na/1.png", r"line 2: 1 cells, but the header has 2"),
        ("1.png,x\n", r"line 1: this seems to be a row already: write a line .* as path,label"),
        ("set/a/p1/,1\n", r"line 1: this seems to be a row already"),
        ("path,label\na/1.png,x\na/1.png,y", r"line 3: a/1\.png has another row that differs"),
        (
            "path,label\na/1.png,x\na/1.png,y",
            r"\(x, y\), or, if images can have several classes, write fi",
        ),
        (
            "path,label\na/1.png,x\na/1,x",
            r"line 3: a/1 has another row that differs: give it one row$",
        ),
        (
            "path,label,patient\na/1.png,x,1\na/1.png,y,2",
            r"has another row that differs: give it one row$",
        ),
        ("path,label\nz.png,x", r"no image of .*labels\.csv is below .*; first: z\.png\. Write im"),
    ],
)
def test_a_slip_in_a_table_is_refused_with_file_line_and_remedy(root, text, sentence):
    """Never read as something else."""
    with pytest.raises(StudyError, match=sentence):
        scan(domain(root, text))


@pytest.mark.parametrize("name", ["sheet.xlsx", "a/1.PNG", "x.h5"])
def test_what_is_no_table_is_refused_by_its_ending(tmp_path, name):
    """With the endings that are tables, and what to do."""
    with_files(tmp_path, name)
    with pytest.raises(StudyError, match=r"is not read: a table is a CSV, TSV or Parquet file"):
        write_study([tmp_path / name], tmp_path / "own.toml", ["densenet121"])


def test_a_column_of_splits_is_no_finding():
    """CAMELYON17-WILDS has 0 and 1 in it, as in the column of tumours."""
    rows = [Row(k, [f"{k}.png", str(k // 2), str(k % 2)]) for k in range(4)]
    assert several_findings(Row(1, ["path", "tumor", "split"]), rows) == ["tumor"]


def test_a_target_without_labels_needs_no_column_of_them(root):
    """Patients are still known."""
    table = domain(root, "path,patient\na/1.png,p1\n").table
    target = TargetDomain(path=root, name="far", labels="absent", table=table)
    assert rows_of(scan(target)) == [("a/1.png", "", "p1", "")]


def test_a_column_of_patients_that_is_mostly_empty_is_refused(root):
    """Where the study names it; one that was only found counts as it is."""
    source = domain(root, "path,label,pid\na/1.png,x,\na/2.png,y,p1\nb/3.png,x,\n")
    named = replace(source, table=replace(source.table, columns={"patient": ("pid",)}))
    for one, refused in ((source, False), (named, True)):
        items = scan(one).items
        with pytest.raises(StudyError, match="2 of 3 images") if refused else nullcontext():
            patients_or_paths(one, items)
