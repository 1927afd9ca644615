"""The study file: what it may say, and how it is refused."""

from pathlib import Path

import pytest

from pipeline import study as study_module
from pipeline.data.images import RESIZES
from pipeline.errors import StudyError
from pipeline.study import (
    Attribute,
    BackboneChoice,
    ImageTable,
    SourceDomain,
    TargetDomain,
)
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
    assert (study.seed, study.classes, study.store) == (0, None, None)
    assert study.results == Path("results/chest")


def test_a_human_error_is_read_and_absent_otherwise(folder):
    """Nobody's error is invented."""
    assert load_study(write(folder, GOOD)).human_error is None
    file = write(folder, GOOD.replace("[source]", "human_error = 0.03\n[source]"))
    assert load_study(file).human_error == 0.03


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


def test_attributes_and_what_to_look_at_are_read(folder):
    """``true`` makes groups of texts, numbers make bins, ``false`` looks at nothing."""
    (folder / "a.csv").write_text("patient,sex\n")
    text = GOOD.replace("[target", 'attributes = "a.csv"\n[target')
    study = load_study(write(folder, text + "[subgroups]\nsex = true\nage = [18, 65.5]\nx = false"))
    assert study.source.attributes == folder / "a.csv"
    assert study.targets[0].attributes is None
    assert study.subgroups == (Attribute(name="sex"), Attribute(name="age", edges=(18, 65.5)))
    assert load_study(write(folder, text)).subgroups == ()


@pytest.mark.parametrize("labels", ["sealed", "absent"])
def test_what_is_known_of_a_targets_labels_is_read(folder, labels):
    """Both words of the specification are taken; sealed is the default."""
    file = write(folder, GOOD.replace('"b"', f'"b"\nlabels = "{labels}"'))
    assert load_study(file).targets[0].labels == labels


def test_paths_are_relative_to_the_file_and_not_to_the_current_folder(folder, monkeypatch):
    """A study can be run from anywhere."""
    file = write(folder, GOOD + '\n[store]\npath = "elsewhere"\n')
    monkeypatch.chdir("/")
    assert load_study(file).store_root == folder / "elsewhere"


def test_the_store_is_the_studys_then_the_environments_then_features(folder, monkeypatch):
    """Three places, in that order."""
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    study = load_study(write(folder, GOOD))
    assert study.store_root == Path("features")
    monkeypatch.setenv("HEADRACE_FEATURES", "/big/disk")
    assert study.store_root == Path("/big/disk")


def test_layers_are_backbones_and_so_is_their_concatenation(folder):
    """One of each layer, with the settings of the table."""
    text = GOOD.replace("121]", '121]\nviews = 3\nlayers = ["transition3", "norm5"]')
    study = load_study(write(folder, text))
    names = ["densenet121@transition3", "densenet121@norm5"]
    assert [choice.name for choice in study.variants] == [*names, "+".join(names)]
    assert {choice.views for choice in study.backbones} == {3}
    assert {choice.network.name for choice in study.backbones} == {"densenet121"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("name =", "nmae ="), r"unknown key 'nmae' in the study; allowed: backbone, classes"),
        (("group =", "grop ="), r"unknown key 'grop' in \[source\]; allowed: attributes, bits"),
        (('path = "a"', 'path = "c"'), r"\[source\] path: there is no folder .*/c"),
        (('path = "a"', ""), r"\[source\] has no path"),
        (("[source]", "[sauce]"), r"unknown key 'sauce'"),
        (("^(p", "^((p"), r"group = .* is not a regular expression"),
        (("^(p", "^(x)?(p"), r"group = .* captures 2 parts; one is allowed"),
        (("far", "source"), r"the name 'source' is taken"),
        (("121]", "121]\nviews = 'two'"), r"views = 'two': allowed is int"),
        (("121]", "121]\nviews = 0"), r"\[backbone.densenet121\] views = 0: allowed is 1 to 32"),
        (("121]", "121]\nviews = 99"), r"views = 99: allowed is 1 to 32"),
        (
            ("121]", "121]\nlayers = []"),
            r"layers = \[\]: allowed is a list of one or more different",
        ),
        (
            ("121]", '121]\nviews = 2\n[backbone.googlenet]\n[backbone."densenet121+googlenet"]'),
            r"its parts must have the same number of views",
        ),
        (("[backbone.densenet121]", ""), r"names no backbone"),
        (("[backbone.densenet121]", "[backbone]\ndensenet121 = 3"), r"write a table"),
        (('"chest"', '"a/b"'), r"name 'a/b': allowed are 1 to 100 lett"),
        (('"chest"', "3"), r"name 3: allowed are 1 to 100 lett"),
        (("[target", "seed = 'x'\n[target"), r"unknown key 'seed' in \[source\]"),
        (("[source]", "seed = 'x'\n[source]"), r"seed = 'x': allowed is int"),
        (("[source]", "human_error = 0.7\n[source]"), r"human_error = 0.7: allowed is the share"),
        (("[source]", "human_error = nan\n[source]"), r"human_error = nan: allowed is the share"),
        (("[source]", "human_error = 'x'\n[source]"), r"human_error = 'x': allowed is number"),
        (("[source]", "max_megapixels = 0\n[source]"), r"max_megapixels = 0: allowed is 0.001"),
        (("[source]", "seed = true\n[source]"), r"seed = True: allowed is int"),
        (("[source]", "classes = ['a']\n[source]"), r"classes = \['a'\]: allowed is a list of two"),
        (("[source]", "findings = []\n[source]"), r"findings = \[\]: allowed is a list of one"),
        (("[source]", "findings = ['a']\n[source]"), r"a table: source needs table = FILE"),
        (("[source]", "findings = ['a b', 'A_b']\n[source]"), r"two of them would have one folder"),
        (('"b"', '"b"\nfindings = ["x"]'), r"\[target.far\] findings: 'x' is none of the study's"),
        (("[source]", "findings = ['a/b']\n[source]"), r"findings: 'a/b': allowed are 1 to 100"),
        (("[source]", "findings = ['a']\nclasses = ['x', 'y']\n[source]"), r"write one of the tw"),
        (("[source]", "[source]\nsplit = 'no.txt'"), r"split: there is no file .*/no\.txt; allow"),
        (("[source]", "[source]\nvalidation = 1.5"), r"validation = 1.5: allowed is a share"),
        (("[source]", "[source]\nvalidation = 'v'"), r"validation: there is no folder .*/v"),
        (("[source]", "[source]\nvalidation = []"), r"validation = \[\]: allowed is a share"),
        (
            ("[source]", "[source]\nvalidation = 0.2\nsplit = 'given'"),
            r'split = "given" and validation: write one',
        ),
        (("[target.far]", "[target.far]\nsplit = 'given'"), r"write the split that it is"),
        (("[target.far]", "[test.far]\npath='a'\n[target.far]"), r"\[test.far\] and \[target.f"),
        (("[source]", "[source]\nimages = 'a'"), r"images: this goes with table = FILE"),
        (("[source]", "[source]\nvalues = {}"), r"values: this goes with table = FILE"),
        (("[source]", "[source]\ntable = 'a'"), r"table: there is no file .*a CSV, TSV or Parquet"),
        (("[source]", "[source]\nbits = 12\nwindow = [0, 1]"), r"bits and window: write one"),
        (("[source]", "[source]\nbits = 17"), r"bits = 17: allowed is 1 to 16"),
        (("[source]", "[source]\nwindow = [1, 0]"), r"window = \[1, 0\]: allowed are two numbers"),
        (("[source]", "[source]\nwindow = 3"), r"window = 3: allowed is a list"),
        (("[source]", "[source]\nframe = 'last'"), r"frame = 'last': allowed are first, middle"),
        (("'^(p\\d+)'", "{column = 'x'}"), r"group = .*: a column needs table = FILE"),
        (('path = "b"', "path = 'x.npz'\ncolumns = {}"), r"columns: this goes with table = FILE"),
        (('path = "b"', "path = 'x.npz'\ngroup = {column = 'x'}"), r"a column needs table = FILE"),
        (("'^(p\\d+)'", "{header = 'PatientName'}"), r"group = .*\{header = \"PatientID\"\}"),
        (('"chest"', f'"{"x" * 300}"'), r"name 'x{119}\.\.\.: allowed are 1 to 100 letters"),
        (('"chest"', '"CON"'), r"name 'CON': Windows keeps this name for a device"),
        (('path = "a"', 'path = "b\\u0000"'), r"there is no folder .*b\\x00"),
        (('path = "a"', f'path = "{"b" * 5000}"'), r"there is no folder .{,121}\.\.\.$"),
        (("[source]", "x = \0\n[source]"), r"is not a TOML file: .{,200}$"),
        (("[source]", f"x = {'[' * 3000}\n[source]"), r"its brackets are nested too deep"),
        (
            ("121]", "121]\nweights = 'no.pth'"),
            r"weights: there is no file .*/no.pth; all",
        ),
        (("121]", "121]\nresize = 'zoom'"), r"resize = 'zoom': allowed are stretch, crop, fast"),
        (
            ('"b"', '"b"\nlabels = "secret"'),
            r"\[target.far\] labels = 'secret': allowed are sealed, absent",
        ),
        (('"b"', '"b"\nlabels = false'), r"\[target.far\] labels = False: allowed is text"),
        (
            ("[source]", "[source]\nlabels = 'sealed'"),
            r"\[source\] labels: heads are fitted to",
        ),
        (("121]", "121]\nprecision = 'fp8'"), r"precision = 'fp8': allowed are fp32, tf32, bf16"),
        (("[target", "attributes = 3\n[target"), r"attributes = 3: allowed is text"),
        (
            ("[target", "attributes = 'x.csv'\n[target"),
            r"there is no file .*/x.csv; allowed is a",
        ),
        (("121]", "121]\n[subgroups]\nsex = true"), r"\[subgroups\] needs attributes of the im"),
        (("121]", "121]\n[subgroups]\nsex = 'F'"), r"sex = 'F': allowed is true, .* or increasing"),
        (("121]", "121]\n[subgroups]\nage = [4, 4]"), r"age = \[4, 4\]: allowed is true, for one"),
        (("121]", "121]\n[subgroups]\nage = []"), r"age = \[\]: allowed is true"),
        (("121]", "121]\n[subgroups]\nage = [nan]"), r"age = \[nan\]: allowed is true"),
        (("121]", "121]\n[subgroups]\nage = [true]"), r"age = \[True\]: allowed is true"),
    ],
)
def test_a_mistake_is_refused_with_what_is_allowed(folder, change, sentence):
    """The message names the file, what was found and what may stand there."""
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(StudyError, match=rf"study.toml:? .*{sentence}"):
        load_study(write(folder, text))


def test_a_missing_file_says_how_to_get_one(tmp_path):
    """Somebody without a study file is told the command that writes one."""
    with pytest.raises(StudyError, match="no study file .*headrace init"):
        load_study(tmp_path / "none.toml")


def test_a_file_whose_name_is_no_name_asks_for_one(folder):
    """Results lie in a folder of the study's name, which is the file's where none is given."""
    file = write(folder, GOOD.replace('name = "chest"', "")).rename(folder / "my study (1).toml")
    with pytest.raises(StudyError, match=r'it has no name = "...", and its own name .my study'):
        load_study(file)


def test_broken_toml_names_the_line(folder):
    """The parser's own position is passed on."""
    with pytest.raises(StudyError, match=r"is not a TOML file: .*line 2"):
        load_study(write(folder, 'name = "x"\nseed = \n'))


def test_binary_rubbish_is_not_a_traceback(folder):
    """A file that is no text is refused like any other."""
    file = folder / "study.toml"
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(StudyError, match="not a TOML file"):
        load_study(file)


def test_precision_can_be_set_for_all_backbones_at_once(folder):
    """The command line's --precision and --decode replace the study's."""
    study = load_study(write(folder, GOOD))
    changed = study.with_recipe(precision="bf16", decode="gpu").backbones[0]
    assert (changed.precision, changed.decode) == ("bf16", "gpu")
    assert study.with_recipe(precision=None) == study


def test_the_ways_to_resize_are_those_of_the_pixel_policy():
    """The study stands below the images and cannot read their table."""
    assert set(study_module.RESIZES) == set(RESIZES)
