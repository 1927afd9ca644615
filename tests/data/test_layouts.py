"""Layouts that would be read wrongly are named, with the line that corrects them."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.items import Item
from pipeline.data.patients import patients_of_items
from pipeline.data.samples import load_samples
from pipeline.data.sources import scan, wrong_layout
from pipeline.errors import StudyError
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.init import write_study
from pipeline.study import load_study
from tests.image_files import listed, with_files
from tests.tiny import write_images


def items(*paths: str, row: int | None = None) -> list[Item]:
    return [Item(path, path.partition("/")[0], f"/{path}", row, None) for path in paths]


WRONG = {
    "one level too high": (["set/a/1.png", "set/b/2.png"], 'path = "/x/set"'),
    "folders of patients": (
        ["p0001/a/1.png", "p0002/b/2.png", "p0003/a/1.png"],
        "table = FILE, a CSV with the columns path, label and patient",
    ),
    "splits with the classes in them": (
        ["test/a/1.png", "test/b/2.png", "Train/a/3.png", "Train/b/4.png"],
        'path = "/x/Train"',
    ),
    "splits, and a folder beside them": (
        ["val/a/1.png", "val/b/2.png", "test/a/3.png", "test/b/4.png", "figures/5.png"],
        'path = "/x/val"',
    ),
    "splits beside the classes": (
        ["a/1.png", "b/2.png", "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"],
        'path = "/x/train"',
    ),
    "masks beside images": (
        ["a/images/1.png", "a/masks/1.png", "b/images/2.png", "b/masks/2.png"],
        'ignore = ["*/masks/*"]',
    ),
    "masks beside all classes": (
        ["images/a/1.png", "images/b/2.png", "masks/a/1.png", "masks/b/2.png"],
        'ignore = ["masks/*"]',
    ),
    "masks by the names of their files": (
        ["a/x (1).png", "a/x (1)_mask.png", "a/x (1)_mask_1.png", "b/y.png", "b/y-seg.png"],
        'ignore = ["*-seg*", "*_mask*"]',
    ),
    "the classes again": (
        ["a/1.png", "b/2.png", "augmented data*/a/1.png", "augmented data*/b/2.png"],
        'ignore = ["augmented data[*]/*"]',
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_layout_is_seen_and_its_line_is_proposed(name):
    """Names are as they stand on the disk, whatever their case and characters."""
    paths, setting = WRONG[name]
    assert wrong_layout(items(*paths)).setting(Path("/x")) == setting


FINE = {
    "classes": ["a/1.png", "b/2.png"],
    "classes with numbers": ["grade1/1.png", "grade2/2.png", "grade3/3.png"],
    "patients in classes": ["a/p1/1.png", "a/p2/2.png", "b/p1/3.png"],
    "a class that is called test": ["test/1.png", "ill/2.png"],
    "folders in classes that all are masks": ["a/masks/1.png", "b/masks/2.png"],
    "arms of a trial with patients": ["test/p1/1.png", "test/p2/2.png", "control/p3/3.png"],
    "a mask of a face": ["a/oxygen_mask.png", "a/no_mask.png", "b/2.png"],
}


@pytest.mark.parametrize("name", FINE)
def test_a_layout_that_is_fine_raises_no_alarm(name):
    """What people have and mean."""
    assert wrong_layout(items(*FINE[name])) is None


def test_what_matches_a_pattern_is_left_out_and_counted(tmp_path):
    """Files by any part of their path, folders with all that is in them."""
    with_files(tmp_path, "a/1.png", "a/masks/1.png", "a/1_mask.png", "b/2.png", "again/a/1.png")
    listing = listed(tmp_path, ignore=("*/masks/*", "*_mask.png", "again/*"))
    assert [item.path for item in listing.items] == ["a/1.png", "b/2.png"]
    assert listing.ignored == {"left out by `ignore`": 3}


def test_folders_of_programs_are_never_images(tmp_path):
    """Thumbnails of network drives, metadata of macOS archives."""
    with_files(
        tmp_path, "a/1.png", "a/@eaDir/1.png", "b/2.png", "__MACOSX/a/1.png", "#recycle/1.png"
    )
    listing = listed(tmp_path)
    assert [item.path for item in listing.items] == ["a/1.png", "b/2.png"]
    assert listing.ignored == {"hidden": 3}


def with_masks(study_file: Path) -> None:
    """Class folders of the source with images and masks of them."""
    for label in ("a", "b"):
        folder = Path("here", label)
        for name in ("images", "masks"):
            (folder / name).mkdir()
        for image in [*folder.glob("*.png")]:
            (folder / "masks" / image.name).write_bytes(image.read_bytes()[:-1] + b"\0")
            image.rename(folder / "images" / image.name)


def test_a_study_of_masks_stops_and_names_the_line(study_file):
    """The line makes it run; an empty one says that nothing is to be left out."""
    with_masks(study_file)
    with pytest.raises(
        StudyError,
        match=r"source: in .*here images in folders called masks would be taken.*"
        r'Write ignore = \["\*/masks/\*"\], or ignore = \[\] if',
    ):
        load_samples(load_study(study_file))
    text = study_file.read_text()
    study_file.write_text(text.replace("[source]", '[source]\nignore = ["*/masks/*"]'))
    samples, _ = load_samples(load_study(study_file))
    assert (samples.domain == "source").sum() == 40
    study_file.write_text(text.replace("[source]", "[source]\nignore = []"))
    samples, skipped = load_samples(load_study(study_file))
    assert (samples.domain == "source").sum() + len(skipped) == 80


def test_one_class_for_all_names_the_folder_of_the_classes(study_file):
    """The path is one level too high."""
    Path("up").mkdir()
    Path("here").rename("up/here")
    study_file.write_text(study_file.read_text().replace('path = "here"', 'path = "up"'))
    with pytest.raises(StudyError, match=r"one class only \('here'\).*perhaps path = .*/up/here"):
        load_samples(load_study(study_file))


def test_splits_below_the_classes_are_said(study_file, caplog):
    """All of their images are taken."""
    for label in ("a", "b"):
        for image in [*Path("here", label).glob("*.png")]:
            split = image.parent / ("train" if "_1" in image.name else "test")
            split.mkdir(exist_ok=True)
            image.rename(split / image.name)
    load_samples(load_study(study_file))
    assert 'ignore = ["*/test/*"]' in caplog.text or 'ignore = ["*/train/*"]' in caplog.text


def test_folders_that_are_the_same_in_all_classes_are_said(study_file, caplog):
    """Two hospitals in one folder look like two classes; they may be meant so."""
    Path("up").mkdir()
    for name in ("here", "there"):
        Path(name).rename(f"up/{name}")
    study_file.write_text(study_file.read_text().partition("[target")[0].replace("here", "up"))
    study_file.write_text(study_file.read_text() + "[backbone.tiny]\n")
    assert load_samples(load_study(study_file))[0].classes == ("here", "there")
    sentence = "each of the class folders here, there holds the folders a, b. If these are the cl"
    assert sentence in caplog.text
    assert any(sentence in note for note in write_study([Path("up")], Path("own.toml"), ["tiny"]))


def test_classes_that_differ_in_capitals_alone_are_refused(tmp_path):
    """Benign and benign are two spellings, unless the study lists both."""
    data = write_images(tmp_path / "data", 24)
    (data / "A").mkdir()
    for image in sorted((data / "a").iterdir())[6:]:
        image.rename(data / "A" / image.name)
    text = '[source]\npath = "data"\n[backbone.densenet121]\n'
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(StudyError, match="has the classes A and a: give them one name"):
        load_samples(load_study(file))
    file.write_text(f'classes = ["A", "a", "b"]\n{text}')
    assert load_samples(load_study(file))[0].classes == ("A", "a", "b")


def test_init_finds_the_classes_and_writes_what_it_found(study_file):
    """Splits one level below an unneeded folder, masks beside images: the study runs.

    The test part is one of its own; without the pattern for the masks the study is refused.
    """
    for split in ("train", "test"):
        write_images(Path("raw/set", split), 24, seed=len(split))
        for label in ("a", "b"):
            with_files(Path("raw/set", split, label, "masks"), "m.png")
    notes = write_study([Path("raw")], Path("own.toml"), ["tiny"])
    study = load_study(Path("own.toml"))
    assert study.source.path.resolve() == Path("raw/set").resolve()
    assert study.source.ignore == ("*/masks/*",)
    samples, _ = load_samples(study)
    assert Counter(samples.domain.tolist()) == {"source": 24, "test": 24}
    assert study.targets[0].of_source
    with pytest.raises(StudyError, match=r"called masks would be taken .*Write ignore = \["):
        load_samples(replace(study, source=replace(study.source, ignore=None)))
    text = "\n".join(notes)
    assert "its only folder 'set' holds the folders test, train" in text
    assert "the data are divided into test, train" in text
    assert "[source] 24 images, classes: a, b\n  a     12  p50" in text


def test_init_takes_numbered_folders_in_the_classes_as_patients(tmp_path):
    """Names such as image1.jpg say nothing of a patient."""
    paths = [f"data/{c}/patient{p:03}/image1.png" for c in "ab" for p in range(3)]
    with_files(tmp_path, *paths)
    write_study([tmp_path / "data"], tmp_path / "own.toml", ["densenet121"])
    source = load_study(tmp_path / "own.toml").source
    patients = patients_of_items(source, scan(source).items)
    assert set(patients) == {"patient000", "patient001", "patient002"}


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (["x/p001/1.png", "x/p002/1.png", "x/p003/1.png"], "one class only .x.; a head needs two"),
        (["p001/1.png", "p002/1.png", "p003/1.png"], "p002, p003 are numbered as patients are"),
    ],
)
def test_init_refuses_folders_without_classes(tmp_path, paths, sentence):
    """The study would stop at once; each patient would be a class."""
    with_files(tmp_path / "data", *paths)
    with pytest.raises(StudyError, match=sentence):
        write_study([tmp_path / "data"], tmp_path / "own.toml", ["densenet121"])


def test_results_and_stores_beside_the_classes_are_no_data(study_file):
    """A folder in which headrace has run is read as it was before; others of that name are data."""
    engine = EngineChoice(engine="torch", device="cpu")
    text = study_file.read_text().partition("[target")[0].replace("here", ".")
    study_file.write_text(f'{text}[store]\npath = "kept"\n[backbone.tiny]\n')
    for label in ("a", "b"):
        Path("here", label).rename(label)
    Path("here").rmdir()
    shutil.rmtree("there")
    study = load_study(study_file)
    extract(study, ExtractOptions(engine=engine))
    write_images(Path("results"), 4)
    assert load_samples(study)[0].classes == ("a", "b")
    # The study file and the weights of the tiny network.
    assert scan(study.source).ignored == {"not a .jpg/.jpeg/.png file": 2}
    assert len(listed(write_images(Path("other/results"), 4).parent).items) == 4
