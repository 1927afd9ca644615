"""Which kind of input a folder holds, and how an image is read, whatever the kind."""

import errno
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import items as items_module
from pipeline.data.grey_levels import Reading
from pipeline.data.images import PixelPolicy, decode
from pipeline.data.sources import KINDS, read_image, scan
from pipeline.errors import ImageError, StudyError
from pipeline.study import ImageTable, TargetDomain
from tests.image_files import jpeg, listed, picture, pictures, png, with_files, with_stack

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="links, FIFOs, sockets of POSIX")


@pytest.fixture
def root(tmp_path):
    """A domain of two classes with one image each."""
    return with_files(tmp_path / "domain", "normal/a.jpg", "pneumonia/b.png")


def paths(listing):
    return [item.path for item in listing.items]


# --- which kind


def test_a_folder_that_is_not_there_is_named(tmp_path):
    """A typing mistake in the study file, said as one."""
    with pytest.raises(StudyError, match=r"nowhere cannot be listed: No such file .*ENOENT"):
        listed(tmp_path / "nowhere")
    file = tmp_path / "file.txt"
    file.write_text("x")
    with pytest.raises(StudyError, match=r"file\.txt cannot be listed: Not a directory"):
        listed(file)


def test_a_folder_of_neither_kind_says_what_was_found(tmp_path):
    """Images without class folders are the common mistake."""
    with pytest.raises(StudyError, match=r"holds nothing; allowed is one of: a folder for each"):
        listed(tmp_path)
    with_files(tmp_path, "a.jpg", "b.jpg", "c.PNG")
    with pytest.raises(StudyError, match=r"holds 2 \.jpg files, 1 \.png file; allowed is"):
        listed(tmp_path)


def test_a_folder_of_both_kinds_is_refused(root):
    """Guessing which one is meant would drop half of the images."""
    with_stack(root, "normal.npy", pictures())
    with pytest.raises(StudyError, match=r"holds class folders and \.npy stacks; allowed is one"):
        listed(root)


@posix_only
def test_class_folders_that_are_links_out_are_refused_and_named(tmp_path):
    """The error says that links are the reason."""
    with_files(tmp_path / "elsewhere/normal", "a.jpg")
    (tmp_path / "domain").mkdir()
    (tmp_path / "domain/normal").symlink_to(tmp_path / "elsewhere/normal")
    with pytest.raises(
        StudyError, match=r"no class folder \(ignored: 1 x link out of the folder\)"
    ):
        listed(tmp_path / "domain")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lists_sorted_items_that_can_be_read(kind, tmp_path):
    """The contract that every kind of input keeps."""
    root = with_files(tmp_path / "folders", "b/1.jpg", "b/0.jpg", "a/2.png")
    (tmp_path / "of.csv").write_text("file,class\nb/1.jpg,x\na/2.png,y\nb/0.jpg,x\n")
    np.savez(tmp_path / "x.npz", train_images=pictures(12), train_labels=np.arange(12))
    domain = {
        "class folders": {"path": root},
        ".npy stacks": {"path": with_stack(tmp_path / "stacks", "a.npy", pictures(12))},
        "a .npz file": {"path": tmp_path / "x.npz"},
        "a table": {"path": root, "table": ImageTable(file=tmp_path / "of.csv")},
    }[kind]
    listing = scan(TargetDomain(name="far", **domain))
    assert len(listing.items) in (3, 12)
    assert paths(listing) == sorted(set(paths(listing)))
    for item in listing.items:
        content = read_image(item)
        assert len(content.key) == 32
        assert content.remembered().key(item.reading) == content.key
        assert content.pixels(PixelPolicy()).shape == (224, 224, 3)
        other = replace(item, reading=Reading(window=(0, 9)))
        assert read_image(other).key == content.key, "8 bits need no window"
        assert content.facts()["height"] == 64
        assert content.facts()["file_bytes"] > 0
    unlabelled = scan(TargetDomain(name="far", labels="absent", **domain))
    assert paths(unlabelled) == paths(listing)
    assert {item.label for item in unlabelled.items} == {""}


# --- without labels


def unlabelled_paths(root):
    listing = listed(root, labelled=False)
    assert {item.label for item in listing.items} == {""}
    return [item.path for item in listing.items]


def test_images_are_taken_flat_and_from_folders_of_any_meaning(tmp_path):
    """What lies directly in the folder counts; a folder's name is no class."""
    root = with_files(tmp_path / "x", "b.jpg", "a.PNG", "ward 3/c.jpeg", "ward 3/deep/d.png")
    (root / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("x")
    (root / "again").symlink_to(root / "ward 3")
    # A folder that is reached twice is walked once.
    assert unlabelled_paths(root) == ["a.PNG", "again/c.jpeg", "again/deep/d.png", "b.jpg"]


def test_stacks_are_taken_whatever_they_are_called(tmp_path):
    """The name of a stack is no class either."""
    with_stack(tmp_path / "x", "normal.npy", pictures())
    with_stack(tmp_path / "x", "test_ill.npy", pictures(2, seed=5))
    assert len(unlabelled_paths(tmp_path / "x")) == 5


def test_a_folder_of_nothing_or_of_both_kinds_is_refused(tmp_path):
    """The message says what may be there."""
    (tmp_path / "x").mkdir()
    with pytest.raises(StudyError, match=r"holds nothing; allowed is one of: images at any depth"):
        listed(tmp_path / "x", labelled=False)
    (tmp_path / "x" / "empty").mkdir()
    with pytest.raises(StudyError, match=r"x holds no image \(it is empty\)"):
        listed(tmp_path / "x", labelled=False)
    with_files(tmp_path / "x", "a.png")
    with_stack(tmp_path / "x", "normal.npy", pictures())
    with pytest.raises(StudyError, match=r"holds images and \.npy stacks; allowed"):
        listed(tmp_path / "x", labelled=False)


# --- reading


class Failing:
    """Stands in for ``open``: gives errors in turn, then opens."""

    def __init__(self, *codes):
        self.codes = list(codes)
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.codes:
            code = self.codes.pop(0)
            raise OSError(code, os.strerror(code), args[0])
        return open(*args, **kwargs)


@pytest.fixture
def failing(monkeypatch):
    """Let the next opens fail with these errnos; nobody waits."""

    def install(*codes):
        opener = Failing(*codes)
        monkeypatch.setattr(items_module, "open", opener, raising=False)
        monkeypatch.setattr(items_module.time, "sleep", lambda _: None)
        return opener

    return install


def test_key_and_pixels_come_from_the_same_bytes(root, failing):
    """The file is opened once; what happens to it afterwards cannot mix two images."""
    item = listed(root).items[0]
    opener = failing()
    content = read_image(item)
    Path(item.file).write_bytes(png(picture(seed=9)))
    assert content.key == hashlib.sha256(jpeg()).digest()
    assert (content.pixels(PixelPolicy()) == decode(jpeg(), PixelPolicy())).all()
    assert opener.calls == 1


def test_a_file_that_has_vanished_is_a_reason(root):
    """Other programs may be at work on the folder."""
    item = listed(root).items[0]
    Path(item.file).unlink()
    with pytest.raises(ImageError, match=r"^cannot be read: No such file or directory \(ENOENT\)$"):
        read_image(item)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_passing_error_is_tried_three_times_more(root, failing, code):
    """Network file systems fail once and work again; a broken disk does not."""
    item = listed(root).items[0]
    assert failing(code, code, code).calls == 0
    assert read_image(item).key == hashlib.sha256(jpeg()).digest()
    opener = failing(*[code] * 9)
    with pytest.raises(ImageError, match=errno.errorcode[code]):
        read_image(item)
    assert opener.calls == 4


def test_a_forbidden_file_is_a_reason_at_once(root, failing):
    """Trying again would not help; the path is not repeated in the reason."""
    item = listed(root).items[0]
    opener = failing(errno.EACCES)
    with pytest.raises(ImageError, match=r"^cannot be read: Permission denied \(EACCES\)$"):
        read_image(item)
    assert opener.calls == 1


def test_a_file_larger_than_any_image_is_not_read(root, failing):
    """Memory stays bounded whatever carries the ending .jpg."""
    with (root / "normal/a.jpg").open("r+b") as file:
        file.truncate(600_000_000)
    opener = failing()
    with pytest.raises(ImageError, match=r"^too large \(600000000 bytes, limit 500000000\)$"):
        read_image(listed(root).items[0])
    assert opener.calls == 0


def test_a_folder_that_cannot_be_listed_stops_the_run(root, monkeypatch):
    """Its images would vanish without a trace otherwise."""
    real = os.scandir

    def refuse(folder):
        if str(folder).endswith("pneumonia"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StudyError, match=r"pneumonia cannot be listed: Permission denied \(EACC"):
        listed(root)
