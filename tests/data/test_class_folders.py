"""Class folders: which files are images of which class, and what is never opened."""

import hashlib
import os
import socket
import sys
from pathlib import Path

import pytest

from pipeline.data.sources import read_image
from pipeline.errors import StudyError
from tests.image_files import jpeg, listed, png, with_files

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="links, FIFOs, sockets of POSIX")


@pytest.fixture
def root(tmp_path):
    """A domain of two classes with one image each."""
    return with_files(tmp_path / "domain", "normal/a.jpg", "pneumonia/b.png")


def paths(listing):
    return [item.path for item in listing.items]


def test_every_image_below_a_class_folder_is_found(root):
    """At any depth, whatever the case of its ending, sorted by path, labelled by class."""
    with_files(root, "normal/x/y/Z.JPEG", "normal/x/c.JPG", "pneumonia/0/d.Png")
    listing = listed(root)
    assert [(i.label, i.path) for i in listing.items] == [
        ("normal", "normal/a.jpg"),
        ("normal", "normal/x/c.JPG"),
        ("normal", "normal/x/y/Z.JPEG"),
        ("pneumonia", "pneumonia/0/d.Png"),
        ("pneumonia", "pneumonia/b.png"),
    ]
    assert listing.ignored == {}


def test_other_endings_and_none_are_taken_where_the_content_is_an_image(root):
    """Some programs write .jpe, .jfif or no ending; without one the first bytes decide."""
    for name, content in {"a.jpe": jpeg(), "b.JFIF": jpeg(), "IM0001": png()}.items():
        (root / "normal" / name).write_bytes(content)
    (root / "normal" / "LICENSE").write_text("x")
    (root / "normal" / "empty").write_bytes(b"")
    listing = listed(root)
    assert [path for path in paths(listing) if path.startswith("normal")] == [
        "normal/IM0001",
        "normal/a.jpe",
        "normal/a.jpg",
        "normal/b.JFIF",
    ]
    assert listing.ignored == {"not a .jpg/.jpeg/.png file": 2}


@posix_only
def test_what_is_not_taken_is_counted_and_never_opened(root, tmp_path, monkeypatch):
    """Nothing vanishes without a word, and a FIFO cannot hold up the run."""
    with_files(root, "loose.jpg", "normal/.hidden.jpg", "normal/.cache/x.jpg")
    with_files(tmp_path / "elsewhere", "x.jpg")
    (root / "normal/notes.txt").write_text("x")
    (root / "pneumonia/old.bmp").write_text("x")
    os.mkfifo(root / "normal/fifo.jpg")
    (root / "normal/broken.jpg").symlink_to(root / "normal/nowhere.jpg")
    (root / "normal/out.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    (root / "normal/out").symlink_to(tmp_path / "elsewhere")
    (root / "normal/null.png").symlink_to("/dev/null")
    monkeypatch.chdir(root)  # the address of a socket holds about 100 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("pneumonia/socket.jpg")
        listing = listed(root)
    assert paths(listing) == ["normal/a.jpg", "pneumonia/b.png"]
    assert listing.ignored == {
        "not in a class folder": 1,
        "hidden": 2,
        "not a .jpg/.jpeg/.png file": 1,
        "not a regular file": 3,
        "link out of the folder": 3,
    }
    assert listing.unread == ("pneumonia/old.bmp",)


@posix_only
def test_links_inside_the_folder_are_followed(root):
    """To a file, to a folder, and to a hidden place where some tools keep the content."""
    with_files(root, ".store/1.jpg", "pneumonia/deep/c.jpg")
    (root / "normal/file.jpg").symlink_to("../.store/1.jpg")
    (root / "normal/folder").symlink_to("../pneumonia/deep")
    assert paths(listed(root)) == [
        "normal/a.jpg",
        "normal/file.jpg",
        "normal/folder/c.jpg",
        "pneumonia/b.png",
        "pneumonia/deep/c.jpg",
    ]


@posix_only
@pytest.mark.parametrize("target", [".", "..", "../normal", "x", "x/y"])
def test_a_loop_of_links_ends(root, target):
    """Each folder is walked once a class, and a link to the root mixes no classes."""
    with_files(root, "normal/x/y/c.jpg")
    (root / "normal/x/y/loop").symlink_to(root / "normal" / target)
    (root / "normal/self").symlink_to("self")
    listing = listed(root)
    assert paths(listing) == ["normal/a.jpg", "normal/x/y/c.jpg", "pneumonia/b.png"]
    assert listing.ignored["folder reached twice"] == 1


@posix_only
def test_doubling_links_do_not_multiply_the_work(root):
    """Thirty levels of two links each would be a billion folders."""
    folder = root / "normal"
    for level in range(30):
        (folder / f"level{level}").mkdir()
        for name in "ab":
            (folder / f"level{level}" / name).symlink_to(root / f"normal/level{level + 1}")
    (folder / "level30").mkdir()
    assert paths(listed(root)) == ["normal/a.jpg", "pneumonia/b.png"]


@posix_only
def test_a_root_that_is_a_link_is_the_folder_it_names(root, tmp_path):
    """The user's own choice of path is no way out of the folder."""
    (tmp_path / "alias").symlink_to(root)
    (root / "normal/file.jpg").symlink_to("a.jpg")
    found = paths(listed(tmp_path / "alias"))
    assert found == ["normal/a.jpg", "normal/file.jpg", "pneumonia/b.png"]


@pytest.mark.parametrize("name", ["stack.npy", "x.png"])
def test_a_class_may_be_called_like_a_file(root, name):
    """A folder in the root is a class, not a stack."""
    with_files(root, f"{name}/c.jpg")
    assert [item.label for item in listed(root).items if item.path.endswith("c.jpg")] == [name]


@posix_only
@pytest.mark.parametrize(
    "name", [b"\xff\xfe.jpg", b"new\nline.jpg", b"\xc3\xa9.jpg", b"n" * 251 + b".jpg"]
)
def test_a_strange_name_survives(root, name):
    """Bytes that are no UTF-8, a newline, 255 bytes: the path leads back to the file."""
    try:
        Path(os.fsdecode(os.fsencode(root / "normal") + b"/" + name)).write_bytes(jpeg())
    except OSError as cause:
        pytest.skip(f"this file system refuses the name: {cause}")
    item = next(i for i in listed(root).items if os.fsencode(i.path) == b"normal/" + name)
    assert read_image(item).key == hashlib.sha256(jpeg()).digest()


def test_a_class_without_an_image_is_named_with_what_it_holds(root):
    """An empty class is a mistake to be mended before any work."""
    (root / "tuberculosis").mkdir()
    (root / "normal/of_another_class.bmp").write_text("x")
    with pytest.raises(
        StudyError, match=r"tuberculosis: the class folder holds no image \(it is e"
    ):
        listed(root)
    (root / "tuberculosis/scan.bmp").write_text("x")
    with pytest.raises(StudyError, match=r"ignored: 1 \.bmp image is not read: convert"):
        listed(root)
