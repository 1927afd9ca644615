"""Which kind of input a folder holds, which files are images, and how an image is read."""

import errno
import hashlib
import os
import shutil
import socket
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest

from pipeline.data import items as items_module
from pipeline.data.images import Transform, decode
from pipeline.data.index import measures_of
from pipeline.data.items import Item, ReadOptions
from pipeline.data.samples import load_samples
from pipeline.data.sources import KINDS, check_layout, read_image, scan, wrong_layout
from pipeline.errors import ImageError, StudyError
from pipeline.features.extract import extract
from pipeline.init import write_study
from pipeline.study import ImageTable, SourceDomain, TargetDomain
from pipeline.study_file import load_study
from tests.image_files import dicom, jpeg, listed, picture, pictures, png, with_files, with_stack
from tests.tiny import TORCH, edited, write_images

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="links, FIFOs, sockets of POSIX")


@pytest.fixture
def root(tmp_path):
    """A domain of two classes with one image each."""
    return with_files(tmp_path / "domain", "normal/a.jpg", "pneumonia/b.png")


def paths(listing):
    return [item.path for item in listing.items]


# --- which kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lists_sorted_items_that_can_be_read(kind, tmp_path):
    """The contract that every kind of input keeps, with labels and without."""
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
        assert content.remembered().key(item.options) == content.key
        assert content.pixels(Transform()).shape == (224, 224, 3)
        other = replace(item, options=ReadOptions(window=(0, 9)))
        assert read_image(other).key == content.key, "8 bits need no window"
        assert measures_of(content)["height"] == 64
        assert measures_of(content)["file_bytes"] > 0
    unlabelled = scan(TargetDomain(name="far", labels="absent", **domain))
    assert paths(unlabelled) == paths(listing)
    assert {item.label for item in unlabelled.items} == {""}


@pytest.mark.parametrize(
    ("files", "stacks", "labelled", "sentence"),
    [
        ([], 0, True, r"holds no input; allowed is one of: a folder for each class"),
        (["a.jpg", "b.jpg", "c.PNG"], 0, True, r"holds no input; allowed is"),
        (["a/1.jpg"], 1, True, r"holds class folders and \.npy stacks; allowed is one"),
        ([], 0, False, r"holds no input; allowed is one of: images at any depth"),
        (["a.png"], 1, False, r"holds class folders and \.npy stacks; allowed"),
    ],
)
def test_a_folder_of_no_kind_or_of_two_is_refused(tmp_path, files, stacks, labelled, sentence):
    """What was found, and what may be there; guessing would drop half of the images."""
    with_files(tmp_path, *files)
    for _ in range(stacks):
        with_stack(tmp_path, "normal.npy", pictures())
    with pytest.raises(StudyError, match=sentence):
        listed(tmp_path, labelled=labelled)


def test_a_folder_that_cannot_be_listed_stops_the_run(root, monkeypatch):
    """A typing mistake, a file, a folder below that is not ours: never fewer images unsaid."""
    with pytest.raises(StudyError, match=r"nowhere is not there: is its disk connected"):
        listed(root / "nowhere")
    with pytest.raises(StudyError, match=r"a\.jpg cannot be listed: Not a directory"):
        listed(root / "normal/a.jpg")
    real = os.scandir

    def refuse(folder):
        if str(folder).endswith("pneumonia"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StudyError, match=r"pneumonia cannot be listed: Permission denied \(EACC"):
        listed(root)


# --- which files


def test_every_image_below_a_class_folder_is_found(root):
    """At any depth, whatever its ending is called, or by its first bytes where it has none."""
    with_files(root, "normal/x/y/Z.JPEG", "normal/x/c.JPG", "pneumonia/0/d.Png", "x.png/c.jpg")
    for name, content in {"a.jpe": jpeg(), "b.JFIF": jpeg(), "IM0001": png()}.items():
        (root / "normal" / name).write_bytes(content)
    (root / "normal" / "LICENSE").write_text("x")
    (root / "normal" / "empty").write_bytes(b"")
    listing = listed(root)
    assert " ".join(paths(listing)) == (
        "normal/IM0001 normal/a.jpe normal/a.jpg normal/b.JFIF normal/x/c.JPG normal/x/y/Z.JPEG "
        "pneumonia/0/d.Png pneumonia/b.png x.png/c.jpg"
    )
    assert all(item.path.startswith(f"{item.label}/") for item in listing.items)
    assert listing.ignored == {"not an image (.jpg, .png, .tif, .dcm)": 2}


@posix_only
def test_without_labels_images_are_taken_wherever_they_lie(tmp_path):
    """A folder's name is no class; a folder that is reached twice is walked once."""
    root = with_files(tmp_path / "x", "b.jpg", "a.PNG", "ward 3/c.jpeg", "ward 3/deep/d.png")
    (root / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("x")
    (root / "again").symlink_to(root / "ward 3")
    listing = listed(root, labelled=False)
    assert {item.label for item in listing.items} == {""}
    assert paths(listing) == ["a.PNG", "again/c.jpeg", "again/deep/d.png", "b.jpg"]


@posix_only
def test_what_is_not_taken_is_counted_and_never_opened(root, tmp_path, monkeypatch):
    """Nothing vanishes without a word, and a FIFO cannot hold up the run."""
    with_files(root, "loose.jpg", "normal/.hidden.jpg", "normal/.cache/x.jpg")
    with_files(root, "normal/@eaDir/a.jpg", "__MACOSX/normal/a.jpg", "#recycle/1.png")
    with_files(tmp_path / "elsewhere", "x.jpg")
    (root / "normal/notes.txt").write_text("x")
    (root / "pneumonia/old.webp").write_text("x")
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
        "hidden": 5,
        "not an image (.jpg, .png, .tif, .dcm)": 1,
        "not a regular file": 3,
        "link out of the folder": 3,
    }
    assert listing.unread == ("pneumonia/old.webp",)


@posix_only
def test_links_inside_the_folder_are_followed(root, tmp_path):
    """To a file, to a folder, and to a hidden place; the root may be a link itself."""
    with_files(root, ".store/1.jpg", "pneumonia/deep/c.jpg")
    (root / "normal/file.jpg").symlink_to("../.store/1.jpg")
    (root / "normal/folder").symlink_to("../pneumonia/deep")
    (tmp_path / "alias").symlink_to(root)
    assert " ".join(paths(listed(tmp_path / "alias"))) == (
        "normal/a.jpg normal/file.jpg normal/folder/c.jpg pneumonia/b.png pneumonia/deep/c.jpg"
    )


@posix_only
@pytest.mark.parametrize("target", [".", "..", "../normal", "x/y"])
def test_a_loop_of_links_ends(root, target):
    """Each folder is walked once a class, and a link to the root mixes no classes."""
    with_files(root, "normal/x/y/c.jpg")
    (root / "normal/x/y/loop").symlink_to(root / "normal" / target)
    (root / "normal/self").symlink_to("self")
    listing = listed(root)
    assert paths(listing) == ["normal/a.jpg", "normal/x/y/c.jpg", "pneumonia/b.png"]
    assert listing.ignored["folder reached twice"] == 1


def test_a_class_without_an_image_is_named_with_what_it_holds(root, tmp_path):
    """An empty class is a mistake; films of another format, and links out, are its reason."""
    (root / "tuberculosis").mkdir()
    with pytest.raises(StudyError, match=r"tuberculosis: the class folder holds no image \(it is"):
        listed(root)
    with_files(root / "tuberculosis", "1.csv", "2.tab", "3.pq")
    with pytest.raises(
        StudyError, match=r"holds no image \(ignored: 3 x a table or a study file\)"
    ):
        listed(root)
    (root / "tuberculosis/scan.webp").write_text("x")
    with pytest.raises(StudyError, match=r"1 image such as tub.*\.webp is not read: convert"):
        listed(root)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/normal").symlink_to(root / "normal")
    with pytest.raises(StudyError, match=r"no class folder \(ignored: 1 x link out of the folder"):
        listed(tmp_path / "links")


# --- reading


@pytest.fixture
def failing(monkeypatch):
    """Let the next opens fail with these errnos, then work; nobody waits."""

    def install(*codes):
        errors = [OSError(code, os.strerror(code)) for code in codes]
        opener = Mock(wraps=open, side_effect=[*errors, DEFAULT])
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
    assert (content.pixels(Transform()) == decode(jpeg(), Transform())).all()
    assert opener.call_count == 1


@pytest.mark.parametrize(
    ("code", "most", "sentence"),
    [
        (errno.EIO, 4, r"\(EIO\)"),
        (errno.ESTALE, 4, r"\(ESTALE\)"),
        (errno.EACCES, 1, r"^cannot be read: Permission denied \(EACCES\)$"),
        (errno.ENOENT, 1, r"^cannot be read: No such file or directory \(ENOENT\)$"),
    ],
)
def test_a_passing_error_is_tried_three_times_more(root, failing, code, most, sentence):
    """Network file systems fail once and work again; of other errors the reason is given."""
    item = listed(root).items[0]
    failing(*[code] * (most - 1))
    assert read_image(item).key == hashlib.sha256(jpeg()).digest()
    opener = failing(*[code] * 9)
    with pytest.raises(ImageError, match=sentence):
        read_image(item)
    assert opener.call_count == most


def test_a_file_larger_than_any_image_is_not_read(root, failing):
    """Memory stays bounded whatever carries the ending .jpg."""
    with (root / "normal/a.jpg").open("r+b") as file:
        file.truncate(600_000_000)
    opener = failing()
    with pytest.raises(ImageError, match=r"^too large \(600000000 bytes, limit 500000000\)$"):
        read_image(listed(root).items[0])
    assert opener.call_count == 0


#: Paths, and the setting that is proposed; None where the layout is what people have and mean.
LAYOUTS = {
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
    "masks of several kinds, deeper": (
        ["a/x/images/1.png", "a/x/lung masks/1.png", "b/x/images/2.png", "b/x/ManualMask/l/2.png"],
        'ignore = ["*/lung masks/*", "*/ManualMask/*"]',
    ),
    "splits by other names with the classes in them": (
        ["Training_Set/a/1.png", "Training_Set/b/2.png", "Test_Set/a/3.png", "Test_Set/b/4.png"],
        'path = "/x/Training_Set"',
    ),
    "splits without classes": (
        ["stage_2_train_images/1.png", "stage_2_test_images/2.png"],
        "table = FILE, a CSV with the columns path, label and patient",
    ),
    "folders of nodes of patients": (
        ["patient_004_node_1/1.png", "patient_004_node_2/2.png", "patient_010_node_0/3.png"],
        "table = FILE, a CSV with the columns path, label and patient",
    ),
    "folders of hashes": (
        [f"{k * 'd1f5'}9a2c7/{k}.png" for k in (3, 4, 5)],
        "table = FILE, a CSV with the columns path, label and patient",
    ),
    "the classes again": (
        ["a/1.png", "b/2.png", "augmented data*/a/1.png", "augmented data*/b/2.png"],
        'ignore = ["augmented data[*]/*"]',
    ),
    "classes": (["a/1.png", "b/2.png"], None),
    "classes with numbers": (["grade1/1.png", "grade2/2.png", "grade3/3.png"], None),
    "patients in classes": (["a/p1/1.png", "a/p2/2.png", "b/p1/3.png"], None),
    "a class that is called test": (["test/1.png", "ill/2.png"], None),
    "folders in classes that all are masks": (["a/masks/1.png", "b/masks/2.png"], None),
    "arms of a trial": (["test/p1/1.png", "test/p2/2.png", "control/p3/3.png"], None),
    "faces with and without a mask": (["with_mask/1.png", "without_mask/2.png"], None),
    "a class that is called training": (["after training/1.png", "before training/2.png"], None),
    "a mask of a face": (["a/oxygen_mask.png", "a/no_mask.png", "b/2.png"], None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrong_layout_is_seen_and_its_line_is_proposed(name):
    """Names are as they stand on the disk, whatever their case and characters."""
    paths, setting = LAYOUTS[name]
    items = [Item(path, path.partition("/")[0], f"/{path}", None, None) for path in paths]
    layout = wrong_layout(SourceDomain(path=Path("/x")), items)
    assert (layout and layout.setting(Path("/x"))) == setting


def test_what_matches_a_pattern_is_left_out_and_counted(tmp_path):
    """Files by any part of their path, folders with all that is in them."""
    with_files(tmp_path, "a/1.png", "a/masks/1.png", "a/1_mask.png", "b/2.png", "again/a/1.png")
    listing = listed(tmp_path, ignore=("*/masks/*", "*_mask.png", "again/*"))
    assert paths(listing) == ["a/1.png", "b/2.png"]
    assert listing.ignored == {"left out by `ignore`": 3}


def test_a_pattern_finds_the_class_in_the_path(tmp_path, caplog):
    """Patients with a folder for each class; splits and masks are still refused."""
    root = tmp_path / "set"
    with_files(root, *(f"p{k:03}/{c}/{k}_{c}.png" for k in range(4) for c in "01"), "p003/n.png")
    domain = SourceDomain(path=root, label=r"^p\d+/([01])/")
    listing = scan(domain)
    assert [item.label for item in listing.items] == ["0", "1"] * 4
    assert listing.ignored == {"without a class": 1}
    check_layout(domain, listing.items)
    assert [item.label for item in scan(replace(domain, label="(x)|_[01]")).items][:2] == [
        "_0",
        "_1",
    ]
    with pytest.raises(StudyError, match=r"label = '\(z\)' finds no class; first: p000/0/0_0.png"):
        scan(replace(domain, label="(z)"))
    flat = with_files(tmp_path / "flat", "1_0.png", "2_1.png")
    assert [item.label for item in scan(replace(domain, path=flat, label="_(.)")).items] == [
        "0",
        "1",
    ]
    with_files(root, "p001/masks/1_1.png")
    with pytest.raises(StudyError, match=r"images in folders called masks"):
        check_layout(domain, scan(replace(domain, label="[01]")).items)
    with_stack(root, "a.npy", pictures(2))
    assert len(scan(domain).items) == 8


def test_a_study_of_masks_stops_and_names_the_line(study_file):
    """The line makes it run; an empty one says that nothing is to be left out."""
    with_files(Path("here"), "a/masks/1.png", "b/masks/2.jpg")
    said = r"source: in .*here images in folders called masks would be taken.*Write ignore = "
    with pytest.raises(StudyError, match=said + r'\["\*/masks/\*"\], or ignore = \[\] if'):
        load_samples(load_study(study_file))
    study = edited(study_file, {"^(p": "([^/]+"})
    for ignore, images in ((("*/masks/*",), 40), ((), 42)):
        samples, _ = load_samples(replace(study, source=replace(study.source, ignore=ignore)))
        assert (samples.domain == "source").sum() == images


def test_one_class_for_all_names_the_folder_of_the_classes(study_file):
    """The path is one level too high."""
    Path("up").mkdir()
    Path("here").rename("up/here")
    study = edited(study_file, {'path = "here"': 'path = "up"'})
    with pytest.raises(StudyError, match=r"one class only \('here'\).*perhaps path = .*/up/here"):
        load_samples(study)


@pytest.mark.parametrize("deep", ["", "again/"])
def test_splits_below_the_classes_are_said(study_file, caplog, deep):
    """All of their images are taken."""
    for label in ("a", "b"):
        for image in [*Path("here", label).glob("*.png")]:
            split = image.parent / deep / ("train" if "_1" in image.name else "test")
            split.mkdir(exist_ok=True, parents=True)
            image.rename(split / image.name)
    load_samples(load_study(study_file))
    assert 'ignore = ["*/test/*"]' in caplog.text or 'ignore = ["*/train/*"]' in caplog.text


def test_folders_that_are_the_same_in_all_classes_are_said(study_file, caplog):
    """Two hospitals in one folder look like two classes; they may be meant so."""
    Path("up").mkdir()
    for name in ("here", "there"):
        Path(name).rename(f"up/{name}")
    study_file.write_text('[source]\npath = "up"\n[backbone.tiny]\n')
    assert load_samples(load_study(study_file))[0].classes == ("here", "there")
    sentence = "the class folders here, there hold the folders a, b; all of their images are taken"
    assert sentence in caplog.text
    assert any(sentence in note for note in write_study([Path("up")], Path("own.toml"), ["tiny"]))


def test_classes_that_differ_in_capitals_alone_are_refused(tmp_path):
    """Benign and benign are two spellings, unless the study lists both."""
    data = write_images(tmp_path / "data", 24)
    (data / "A").mkdir()
    for image in sorted((data / "a").iterdir())[6:]:
        image.rename(data / "A" / image.name)
    file = tmp_path / "own.toml"
    file.write_text('[source]\npath = "data"\n[backbone.densenet121]\n')
    with pytest.raises(StudyError, match="has the classes A and a: give them one name"):
        load_samples(load_study(file))
    study = edited(file, {"[source]": 'classes = ["A", "a", "b"]\n[source]'})
    assert load_samples(study)[0].classes == ("A", "a", "b")


@pytest.mark.parametrize(
    ("names", "ordered"),
    [("10 2", "2 10"), ("-1 -10", "-10 -1"), ("10 2x", "10 2x"), ("2.5 10", "10 2.5")],
)
def test_classes_that_are_whole_numbers_have_the_order_of_numbers(study_file, names, ordered):
    """Grades and ids; other names have that of text, and ``classes`` rules. init shows the same."""
    for old, new in zip("ab", names.split(), strict=True):
        for domain in ("here", "there"):
            Path(domain, old).rename(Path(domain, new))
    assert load_samples(load_study(study_file))[0].classes == (*ordered.split(),)
    first, *_ = write_study([Path("here")], Path("own.toml"), ["tiny"])
    assert first.endswith(f"classes: {ordered.replace(' ', ', ')}")
    classes = (*reversed(ordered.split()),)
    study = edited(study_file, {"[source]": f"classes = {[*classes]}\n[source]"})
    assert load_samples(study)[0].classes == classes


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
    assert study.targets[0].is_source_test
    with pytest.raises(StudyError, match=r"called masks would be taken .*Write ignore = \["):
        load_samples(replace(study, source=replace(study.source, ignore=None)))
    text = "\n".join(notes)
    assert "its only folder 'set' holds the folders test, train" in text
    assert "the data are divided into test, train" in text
    assert "[source] 24 images, classes: a, b\n  a     12  p50" in text


EYES = [f"{k}_{eye}.png" for k in range(3) for eye in "lr"]
HAM = {"metadata.csv": "image_id,dx,site\np1,nevus,vienna\np2,melanoma,vienna\n"}
HAM |= {"log.csv": "time,who\n1,2\n3\n"}  # of nothing that has to do with images
PARTS = ["set/part_1/p1.png", "set/part_2/p2.png"]
BESIDE = "in meta.csv, run headrace init set/meta.csv"
#: Images, tables, what init is given, and what it says or writes.
INIT = {
    "classes of a table above the images, as of HAM10000": (
        ["img/p1.png", "img/p2.png"], HAM, ".",
        ['table = "metadata.csv"', "no class folders; the classes are taken from metadata.csv"],
    ),
    "classes of a table beside the images": (
        ["p1.png", "p2.png"], HAM, ".", ['table = "metadata.csv"', 'label = "dx"'],
    ),
    "folders that may be no classes": (
        PARTS, {"set/meta.csv": "image_id,dx\np1,part_1\np2,x\n"}, "set", [BESIDE, 'path = "set"'],
    ),
    "folders beside a table without classes": (
        PARTS, {"set/meta.csv": "image_id,age\np1,40\np2,50\n"}, "set", [BESIDE, 'path = "set"'],
    ),
    "a table of other classes than the folders, as of PadChest": (
        ["set/0/p1.png", "set/1/p2.png"],
        {"set/l.csv": "ImageID,ImageDir,Labels\np1.png,0,\"['a', 'b']\"\np2.png,1,['a']\n"},
        "set", ['findings = ["a", "b"]', 'table = "set/l.csv"'],
    ),
    "a row for each eye that names both": (
        EYES, {"t.csv": "left,own,label\n" + "".join(f"{e[0]}_l.png,{e},{e[0]}\n" for e in EYES)},
        "t.csv", ['path = "own"'],
    ),
    "images found by the cells of a column, and rows of no hospital": (
        [f"img/{k}.png" for k in range(6)],
        {"t.csv": "slide,label,hospital\n0,a,Oslo\n1,b,Oslo\n2,a,Bergen\n3,b,Bergen\n4,a,\n5,b,\n"},
        "t.csv", ['path = "slide"', 'domain = "Oslo"', "[target.Bergen]"],
    ),
    "numbered folders in the classes": (
        [f"data/{c}/patient{p:03}/image1.png" for c in "ab" for p in range(3)], {}, "data",
        [r"group = '^[^/]+/([^/]*\d\d[^/]*)/'", "such as patient000 are taken as patients"],
    ),
    "parts without one for training": (
        [f"set/{p}/{c}/{k}.png" for p in ("val", "test") for c in "ab" for k in "12"], {}, "set",
        ['path = "set/val"', "[source] 4 images, classes: a, b"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INIT)
def test_init_finds_what_the_classes_and_the_images_are(tmp_path, monkeypatch, name):
    """From folders, and from tables beside or above them; the study can be read."""
    files, tables, given, lines = INIT[name]
    monkeypatch.chdir(tmp_path)
    with_files(tmp_path, *files)
    for table, text in tables.items():
        Path(table).write_text(text)
    notes = write_study([Path(given)], Path("own.toml"), ["densenet121"])
    said = "\n".join([*notes, Path("own.toml").read_text()])
    assert [line for line in lines if line not in said] == []
    assert scan(load_study(Path("own.toml")).source).items


def test_init_writes_what_it_knows_of_a_table_and_asks_for_the_classes(tmp_path):
    """Images in the folder beside the table's, the parts of the data, the column of the images."""
    with_files(tmp_path, *(f"set/images/x/{k}.dcm.png" for k in range(6)), "set/about/x.txt")
    rows = [f"a,{k}.dcm,{k},{('train', 'validate', 'test')[k % 3]}\n" for k in range(6)]
    table = tmp_path / "set/about/t.csv"
    table.write_text("study,image_id,birads,split\n" + "".join(rows))
    notes = write_study([table], tmp_path / "own.toml", ["densenet121"])
    assert any("in place of NAME; the columns are study, image_id, bi" in note for note in notes)
    text = (tmp_path / "own.toml").read_text()
    assert 'images = "set"' in text
    assert text.count('label = "NAME"') == 2
    with pytest.raises(StudyError, match="no column 'NAME'; the columns are study, image_id, bir"):
        scan(load_study(tmp_path / "own.toml").source)
    (tmp_path / "own.toml").write_text(text.replace("NAME", "birads"))
    study = load_study(tmp_path / "own.toml")
    assert [item.split for item in scan(study.source).items] == ["fit", "validation"] * 2
    assert len(scan(study.targets[0]).items) == 2


def test_init_takes_neither_a_date_nor_an_empty_header_as_the_patient(tmp_path):
    """Names of Messidor begin like those of NIH; VinDr has no patient in its headers."""
    with_files(tmp_path, *(f"t/{c}/20051116_4{k}477_0400_PP.png" for c in "ab" for k in (1, 2)))
    for number in range(4):
        file = tmp_path / f"d/{'ab'[number % 2]}/{number}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(dicom(np.full((32, 32), number, np.uint16), PatientID=""))
    notes = write_study([tmp_path / "t", tmp_path / "d"], tmp_path / "own.toml", ["densenet121"])
    assert all(domain.group is None for domain in load_study(tmp_path / "own.toml").domains)
    assert sum("give the patient's id as `group`" in note for note in notes) == 2


@pytest.mark.parametrize(
    ("paths", "tables", "sentence"),
    [
        (["p1.png", "p2.png"], "mt", "tables: m.csv, t.csv. Give the one that has the classes"),
        (["x/p001/1.png", "x/p002/1.png", "x/p003/1.png"], "", "one class only .x.; a head needs"),
        (["p001/1.png", "p002/1.png", "p003/1.png"], "", "p002, p003 are numbered like patients"),
        (["train/1.png", "test/1.png"], "", "test, train are splits, and no classes lie in them"),
    ],
)
def test_init_refuses_folders_without_classes(tmp_path, paths, tables, sentence):
    """The study would stop at once; each patient would be a class."""
    with_files(tmp_path, *paths)
    for name in tables:
        (tmp_path / f"{name}.csv").write_text("image_id,dx\np1,nevus\n")
    with pytest.raises(StudyError, match=sentence):
        write_study([tmp_path], tmp_path / "own.toml", ["densenet121"])


def test_results_and_stores_beside_the_classes_are_no_data(study_file):
    """A folder in which headrace has run is read as it was before; others of that name are data."""
    study_file.write_text('[source]\npath = "."\n[store]\npath = "kept"\n[backbone.tiny]\n')
    for label in ("a", "b"):
        Path("here", label).rename(label)
    Path("here").rmdir()
    shutil.rmtree("there")
    study = load_study(study_file)
    extract(study, TORCH)
    write_images(Path("results"), 4)
    assert load_samples(study)[0].classes == ("a", "b")
    # The weights of the tiny network. Nobody takes tables and the study file for images.
    for name in ("labels.csv", "labels.Parquet"):
        Path(name).touch()
    assert scan(study.source).ignored == {"not an image (.jpg, .png, .tif, .dcm)": 1}
    assert len(listed(write_images(Path("other/results"), 4).parent).items) == 4
