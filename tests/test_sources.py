"""Which images a folder holds, and how each is read."""

import errno
import hashlib
import os
import pickle
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from pipeline.errors import ImageError, StudyError
from pipeline.images import PixelPolicy, decode, resize_pixels
from pipeline.sources import KINDS, read, scan
from pipeline.sources import items as items_module
from tests.image_files import jpeg, picture, png

REAL = Path(__file__).parents[2] / "shared/data/cxr"
needs_real_images = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real X-rays in {REAL}")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="links, FIFOs, sockets of POSIX")


@pytest.fixture
def root(tmp_path):
    """A domain of two classes with one image each."""
    return with_files(tmp_path / "domain", "normal/a.jpg", "pneumonia/b.png")


def with_files(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg() if "jp" in file.suffix.lower() else png())
    return root


def paths(listing):
    return [item.path for item in listing.items]


def stack(root, name, array, **options):
    root.mkdir(exist_ok=True)
    np.save(root / name, array, **options)
    return root


def pictures(count=3, seed=0):
    return np.stack([picture(seed=seed + i)[..., 0] for i in range(count)])


# --- class folders --------------------------------------------------------------------


def test_every_image_below_a_class_folder_is_found(root):
    """At any depth, whatever the case of its ending, sorted by path, labelled by class."""
    with_files(root, "normal/x/y/Z.JPEG", "normal/x/c.JPG", "pneumonia/0/d.Png")
    listing = scan(root)
    assert [(i.label, i.path) for i in listing.items] == [
        ("normal", "normal/a.jpg"),
        ("normal", "normal/x/c.JPG"),
        ("normal", "normal/x/y/Z.JPEG"),
        ("pneumonia", "pneumonia/0/d.Png"),
        ("pneumonia", "pneumonia/b.png"),
    ]
    assert listing.ignored == {}


def test_an_item_says_where_its_file_is_and_how_it_looked(root):
    """Absolute path, no row, and the stat that tells a change without reading."""
    item = scan(root).items[0]
    stat = (root / "normal/a.jpg").stat()
    assert Path(item.file).is_absolute()
    assert Path(item.file).samefile(root / "normal/a.jpg")
    assert item.row is None
    assert item.stat == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@posix_only
def test_what_is_not_taken_is_counted_and_never_opened(root, tmp_path):
    """Nothing vanishes without a word, and a FIFO cannot hold up the run."""
    with_files(root, "loose.jpg", "normal/.hidden.jpg", "normal/.cache/x.jpg")
    with_files(tmp_path / "elsewhere", "x.jpg")
    (root / "normal/notes.txt").write_text("x")
    (root / "pneumonia/old.tif").write_text("x")
    os.mkfifo(root / "normal/fifo.jpg")
    (root / "normal/broken.jpg").symlink_to(root / "normal/nowhere.jpg")
    (root / "normal/out.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    (root / "normal/out").symlink_to(tmp_path / "elsewhere")
    (root / "normal/null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "pneumonia/socket.jpg"))
        listing = scan(root)
    assert paths(listing) == ["normal/a.jpg", "pneumonia/b.png"]
    assert listing.ignored == {
        "not in a class folder": 1,
        "hidden": 2,
        "not a .jpg/.jpeg/.png file": 2,
        "not a regular file": 3,
        "link out of the folder": 3,
    }


@posix_only
def test_links_inside_the_folder_are_followed(root):
    """To a file, to a folder, and to a hidden place where some tools keep the content."""
    with_files(root, ".store/1.jpg", "pneumonia/deep/c.jpg")
    (root / "normal/file.jpg").symlink_to("../.store/1.jpg")
    (root / "normal/folder").symlink_to("../pneumonia/deep")
    assert paths(scan(root)) == [
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
    listing = scan(root)
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
    assert paths(scan(root)) == ["normal/a.jpg", "pneumonia/b.png"]


@posix_only
def test_a_root_that_is_a_link_is_the_folder_it_names(root, tmp_path):
    """The user's own choice of path is no way out of the folder."""
    (tmp_path / "alias").symlink_to(root)
    (root / "normal/file.jpg").symlink_to("a.jpg")
    assert paths(scan(tmp_path / "alias")) == ["normal/a.jpg", "normal/file.jpg", "pneumonia/b.png"]


def test_a_folder_called_like_an_image_is_a_folder(root):
    """The file system decides what is a folder, not the name."""
    with_files(root, "normal/x.jpg/c.jpg")
    assert paths(scan(root)) == ["normal/a.jpg", "normal/x.jpg/c.jpg", "pneumonia/b.png"]


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
    item = next(i for i in scan(root).items if os.fsencode(i.path) == b"normal/" + name)
    assert read(item).key == hashlib.sha256(jpeg()).digest()


def test_a_class_without_an_image_is_named_with_what_it_holds(root):
    """An empty class is a mistake to be mended before any work."""
    (root / "tuberculosis").mkdir()
    with pytest.raises(
        StudyError, match=r"tuberculosis: the class folder holds no image \(it is e"
    ):
        scan(root)
    (root / "tuberculosis/scan.tif").write_text("x")
    with pytest.raises(StudyError, match=r"ignored: 1 x not a \.jpg/\.jpeg/\.png file"):
        scan(root)


# --- which kind -----------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_named(tmp_path):
    """A typing mistake in the study file, said as one."""
    with pytest.raises(StudyError, match=r"nowhere cannot be listed: No such file .*ENOENT"):
        scan(tmp_path / "nowhere")
    file = tmp_path / "file.txt"
    file.write_text("x")
    with pytest.raises(StudyError, match=r"file\.txt cannot be listed: Not a directory"):
        scan(file)


def test_a_folder_of_neither_kind_says_what_was_found(tmp_path):
    """Images without class folders are the common mistake."""
    with pytest.raises(StudyError, match=r"holds nothing; allowed is one of: a folder for each"):
        scan(tmp_path)
    with_files(tmp_path, "a.jpg", "b.jpg", "c.PNG")
    with pytest.raises(StudyError, match=r"holds 2 \.jpg files, 1 \.png files; allowed is"):
        scan(tmp_path)


def test_a_folder_of_both_kinds_is_refused(root):
    """Guessing which one is meant would drop half of the images."""
    stack(root, "normal.npy", pictures())
    with pytest.raises(StudyError, match=r"holds class folders and \.npy stacks; allowed is one"):
        scan(root)


@posix_only
def test_class_folders_that_are_links_out_are_refused_and_named(tmp_path):
    """The error says that links are the reason."""
    with_files(tmp_path / "elsewhere/normal", "a.jpg")
    (tmp_path / "domain").mkdir()
    (tmp_path / "domain/normal").symlink_to(tmp_path / "elsewhere/normal")
    with pytest.raises(
        StudyError, match=r"no class folder \(ignored: 1 x link out of the folder\)"
    ):
        scan(tmp_path / "domain")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lists_sorted_items_that_can_be_read(kind, tmp_path):
    """The contract that every kind of input keeps."""
    fill = {
        "class folders": lambda: with_files(tmp_path, "b/1.jpg", "b/0.jpg", "a/2.png"),
        ".npy stacks": lambda: stack(tmp_path, "a.npy", pictures(12)),
    }
    listing = scan(fill[kind]())
    assert paths(listing) == sorted(set(paths(listing)))
    for item in listing.items:
        content = read(item)
        assert len(content.key) == 32
        assert content.pixels(PixelPolicy()).shape == (224, 224, 3)


# --- reading --------------------------------------------------------------------------


def test_key_and_pixels_come_from_the_same_bytes(root, monkeypatch):
    """The file is opened once; what happens to it afterwards cannot mix two images."""
    item = scan(root).items[0]
    opened = []
    monkeypatch.setattr(
        items_module, "open", lambda *a, **k: opened.append(a) or open(*a, **k), raising=False
    )
    content = read(item)
    Path(item.file).write_bytes(png(picture(seed=9)))
    assert content.key == hashlib.sha256(jpeg()).digest()
    assert (content.pixels(PixelPolicy()) == decode(jpeg(), PixelPolicy())).all()
    assert len(opened) == 1


def test_the_name_does_not_decide_the_format(root):
    """A PNG file called .jpg is taken as what it is."""
    (root / "normal/a.jpg").write_bytes(png())
    pixels = read(scan(root).items[0]).pixels(PixelPolicy(size=64))
    assert (pixels == picture()).all()


def test_a_file_that_has_vanished_is_a_reason(root):
    """Other programs may be at work on the folder."""
    item = scan(root).items[0]
    Path(item.file).unlink()
    with pytest.raises(ImageError, match=r"^cannot be read: No such file or directory \(ENOENT\)$"):
        read(item)


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


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_passing_error_is_tried_three_times_more(root, failing, code):
    """Network file systems fail once and work again; a broken disk does not."""
    item = scan(root).items[0]
    assert failing(code, code, code).calls == 0
    assert read(item).key == hashlib.sha256(jpeg()).digest()
    opener = failing(*[code] * 9)
    with pytest.raises(ImageError, match=errno.errorcode[code]):
        read(item)
    assert opener.calls == 4


def test_a_forbidden_file_is_a_reason_at_once(root, failing):
    """Trying again would not help; the path is not repeated in the reason."""
    item = scan(root).items[0]
    opener = failing(errno.EACCES)
    with pytest.raises(ImageError, match=r"^cannot be read: Permission denied \(EACCES\)$"):
        read(item)
    assert opener.calls == 1


def test_a_file_larger_than_any_image_is_not_read(root, failing):
    """Memory stays bounded whatever carries the ending .jpg."""
    with (root / "normal/a.jpg").open("r+b") as file:
        file.truncate(600_000_000)
    opener = failing()
    with pytest.raises(ImageError, match=r"^too large \(600000000 bytes, limit 500000000\)$"):
        read(scan(root).items[0])
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
        scan(root)


# --- stacks ---------------------------------------------------------------------------


def test_each_row_of_a_stack_is_an_image(tmp_path):
    """Grey or colour, with the class in the file's name and the row in the path."""
    grey, colour = pictures(3), np.stack([picture(seed=5), picture(seed=6)])
    stack(tmp_path, "test_normal.npy", grey)
    stack(tmp_path, "Pneumonia.npy", colour)
    listing = scan(tmp_path)
    assert [(i.path, i.label, i.row) for i in listing.items] == [
        ("Pneumonia.npy#0", "Pneumonia", 0),
        ("Pneumonia.npy#1", "Pneumonia", 1),
        ("test_normal.npy#0", "normal", 0),
        ("test_normal.npy#1", "normal", 1),
        ("test_normal.npy#2", "normal", 2),
    ]
    for item, row in zip(listing.items, [*colour, *grey], strict=True):
        expected = resize_pixels(row, PixelPolicy())
        assert (read(item).pixels(PixelPolicy()) == expected).all()
        assert item.stat.size == Path(item.file).stat().st_size


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("test_normal.npy", "normal"),
        ("train_normal.npy", "normal"),
        ("normal.npy", "normal"),
        ("train_test_x.npy", "test_x"),
        ("latest_normal.npy", "latest_normal"),
        ("test_.npy", "test_"),
    ],
)
def test_the_class_of_a_stack_is_its_name(tmp_path, name, label):
    """Without the prefix that says which split it came from, and never empty."""
    assert scan(stack(tmp_path, name, pictures(1))).items[0].label == label


def test_two_stacks_can_hold_one_class(tmp_path):
    """As course material comes: one file for training and one for testing."""
    stack(tmp_path, "train_normal.npy", pictures(2))
    listing = scan(stack(tmp_path, "test_normal.npy", pictures(2)))
    assert [i.label for i in listing.items] == ["normal"] * 4
    assert len(set(paths(listing))) == 4


def test_the_key_of_a_row_is_its_own(tmp_path):
    """SHA-256 over dtype, shape and bytes: the file and the position do not matter."""
    rows = pictures(3)
    first = scan(stack(tmp_path / "one", "a.npy", rows)).items
    second = scan(stack(tmp_path / "two", "b.npy", rows[::-1])).items
    keys = [read(item).key for item in first]
    assert keys == [read(item).key for item in reversed(second)]
    assert len(set(keys)) == 3
    assert keys[0] == hashlib.sha256(b"|u1|(64, 64)|" + rows[0].tobytes()).digest()


def test_the_key_of_a_row_knows_its_shape(tmp_path):
    """The same bytes in other rows and columns are another image."""
    wide = stack(tmp_path / "wide", "a.npy", pictures(1).reshape(1, 32, 128))
    tall = stack(tmp_path / "tall", "a.npy", pictures(1).reshape(1, 128, 32))
    assert read(scan(wide).items[0]).key != read(scan(tall).items[0]).key


BAD_STACKS = {
    "float": (np.zeros((2, 64, 64), np.float32), r"shape \(2, 64, 64\), float32; allowed are \(n"),
    "flat": (np.zeros((64, 64), np.uint8), r"has shape \(64, 64\), uint8; allowed are"),
    "channels first": (np.zeros((2, 3, 64, 64), np.uint8), r"has shape \(2, 3, 64, 64\), uint8"),
    "one image": (np.zeros((64, 64, 3), np.uint8), r"its images are too small \(3 x 64,"),
    "none": (np.zeros((0, 64, 64), np.uint8), r"shape \(0, 64, 64\): it holds no image"),
    "Fortran": (np.asfortranarray(np.zeros((2, 64, 64), np.uint8)), r"np\.ascontiguousarray"),
    "scalar": (np.uint8(3), r"has shape \(\), uint8"),
}


@pytest.mark.parametrize("name", BAD_STACKS)
def test_a_stack_of_another_form_is_refused(tmp_path, name):
    """Shape and dtype are shown, and what is allowed."""
    array, message = BAD_STACKS[name]
    with pytest.raises(StudyError, match=message):
        scan(stack(tmp_path, "normal.npy", array))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


def test_a_pickle_is_refused_and_never_run(tmp_path):
    """Neither inside an object array nor as the file itself."""
    target = tmp_path / "executed"
    objects = np.empty(2, object)
    objects[:] = Payload(target)
    stack(tmp_path / "array", "normal.npy", objects, allow_pickle=True)
    with pytest.raises(StudyError, match="holds Python objects, which are never loaded"):
        scan(tmp_path / "array")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/normal.npy").write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(StudyError, match=r"is not a \.npy file, or a damaged one"):
        scan(tmp_path / "plain")
    assert not target.exists()


@pytest.mark.parametrize("count", [4, 10**6, 10**30])
def test_a_header_that_declares_more_than_the_file_holds_is_refused(tmp_path, count):
    """Before anything is allocated: one row too many, or all the memory of the world."""
    with (tmp_path / "normal.npy").open("wb") as file:
        header = {"shape": (count, 64, 64), "fortran_order": False, "descr": "|u1"}
        npy.write_array_header_1_0(file, header)
        file.write(pictures(3).tobytes())
    with pytest.raises(StudyError, match=rf"is truncated: shape \({count}, 64, 64\) needs"):
        scan(tmp_path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 127), st.binary(max_size=6), st.integers(0, 9000))
def test_a_hostile_stack_gives_items_or_a_study_error(tmp_path, at, new, length):
    """Whatever the header says: no other exception, and every row listed can be read."""
    file = tmp_path / "normal.npy"
    np.save(file, pictures(2))
    data = file.read_bytes()
    file.write_bytes((data[:at] + new + data[at + len(new) :])[:length])
    try:
        listing = scan(tmp_path)
    except StudyError:
        return
    assert {len(read(item).key) for item in listing.items} == {32}


def test_a_stack_that_changed_after_it_was_listed_is_a_reason(tmp_path):
    """Shorter, replaced or written to: its rows may be elsewhere now."""
    item = scan(stack(tmp_path, "normal.npy", pictures(3))).items[2]
    read(item)
    os.truncate(item.file, 1000)
    with pytest.raises(ImageError, match="its stack changed after it was listed"):
        read(item)
    stack(tmp_path, "normal.npy", pictures(3, seed=9))
    with pytest.raises(ImageError, match="its stack changed after it was listed"):
        read(item)


def test_a_new_mode_or_hard_link_does_not_change_a_stack(tmp_path):
    """Only its content matters."""
    item = scan(stack(tmp_path, "normal.npy", pictures(2))).items[1]
    Path(item.file).chmod(0o600)
    assert read(item).key == hashlib.sha256(b"|u1|(64, 64)|" + pictures(2)[1].tobytes()).digest()


def test_other_files_beside_stacks_are_counted(tmp_path):
    """As in class folders."""
    stack(tmp_path, "normal.npy", pictures(1))
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.npy").write_text("x")
    assert scan(tmp_path).ignored == {"not a .npy file": 1, "hidden": 1}


# --- real images ----------------------------------------------------------------------


@needs_real_images
def test_all_real_x_rays_decode():
    """2,800 images of two hospitals: nothing ignored, nothing skipped."""
    listings = [scan(REAL / name) for name in ("kermany_train", "kermany_test", "nih")]
    assert [len(listing.items) for listing in listings] == [2000, 400, 400]
    assert not any(listing.ignored for listing in listings)
    items = [item for listing in listings for item in listing.items]
    contents = [read(item) for item in items]
    assert all(c.pixels(PixelPolicy()).shape == (224, 224, 3) for c in contents)
    assert len(items) - len({c.key for c in contents}) == 5  # the README's identical copies


@needs_real_images
def test_real_images_at_full_resolution_decode():
    """Large JPEG and PNG files, grey and colour."""
    for name in ("kermany", "nih"):
        items = scan(REAL / "full_resolution" / name).items
        assert len(items) == 40
        for item in items[::8]:
            assert np.ptp(read(item).pixels(PixelPolicy())) > 100


@needs_real_images
def test_a_real_stack_has_the_pixels_of_its_jpeg_files():
    """The course's stacks are the decoded test files, in the order of their names."""
    files, rows = scan(REAL / "kermany_test").items, scan(REAL / "course_npy").items
    rows = sorted(rows, key=lambda item: (item.label, item.row))
    for file, row in zip(files, rows, strict=True):
        assert file.label == row.label
        assert (read(file).pixels(PixelPolicy()) == read(row).pixels(PixelPolicy())).all()
