"""The samples: classes, patients, copies, leaks, exclusions, windows, the index of known files."""

import os
import re
import shutil
import time
import unicodedata
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from pipeline.data import index as index_module
from pipeline.data.images import Transform
from pipeline.data.leaks import check_leaks
from pipeline.data.patients import FIT, VALIDATION
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.data.sources import read_image
from pipeline.errors import CheckFailedError, ImageError, NoImagesError, StudyError
from pipeline.study_file import load_study
from tests.image_files import grey16
from tests.tiny import edited, flip, write_images

COMPOSED = "Lungenentz\u00fcndung"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Paths of the files that are read."""
    seen = []
    monkeypatch.setattr(
        index_module, "read_image", lambda item: seen.append(item.path) or read_image(item)
    )
    return seen


def test_a_second_look_reads_no_file(study_file, reads):
    """Unless it is told to, or the index is damaged; it names no file, hence no person."""
    time.sleep(0.05)  # files written within the clock tick of the look are not remembered
    study = load_study(study_file)
    first, _ = load_samples(study)
    assert len(reads) == 60
    assert load_samples(study)[0].key == first.key
    assert len(reads) == 60
    load_samples(study, SampleOptions(rehash=True))
    assert len(reads) == 120
    indexes = list((study_file.parent / "features" / "index").iterdir())
    for file in indexes:
        assert b"p1000" not in file.read_bytes()
        file.write_text("{")
    load_samples(study)
    assert len(reads) == 180
    assert indexes


def test_an_edit_that_keeps_size_and_mtime_is_seen(study_file):
    """Ctime gives it away: a stale key would serve another image's features."""
    time.sleep(0.05)
    load_samples(load_study(study_file))
    file = next((study_file.parent / "here" / "a").iterdir())
    stat = file.stat()
    before, _ = load_samples(load_study(study_file))
    flip(file, -20)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after, _ = load_samples(load_study(study_file))
    assert sum(a != b for a, b in zip(before.key, after.key, strict=True)) == 1


def test_copies_keep_their_rows_and_stay_on_one_side(study_file):
    """Two names of one image are two samples, never one in fit and one in validation."""
    first = min(Path("here/a").iterdir())
    for i in range(12):
        shutil.copy(first, f"here/a/q{i:03}_copy.png")
    table, _ = load_samples(edited(study_file, {"^(p": "^([pq]"}))
    assert len(table) == 72
    same = np.array([key == table.key[0] for key in table.key])
    assert same.sum() == 13
    assert len(set(table.split[same])) == 1


def test_identical_images_of_two_classes_are_left_out_and_named(study_file, caplog):
    """Nobody knows which label is right; --allow-conflicts keeps them."""
    shutil.copy(min(Path("here/a").iterdir()), "here/b/p1000_twin.png")
    table, _ = load_samples(load_study(study_file))
    assert len(table) == 59
    assert "1 image has several labels: source/a/p1000_0.png = source/b/p1000_twin.png." in (
        caplog.text
    )
    table, _ = load_samples(load_study(study_file), SampleOptions(allow_conflicts=True))
    assert len(table) == 61
    assert "kept here; without --allow-conflicts heads, finetune and shift leave" in caplog.text


def _spoil(folder, how):
    """A folder as no study can use it."""
    if how == "wrong classes":
        shutil.copytree(folder / "a", folder / "c")
    else:
        shutil.rmtree(folder)
    if how == "empty":
        folder.mkdir()


BAD_TARGETS = {
    "not there": "there is not there: is its disk connected",
    "empty": "there holds no input; allowed is one of",
    "wrong classes": r"class 'c'; the study's classes are a, b",
}


@pytest.mark.parametrize("how", BAD_TARGETS)
def test_a_target_that_cannot_be_used_costs_no_other(study_file, how):
    """It is named with its reason, and may be listed in `exclude`; the source must be usable."""
    shutil.copytree("there", "further")
    further = '[target.further]\npath = "further"\n[store]'
    before, _ = load_samples(edited(study_file, {"[store]": further}))
    _spoil(Path("there"), how)
    samples, _ = load_samples(excluding(study_file, "there/a/p2000_0.png\n"))
    assert re.search(BAD_TARGETS[how], samples.reasons["there"])
    assert [*samples.reasons] == ["there"]
    assert samples.items == before.where(before.domain != "there").items
    _spoil(Path("here"), how)
    Path("not.txt").write_text("")
    if how != "wrong classes":  # of the source they are classes
        with pytest.raises((StudyError, NoImagesError)):
            load_samples(load_study(study_file))


def test_the_limit_of_pixels_can_be_set(study_file):
    """Smaller or larger than the usual one; it decides what is decoded, not what is listed."""
    study = edited(study_file, {"[source]": "max_megapixels = 0.001\n[source]"})
    with pytest.raises(ImageError, match=r"too large \(40 x 40, limit 0.001 Mpx; max_meg"):
        read_image(load_samples(study)[0].items[0]).pixels(Transform(size=8))
    content = read_image(load_samples(edited(study_file, {"0.001": "0.002"}))[0].items[0])
    assert content.pixels(Transform(size=8)).shape == (8, 8, 3)


def test_a_domain_without_one_readable_image_is_an_error(study_file, monkeypatch):
    """Exit code 2, with the first reason."""
    broken = Mock(side_effect=ImageError("permission denied"))
    monkeypatch.setattr(index_module, "read_image", broken)
    with pytest.raises(NoImagesError, match="none of its 40 images.*permission denied") as e:
        load_samples(load_study(study_file), SampleOptions(rehash=True))
    assert e.value.exit_code == 2


def test_missing_patients_are_said(study_file, caplog):
    """Without a pattern, and with one that does not fit, a user hears it."""
    load_samples(edited(study_file, {"group = '^(p\\d+)'\n[target": "[target"}))
    assert "source: the patient of 40 of 40 images is unknown" in caplog.text
    Path("here/a/p1000_0.png").rename("here/a/nobody.png")
    load_samples(edited(study_file, {"[target": "group = '^(p\\d+)'\n[target"}))
    assert "source: the patient of 1 of 40 images is unknown" in caplog.text
    assert "first: a/nobody.png" in caplog.text


def test_a_pattern_that_finds_few_patients_is_refused(study_file):
    """Every image as its own patient would divide the images of one over both parts."""
    study = edited(study_file, {"^(p\\d+)": "^(p20)"})
    with pytest.raises(StudyError, match=r"source: group = '\^\(p20\)' finds no patient in 40 of"):
        load_samples(study)


def test_a_pattern_that_never_ends_is_stopped_and_named(study_file):
    """The time of some patterns doubles with each letter of a name."""
    Path("here/a/p1000_0.png").rename("here/a/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!.png")
    study, start = edited(study_file, {"^(p\\d+)": "^(a|aa)+$"}), time.monotonic()
    with pytest.raises(StudyError, match=r"takes more than 0\.5 s for a/aaa.*choices that overlap"):
        load_samples(study)
    assert time.monotonic() - start < 20


def test_names_are_compared_in_one_unicode_form(study_file):
    """Folders and files from macOS are decomposed, what a person writes is composed."""
    for folder in ("here", "there"):
        Path(folder, "a").rename(Path(folder, DECOMPOSED))
    Path("here", DECOMPOSED, "p1000_0.png").rename(Path("here", DECOMPOSED, f"p{DECOMPOSED}_0.png"))
    classes = f'classes = ["b", "{COMPOSED}"]\n[source]'
    edited(study_file, {"^(p\\d+)": "^(p[^_]+)", "[source]": classes})
    samples, _ = load_samples(excluding(study_file, f"source/{COMPOSED}/p1000_2.png\n"))
    assert samples.classes == ("b", COMPOSED)
    assert len(samples) == 59
    assert f"p{COMPOSED}" in samples.group
    assert unicodedata.normalize("NFC", samples.items[1].path) != samples.items[1].path


# --- splits that come with the data


def divided(study_file: Path, *, crossing: bool) -> None:
    """The source's images in folders of splits; one patient in both, or none."""
    for image in sorted(Path("here").rglob("*.png")):
        patient = int(image.name[1:5])
        split = "valid" if patient >= 1008 else "train"
        if crossing and image.name == "p1000_0.png":
            split = "valid"
        folder = Path("here", split, image.parent.name)
        folder.mkdir(parents=True, exist_ok=True)
        image.rename(folder / image.name)
    for label in "ab":
        Path("here", label).rmdir()


GIVEN = 'path = "here"\nsplit = "given"'


@pytest.mark.parametrize("setting", [GIVEN, 'path = "here/train"\nvalidation = "here/valid"'])
@pytest.mark.parametrize("crossing", [False, True])
def test_a_given_split_is_kept_and_who_crosses_it_is_said(study_file, setting, crossing, caplog):
    """By the names of folders, or by two folders."""
    divided(study_file, crossing=crossing)
    study = edited(study_file, {'path = "here"': setting})
    assert study.source.keeps_split
    samples, _ = load_samples(study)
    validation = samples.split == VALIDATION
    assert validation.sum() == 8 + crossing
    assert (samples.split == FIT).sum() == 32 - crossing
    assert len({samples.name_of(row) for row in range(len(samples))}) == len(samples)
    said = "source: 1 patient has images in both fit and validation of the given split"
    assert (said in caplog.text) == crossing
    assert "has only" not in caplog.text


def test_a_given_validation_part_of_a_few_images_is_said(study_file, caplog):
    """Kaggle's chest X-rays and OCT2017 have 16 and 32 images there."""
    divided(study_file, crossing=False)
    for image in sorted(Path("here/valid").rglob("*.png"))[1:-1]:
        image.unlink()
    load_samples(edited(study_file, {'path = "here"': GIVEN}))
    said = "has only 2 images of 2 patients. For a larger one write validation = 0.2 and, as spl"
    assert said in caplog.text


def test_a_class_that_a_given_part_lacks_is_refused(study_file):
    """Nothing could be learned, or tested, of it."""
    divided(study_file, crossing=False)
    shutil.rmtree("here/valid/b")
    study = edited(study_file, {'path = "here"': GIVEN})
    with pytest.raises(
        StudyError, match=r"part of the given split has no .*'b'.*such as \"train\""
    ):
        load_samples(study)


def test_another_class_in_a_part_hints_at_no_other_path(study_file, caplog):
    """The folder of the part is the split of the study."""
    divided(study_file, crossing=False)
    Path("here/valid/b").rename("here/valid/B2")
    target = '[test.own]\npath = "here"\nsplit = "valid"\n[store]'
    load_samples(
        edited(study_file, {'path = "here"': 'path = "here"\nsplit = "train"', "[store]": target})
    )
    assert "has class 'B2'" in caplog.text
    assert "perhaps" not in caplog.text


# --- images that the study excludes


def excluding(study_file: Path, text: str):
    """The study with a list of images to leave out."""
    Path("not.txt").write_text(text)
    return edited(study_file, {"[source]": 'exclude = "not.txt"\n[source]'})


@pytest.mark.parametrize(
    ("group", "is_said"), [(r"^p100(?=[0-4])|^p10(?=0[5-9])", True), (r"^(p\d+)", False)]
)
def test_a_share_far_from_what_was_asked_for_is_said(study_file, group, is_said, caplog):
    """One of two patients is half of the images, where a fifth was asked for."""
    load_samples(edited(study_file, {"'^(p\\d+)'\n[target": f"'{group}'\n[target"}))
    said = "validation holds 50 % of the images where 20 % were asked for"
    assert (said in caplog.text) == is_said


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


def test_a_listed_image_may_have_become_unreadable(study_file, monkeypatch):
    """It is left out either way, and still listed among the skipped."""

    def reading(item):
        if item.path == "a/p2000_0.png":
            raise ImageError("permission denied")
        return read_image(item)

    monkeypatch.setattr("pipeline.data.index.read_image", reading)
    study = excluding(study_file, "there/a/p2000_0.png\nthere/a/p2000_2.png\n")
    samples, skipped = load_samples(study)
    assert len(samples) == 58
    assert [skip.path for skip in skipped] == ["a/p2000_0.png"]


def test_a_list_of_other_names_or_no_text_or_not_there_is_refused(study_file):
    """Where the study is read, or where the list is; with the line that names no image."""
    study = excluding(study_file, "source/a/p1000_0.jpg\n")
    sentence = r"not.txt names 'source/a/p1000_0.jpg' \(1 such.*or no longer there.*source/"
    with pytest.raises(StudyError, match=sentence):
        load_samples(study)
    Path("not.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(StudyError, match="is not UTF-8"):
        load_samples(study)
    Path("not.txt").unlink()
    os.mkfifo("not.txt")
    with pytest.raises(StudyError, match=r"not\.txt cannot be read: not a regular file"):
        load_samples(study)
    Path("not.txt").unlink()
    with pytest.raises(StudyError, match=r"exclude: there is no file .*headrace audit writes one"):
        load_study(study_file)


def test_copies_without_labels_contradict_nothing_and_still_leak(study_file):
    """A missing label is not another label; a picture of the source is one all the same."""
    write_images(Path("far"), 12, seed=3, shift=30)
    far = '[target.far]\npath = "far"\nlabels = "absent"\n'
    shutil.copy(next(Path("there/a").iterdir()), "far")
    study = edited(study_file, {"[store]": f"{far}[store]"})
    samples, _ = load_samples(study)
    assert samples.unlabelled == {"far": 13}
    assert (samples.class_of(0), samples.class_of(len(samples) - 1)) == ("a", "no label")
    findings, _ = check_leaks(study, samples)
    assert [f.severity for f in findings if f.check == "label conflicts"] == ["ok"]
    shutil.copy(next(Path("here/a").iterdir()), "far")
    with pytest.raises(CheckFailedError, match="1 image of a target is also in the source") as e:
        load_samples(load_study(study_file))
    assert e.value.exit_code == 3


@pytest.fixture
def deep_study(tiny_folder):
    """Sixty 14-bit X-rays at three exposures, as a detector writes them."""
    rng = np.random.default_rng(0)
    for i in range(60):
        folder = tiny_folder / "here" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        top = (3000, 9000, 16383)[i % 3]
        values = rng.integers(top // 4, top + 1, (32, 32)).astype(np.uint16)
        (folder / f"p{i}.png").write_bytes(grey16(values))
    file = tiny_folder / "study.toml"
    file.write_text(
        '[source]\npath = "here"\ngroup = \'p\\d+\'\n[store]\npath = "features"\n[backbone.tiny]\n'
    )
    return file


def test_a_detectors_bits_are_guessed_for_dark_and_bright_pictures(deep_study, caplog):
    """None is refused, the three exposures stay apart, and the guess is said once."""
    samples, skipped = load_samples(load_study(deep_study))
    assert len(samples) == 60
    assert not skipped
    means = [read_image(item).pixels(Transform(size=32)).mean() for item in samples.items]
    exposure = np.array([int(item.path[3:-4]) % 3 for item in samples.items])
    dark, medium, bright = (np.mean(np.array(means)[exposure == k]) for k in range(3))
    assert dark < 35 < medium < 100 < bright < 170
    said = "source: 60 images of 16 bits: the largest value is 16383, so 14 bits are taken for all"
    assert said in caplog.text
    caplog.clear()
    declared = edited(deep_study, {"[source]": "[source]\nbits = 14"})
    assert load_samples(declared)[0].key == samples.key
    assert "largest value" not in caplog.text
    other, _ = load_samples(edited(deep_study, {"bits = 14": "bits = 16"}))
    assert not set(other.key) & set(samples.key)
