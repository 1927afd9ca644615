"""A study leaves out the images that it names, in every stage, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.samples import exclusions_text, load_samples, read_exclusions
from pipeline.data.sources import read_image
from pipeline.errors import ImageError, NoImagesError, StudyError
from pipeline.study import load_study
from tests.tiny import install_tiny_backbone, write_tiny_study


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch) -> Path:
    """A tiny study; the current folder is its folder."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return write_tiny_study(tmp_path)


def excluding(study_file: Path, text: str):
    """The study with a list of images to leave out."""
    (study_file.parent / "not.txt").write_text(text)
    study_file.write_text('exclude = "not.txt"\n' + study_file.read_text())
    return load_study(study_file)


def test_named_images_are_left_out_and_the_others_keep_their_split(study_file):
    """Of both domains; comments and empty lines say nothing."""
    before, _ = load_samples(load_study(study_file))
    gone = ["source/a/p1000_0.png", "source/b/p1000_1.png", "there/a/p2000_0.png"]
    after, _ = load_samples(excluding(study_file, "# two\n\n" + "\n".join(gone) + "\n"))
    names = [f"{d}/{i.path}" for d, i in zip(before.domain, before.items, strict=True)]
    rows = [row for row, name in enumerate(names) if name not in gone]
    assert len(after) == len(before) - 3
    assert after.items == tuple(before.items[row] for row in rows)
    for field in ("label", "group", "domain", "split"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field)[rows])


def test_the_name_that_is_printed_is_the_line_that_leaves_an_image_out(study_file):
    """Whatever is in it: the audit, messages and the list have one form of a name."""
    for name in ("p2001_é [1].png", "p2001_new\nline.png", "p2001_\udcff.png"):
        copy = Path("there/a") / name
        copy.write_bytes(Path("there/a/p2000_0.png").read_bytes())
    before, _ = load_samples(load_study(study_file))
    odd = [row for row, item in enumerate(before.items) if "p2001_" in item.path]
    gone = [before.name_of(row) for row in odd]
    after, _ = load_samples(excluding(study_file, exclusions_text(gone)))
    assert len(after) == len(before) - len(odd)
    assert not {after.name_of(row) for row in range(len(after))} & set(gone)


@pytest.mark.parametrize(
    ("gone", "what"),
    [
        (lambda s: s.domain == "there", "leaves out all 20 and so every image of there"),
        (
            lambda s: (s.split == "fit") & (s.label == 1),
            "every image of class b that heads are fitted to",
        ),
    ],
)
def test_a_list_that_empties_a_domain_or_a_class_is_refused_and_named(study_file, gone, what):
    """Not the stage that would miss the images."""
    before, _ = load_samples(load_study(study_file))
    names = [before.name_of(row) for row in np.flatnonzero(gone(before))]
    study = excluding(study_file, exclusions_text(names))
    with pytest.raises(
        NoImagesError, match=rf"exclude: .*not\.txt .*{what}.*take some of its lines"
    ):
        load_samples(study)


def test_a_contradicting_copy_can_be_left_out(study_file):
    """Before the checks, so that a study need not move files to pass them."""
    copy = Path("there/b/p2000_98.png")
    copy.write_bytes(Path("there/a/p2000_0.png").read_bytes())
    study = load_study(study_file)
    with pytest.raises(StudyError, match="different labels"):
        load_samples(study)
    samples, _ = load_samples(excluding(study_file, "there/b/p2000_98.png\n"))
    assert len(samples) == 60


def test_a_line_that_names_no_image_is_refused(study_file):
    """The message names the line and shows how one looks."""
    study = excluding(study_file, "source/a/p1000_0.jpg\n")
    with pytest.raises(
        StudyError,
        match=r"not.txt names 'source/a/p1000_0.jpg' \(1 such.*or no longer there.*source/",
    ):
        load_samples(study)


def test_a_listed_image_may_have_become_unreadable(study_file, monkeypatch):
    """It is left out either way, and still listed among the skipped."""

    def reading(item):
        if item.path == "a/p2000_0.png":
            raise ImageError("permission denied")
        return read_image(item)

    monkeypatch.setattr("pipeline.data.samples.read_image", reading)
    study = excluding(study_file, "there/a/p2000_0.png\nthere/a/p2000_2.png\n")
    samples, skipped = load_samples(study)
    assert len(samples) == 58
    assert [skip.path for skip in skipped] == ["a/p2000_0.png"]


def test_a_list_that_is_not_there_or_not_text_is_refused(study_file):
    """Where the study is read, or where the list is."""
    study = excluding(study_file, "")
    (study_file.parent / "not.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(StudyError, match="cannot be read as text"):
        load_samples(study)
    (study_file.parent / "not.txt").unlink()
    with pytest.raises(StudyError, match=r"exclude: there is no file .*headrace audit writes one"):
        load_study(study_file)


def test_a_written_list_is_read_back(tmp_path):
    """Sorted, once each; names with spaces and accents stay."""
    file = tmp_path / "list.txt"
    names = ["b/x y.png", "a/é.png", "b/x y.png"]
    file.write_text(exclusions_text(names), encoding="utf-8")
    assert read_exclusions(file) == ("a/é.png", "b/x y.png")


def test_a_study_without_a_list_uses_every_image(study_file):
    """Nothing is left out that nobody named."""
    study = load_study(study_file)
    assert study.exclude is None
    empty = replace(study, exclude=study_file.parent / "empty.txt")
    empty.exclude.write_text("# nothing\n")
    assert len(load_samples(empty)[0]) == len(load_samples(study)[0]) == 60
