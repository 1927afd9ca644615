"""The study, and its file: what it may say, and how it is refused."""

import re
from pathlib import Path

import pytest

from pipeline.errors import StudyError
from pipeline.study import Attribute, BackboneChoice, ImageTable, SourceDomain, TargetDomain
from pipeline.study_file import load_study

GOOD = """
name = "chest"
[source]
path = "a"
group = '^(p\\d+)'
[target.far]
path = "b"
[backbone.densenet121]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two data folders beside the study file."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path


def write(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def test_a_good_file_becomes_settings_with_the_documented_defaults(folder):
    """What is not written has the default of the dataclass, paths start at the file."""
    study = load_study(write(folder, GOOD))
    assert study.source == SourceDomain(path=folder / "a", group=r"^(p\d+)", validation=0.2)
    assert study.targets == (TargetDomain(path=folder / "b", name="far", labels="sealed"),)
    assert study.backbones == (BackboneChoice(name="densenet121", weights="imagenet"),)
    assert (study.seed, study.classes, study.store, study.human_error) == (0, None, None, None)
    assert study.results == Path("results/chest")


def test_a_table_of_images_is_read(folder):
    """With its columns, values, and the rows of a domain; a target's are those of its name."""
    (folder / "t.csv").write_text("path,label\n")
    text = """
[source]
table = "t.csv"
images = "a"
columns = {label = ["x", "y"], domain = "site"}
values = {ill = "1"}
domain = "Oslo"
group = {column = "pid"}
bits = 12
[target.far]
table = "t.csv"
columns = {domain = "site"}
split = "test"
[backbone.densenet121]
"""
    study = load_study(write(folder, text))
    assert study.source.path == folder / "a"
    assert study.source.table == ImageTable(
        file=folder / "t.csv",
        columns={"label": ("x", "y"), "domain": ("site",), "patient": ("pid",)},
        values={"ill": ("1",)},
        domain="Oslo",
    )
    assert (study.source.group, study.source.window) == (None, (0, 4095))
    assert study.source.attributes == folder / "t.csv"
    far = study.targets[0]
    assert (far.path, far.split, far.table.domain) == (folder, "test", "far")


def test_an_attribute_that_is_in_no_file_is_refused_with_those_that_are(folder, caplog):
    """Before any stage, by the header alone. If that cannot be read, a warning says why."""
    (folder / "a.csv").write_text("patient,sex\n")
    text = f"{GOOD}[subgroups]\nsax = true".replace("[target", 'attributes = "a.csv"\n[target')
    wrong = r"\[subgroups\] sax: no file of attributes has such a column; the columns are "
    with pytest.raises(StudyError, match=f"{wrong}patient, sex$"):
        load_study(write(folder, text))
    (folder / "b.csv").write_text("path,age\n")
    text = text.replace("[backbone", 'attributes = "b.csv"\n[backbone')
    with pytest.raises(StudyError, match=f"{wrong}age, path, patient, sex$"):
        load_study(write(folder, text))
    # A fault below the header is a matter of the stage that needs the rows.
    (folder / "b.csv").write_bytes(b"\xef\xbb\xbfpath,age\n\xff")
    with pytest.raises(StudyError, match=f"{wrong}age, path, patient, sex$"):
        load_study(write(folder, text))
    (folder / "b.csv").write_bytes(b'\n"two\nlines",sax')
    assert load_study(write(folder, text)).subgroups == (Attribute(name="sax"),)
    assert not caplog.records
    (folder / "b.csv").write_bytes(b"\xff")
    assert load_study(write(folder, text)).subgroups == (Attribute(name="sax"),)
    assert re.search(r"\[subgroups\] are not checked: .*b\.csv line 1 is not UTF-8", caplog.text)


def test_the_store_is_the_files_then_the_environments_then_features(folder, monkeypatch):
    """In that order; the file's is as seen from the file: a study can be run from anywhere."""
    assert load_study(write(folder, GOOD)).store_root == Path("features")
    monkeypatch.setenv("HEADRACE_FEATURES", "/big/disk")
    assert load_study(write(folder, GOOD)).store_root == Path("/big/disk")
    file = write(folder, GOOD + '\n[store]\npath = "elsewhere"\n')
    monkeypatch.chdir("/")
    assert load_study(file).store_root == folder / "elsewhere"


def test_a_flag_replaces_a_setting_of_all_backbones(folder):
    """One that is not given leaves the study as it is."""
    study = load_study(write(folder, GOOD + "[backbone.googlenet]"))
    for choice in study.with_recipe(precision="bf16", decode="gpu").backbones:
        assert (choice.precision, choice.decode) == ("bf16", "gpu")
    assert study.with_recipe(precision=None) == study


def test_layers_are_backbones_and_so_is_their_concatenation(folder):
    """One of each layer, with the settings of the table."""
    text = GOOD.replace("121]", '121]\nviews = 3\nlayers = ["transition3", "norm5"]')
    study = load_study(write(folder, text))
    names = ["densenet121@transition3", "densenet121@norm5"]
    assert [*study.variants] == [*names, "+".join(names)]
    assert {choice.views for choice in study.backbones} == {3}
    assert {choice.network.name for choice in study.backbones} == {"densenet121"}


#: Each with a line that is written below ``[source]``, before it, or below the backbone.
IN_SOURCE = [
    ("split = 'no.txt'", r"split: there is no file .*/no\.txt; allow"),
    ("validation = 1.5", r"validation = 1.5: allowed is a share"),
    ("validation = 'v'", r"validation: there is no folder .*/v"),
    ("validation = []", r"validation = \[\]: allowed is a share"),
    ("validation = 0.2\nsplit = 'given'", r'split = "given" and validation: write one'),
    ("images = 'a'", r"images: this goes with table = FILE"),
    ("values = {}", r"values: this goes with table = FILE"),
    ("table = 'a'", r"table: there is no file .*a CSV, TSV or Parquet"),
    ("bits = 12\nwindow = [0, 1]", r"bits and window: write one"),
    ("bits = 17", r"bits = 17: allowed is 1 to 16"),
    ("window = [1, 0]", r"window = \[1, 0\]: allowed are two numbers"),
    ("window = 3", r"window = 3: allowed is a list"),
    ("frame = 'last'", r"frame = 'last': allowed are first, middle"),
    ("labels = 'sealed'", r"\[source\] has an unknown key 'labels'"),
    ("attributes = 3", r"attributes = 3: allowed is text"),
    ("attributes = 'x.csv'", r"there is no file .*/x.csv; allowed is a"),
]
BEFORE = [
    ("seed = true", r"seed = True: allowed is int"),
    ("human_error = 0.7", r"human_error = 0.7: allowed is 0 to 0.5"),
    ("human_error = nan", r"human_error = nan: allowed is 0 to 0.5"),
    ("max_megapixels = 0", r"max_megapixels = 0: allowed is 0.001"),
    ("classes = ['a']", r"classes = \['a'\]: allowed is a list of two"),
    ("findings = []", r"findings = \[\]: allowed is a list of one"),
    ("findings = ['a']", r"has findings, so source needs table = FILE"),
    ("findings = ['Erguß']", r"'Erguß': allowed are 1 to 100 letters \(A to Z, a to z\)"),
    ("findings = ['a b', 'A_b']", r"two of them would have one folder"),
    ("findings = ['a/b']", r"findings: 'a/b': allowed are .*values = {NAME = \"COLUMN\"} below"),
    ("findings = ['a']\nclasses = ['x', 'y']", r"write one of the tw"),
    ("x = \0", r"is not a TOML file: .{,200}$"),
    (f"x = {'[' * 3000}", r"its brackets are nested too deep"),
]
IN_BACKBONE = [
    ("views = 99", r"\[backbone.densenet121\] views = 99: allowed is 1 to 32"),
    ("layers = []", r"layers = \[\]: allowed is a list of one or more different"),
    ("weights = 'no.pth'", r"weights: there is no file .*/no.pth; all"),
    ("precision = 'fp8'", r"precision = 'fp8': allowed are fp32, tf32, bf16"),
    ("resize = 'zoom'", r"resize = 'zoom': allowed are stretch, crop, fast"),
    (
        'views = 2\n[backbone.googlenet]\n[backbone."densenet121+googlenet"]',
        r"parts with different numbers of views",
    ),
    ("[subgroups]\nsex = true", r"\[subgroups\] needs attributes of the im"),
    ("[subgroups]\nsex = 'F'", r"sex = 'F': allowed is true, .* or increasing"),
    ("[subgroups]\nage = [4, 4]", r"age = \[4, 4\]: allowed is true, for one"),
    ("[subgroups]\nage = [nan]", r"age = \[nan\]: allowed is true"),
    ("[subgroups]\nage = [true]", r"age = \[True\]: allowed is true"),
]
#: Text of the good file, what stands in its place, and the message.
INSTEAD = [
    ("name =", "nmae =", r"the study has an unknown key 'nmae'; allowed: backbone, classes"),
    ("group =", "grop =", r"\[source\] has an unknown key 'grop'; allowed: attributes, bits"),
    ('path = "a"', 'path = "c"', r"\[source\] path: there is no folder .*/c"),
    ('path = "a"', "", r"\[source\] has no path"),
    ('path = "a"', 'path = "b\\u0000"', r"there is no folder .*b\\x00"),
    ('path = "a"', f'path = "{"b" * 5000}"', r"there is no folder .{,121}\.\.\.$"),
    ("^(p", "^((p", r"group = .* is not a regular expression"),
    ("^(p", "^(x)?(p", r"group = .* captures 2 parts; one is allowed"),
    ("'^(p\\d+)'", "{column = 'x'}", r"group = .*: a column needs table = FILE"),
    ("'^(p\\d+)'", "{header = 'PatientName'}", r"group = .*\{header = \"PatientID\"\}"),
    ("far", "source", r"the name 'source' is taken"),
    ("[target.far]", "[test.far]\npath='a'\n[target.far]", r"\[test.far\] and \[target.f"),
    ("[target.far]", "[target.far]\nsplit = 'given'", r"write the split that it is"),
    ('"b"', '"b"\nfindings = ["x"]', r"\[target.far\] findings: 'x' is no finding"),
    ('"b"', '"b"\nlabels = "secret"', r"\[target.far\] labels = 'secret': allowed are sealed"),
    ('"b"', '"b"\nlabels = false', r"\[target.far\] labels = False: allowed is text"),
    ('path = "b"', "path = 'x.npz'\ncolumns = {}", r"columns: this goes with table = FILE"),
    ("[backbone.densenet121]", "", r"names no backbone"),
    ("[backbone.densenet121]", "[backbone]\ndensenet121 = 3", r"write a table"),
    ('"chest"', '"a/b"', r"name 'a/b': allowed are 1 to 100 lett"),
    ('"chest"', "3", r"name 3: allowed are 1 to 100 lett"),
    ('"chest"', f'"{"x" * 300}"', r"name 'x{119}\.\.\.: allowed are 1 to 100 letters"),
    ('"chest"', '"CON"', r"name 'CON': Windows keeps this name for a device"),
    ('name = "chest"', "seed = \n", r"is not a TOML file: .*line 2"),
    *(("[source]", f"[source]\n{line}", message) for line, message in IN_SOURCE),
    *(("[source]", f"{line}\n[source]", message) for line, message in BEFORE),
    *(("121]", f"121]\n{line}", message) for line, message in IN_BACKBONE),
]


@pytest.mark.parametrize(("old", "new", "message"), INSTEAD)
def test_a_mistake_is_refused_with_what_is_allowed(folder, old, new, message):
    """The message names the file, what was found and what may stand there."""
    assert old in GOOD
    with pytest.raises(StudyError, match=rf"study.toml:? .*{message}"):
        load_study(write(folder, GOOD.replace(old, new)))


def test_what_is_no_study_file_says_how_to_get_one(folder):
    """It is missing, its name is no name of a folder of results, or it is no text."""
    with pytest.raises(StudyError, match="no study file .*headrace init"):
        load_study(folder / "none.toml")
    file = write(folder, GOOD.replace('name = "chest"', "")).rename(folder / "my study (1).toml")
    with pytest.raises(StudyError, match=r"name 'my study \(1\)': allowed are 1 to 100"):
        load_study(file)
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(StudyError, match="not a TOML file"):
        load_study(file)
