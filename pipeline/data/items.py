"""Files on the disk: which images a folder holds, how a file is read, and by which rule.

Only regular, visible files inside the folder are opened.

Values of more than 8 bits become grey levels by one rule for all images of a domain. Scaling each
image by its own darkest and brightest value would hide what the study may be about: how bright an
image is. So the rule is declared in the study, comes with DICOM files, or is guessed from all
images of a domain together, with a message.
"""

import errno
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache import disk
from pipeline.errors import ImageError, StudyError
from pipeline.parallel import Mapper, in_turn
from pipeline.study import Domain
from pipeline.words import are, composed, counted, printable

#: Label of an image that has no class.
NO_CLASS = ""
#: Errors of network file systems that are often gone at the next try.
_TRANSIENT = (errno.EIO, errno.ESTALE)
_RETRIES = 3
_PAUSE_SECONDS = 0.1
#: Endings of the files that are opened; what is in them decides how.
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".pgm", ".ppm", ".dcm",
    ".dicom",
)  # fmt: skip
#: Endings of images in formats that are not read: they are listed, never left out silently.
_OTHER_IMAGES = (
    ".gif", ".webp", ".jp2", ".heic", ".nii", ".nii.gz", ".svs", ".ndpi", ".npy", ".mha", ".nrrd",
)  # fmt: skip
#: Endings of the tables that are read.
TABLES = (".csv", ".tsv", ".tab", ".parquet", ".pq")
#: Endings of tables and study files, which nobody takes for images: they need no message beside
#: images, but are the reason why a folder has none.
_OF_STUDY = (*TABLES, ".toml")
OF_STUDY = "a table or a study file"
#: Folders that network drives and archives of macOS add, and the index of a DICOM disk.
_OF_PROGRAMS = {"@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "dicomdir"}
#: Formats are recognised by their first bytes.
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")  # with + BigTIFF
_DICOM_PREAMBLE = 128
#: How many first bytes identify any of these formats.
HEAD_BYTES = 132
#: Most pixels of an image, unless the study allows more.
MAX_PIXELS = 50_000_000
_MIN_SIDE = 16
_MAX_ASPECT = 50

#: The depth of a file, on which the rule depends: the largest value of a file with more than 8
#: bits, or one of these.
Depth = int | None
EIGHT_BITS = 0  # of a format that may have more
FILE_WINDOW = -1  # DICOM with a window
NO_RANGE = -2  # signed, real, or without a limit: a window must be declared
#: DICOM without a window: this minus its number of bits.
BITS_STORED = -100
#: Bits that detectors have; of 16, the whole range is used.
_USUAL_BITS = (10, 12, 14)
_ALL_BITS = 16
_LEAST_TOP = 0.75  # share of the range that the largest value must reach for a guess
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How the files of a domain are read.

    Attributes:
        window: Values that become black and white; None: as the format declares.
        frame: ``first`` or ``middle`` of several frames; None: such files are refused.
        max_pixels: A larger image is refused before it is decoded.
    """

    window: tuple[float, float] | None = None
    frame: str | None = None
    max_pixels: int = MAX_PIXELS

    def key(self, content: bytes) -> bytes:
        """Key of a file with this SHA-256; it differs for each rule by which the file is read."""
        if self.window is None and self.frame is None:
            return content
        return hashlib.sha256(content + f"{self.window}|{self.frame}".encode()).digest()

    def frame_of(self, frames: int) -> int:
        """The number of the frame that is read; an ImageError if none is chosen."""
        if frames > 1 and self.frame is None:
            raise ImageError(f'{frames} frames; choose with frame = "first" or "middle"')
        return frames // 2 if self.frame == "middle" else 0

    def check_size(self, width: int, height: int) -> None:
        """Refuse an image by its size, in pixels, with an ImageError, before it is decoded."""
        short, long = sorted((width, height))
        if width * height > self.max_pixels:
            limit = f"limit {self.max_pixels / 1e6:g} Mpx; max_megapixels in the study sets it"
            raise ImageError(f"too large ({width} x {height}, {limit})")
        if short < _MIN_SIDE:
            why = f"smallest side allowed is {_MIN_SIDE}"
            raise ImageError(f"too small ({width} x {height}, {why})")
        if long > _MAX_ASPECT * short:
            raise ImageError(f"too long ({width} x {height}, limit {_MAX_ASPECT} to 1)")


def window_of(domain: Domain, depths: Sequence[Depth]) -> tuple[float, float] | None:
    """The window for all images of a domain: as declared, or guessed from their largest values.

    None where formats say themselves what is white; a StudyError says what to declare.
    """
    deep = [depth for depth in depths if depth is not None and depth != EIGHT_BITS]
    if domain.window is not None or not deep:
        return domain.window
    images, least, top = counted(len(deep), "image"), min(deep), max(deep)
    bits, unclear = top.bit_length(), ""
    if top < 0 and (NO_RANGE in deep or least < top):
        unclear = (
            f"{images} of real or signed numbers, or of DICOM without one window, do not say what "
            "is black and what"
        )
    elif least < 0 < top:
        unclear = "DICOM and other files of 16 bits lie together, and it is unclear what"
    elif top > 0 and (bits not in _USUAL_BITS or top < _LEAST_TOP * 2**bits) and bits != _ALL_BITS:
        unclear = f"the largest value of {images} of 16 bits is {top}, so it is unclear what"
    if unclear:
        raise StudyError(
            f"{domain.name}: {unclear} is white. Write for this domain bits = 12 (or 14, 16), or "
            "window = [BLACK, WHITE] with the two values, such as [0, 1]"
        )
    if top < 0 or top >= _LEAST_TOP * 2**_ALL_BITS:
        return None
    _LOG.warning(
        "%s: %s of 16 bits: the largest value is %d, so %d bits are taken for all. Write bits = %d "
        "to keep it when images are added. If that is too wide, write window = [BLACK, WHITE]",
        *(domain.name, images, top, bits, bits),
    )
    return None if bits == _ALL_BITS else (0.0, 2.0**bits - 1)


def scaled(values: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Scale values to 0 to 255; an ImageError if some are NaN or infinite."""
    low, high = window
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    if not np.isfinite(levels).all():
        raise ImageError("some pixels are NaN or infinite")
    return np.asarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


class FileStat(NamedTuple):
    """What shows that a file has not changed, without reading it; times in ns."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "FileStat":
        """The part of ``os.stat``'s result that is kept."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@dataclass(frozen=True, slots=True)
class Item:
    """One image on the disk.

    Attributes:
        path: Relative to the domain's root, with ``/``; ``test_normal.npy#17`` is a row
            of a stack. Bytes that are not UTF-8 are kept as ``os.fsdecode`` has them.
        label: Name of its class; empty if no class was asked for.
        file: Absolute path of the file.
        row: Index in a stack; None if the file is the image.
        stat: The file's stat when it was listed.
        patient: Patient id from a table or the file's header; empty if neither has one.
        split: The data's own name for the part that it belongs to; empty if there is none.
        options: How the files of its domain are read.
    """

    path: str
    label: str
    file: str
    row: int | None
    stat: FileStat
    patient: str = ""
    split: str = ""
    options: ReadOptions = ReadOptions()

    @property
    def name(self) -> str:
        """The path in composed Unicode form, by which names in other files are compared."""
        return composed(self.path)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The content of a folder.

    Attributes:
        items: Images, sorted by path.
        ignored: Number of entries that were not taken, by reason.
        unread: Paths of images in formats that are not read.
        empty: By direct subfolder without an image, what was left out in it.
    """

    items: tuple[Item, ...]
    ignored: Mapping[str, int]
    unread: tuple[str, ...] = ()
    empty: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def joined(cls, listings: Sequence["Listing"]) -> "Listing":
        """Several listings as one."""
        ignored = Counter[str]()
        for listing in listings:
            ignored.update(listing.ignored)
        items = (item for listing in listings for item in listing.items)
        unread = (path for listing in listings for path in listing.unread)
        ordered = tuple(sorted(items, key=lambda item: item.path))
        return cls(items=ordered, ignored=ignored, unread=tuple(unread))

    @property
    def left_out(self) -> str:
        """What was not taken, as text for a message."""
        parts = [f"{count} x {reason}" for reason, count in sorted(self.ignored.items())]
        if self.unread:
            parts.insert(0, self.unread_text)
        return f"ignored: {', '.join(parts)}" if parts else "it is empty"

    @property
    def unread_text(self) -> str:
        """How many images have formats that are not read, and what to do."""
        images, first = counted(len(self.unread), "image"), printable(self.unread[0])
        return f"{images} such as {first} {are(len(self.unread))} not read: convert to .png"


def read_file(file: str, action: Callable[[FileIO], _T]) -> _T:
    """Open a file and do one action, with retries; an ImageError gives the system's reason."""
    tries = 0
    while True:
        try:
            with open(file, "rb", buffering=0) as stream:  # noqa: PTH123 - 4 us less than Path
                return action(stream)
        except OSError as cause:
            if cause.errno not in _TRANSIENT or tries == _RETRIES:
                raise ImageError(f"cannot be read: {system_reason(cause)}") from cause
        tries += 1
        time.sleep(_PAUSE_SECONDS)


def read_text(file: Path) -> str:
    """The content of a UTF-8 file of a study; a StudyError if it cannot be read as such."""
    try:
        content = disk.read_all(file.resolve())
    except OSError as cause:
        raise StudyError(f"{file} cannot be read: {system_reason(cause)}") from cause
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        raise StudyError(
            f"{file} line {line} is not UTF-8 (byte {content[cause.start]:#x}): save the "
            'table as "CSV UTF-8"'
        ) from cause


def read_lines(file: Path) -> tuple[str, ...]:
    """Lines of a UTF-8 text file in composed Unicode form, without comments and blank lines."""
    lines = read_text(file).splitlines()
    return tuple(composed(line) for line in lines if line.strip() and not line.startswith("#"))


def is_dicom(data: bytes) -> bool:
    """Whether a file begins as a DICOM file does."""
    return data[_DICOM_PREAMBLE : _DICOM_PREAMBLE + 4] == b"DICM"


def system_reason(cause: OSError) -> str:
    """The system's reason, such as ``Permission denied (EACCES)``; the caller names the path."""
    code = errno.errorcode.get(cause.errno or 0, "no errno")
    return f"{cause.strerror or type(cause).__name__} ({code})"


def images_in(folder: Path, *, ignore: tuple[str, ...] = (), mapper: Mapper = in_turn) -> Listing:
    """All images in and below a folder, without a class; there may be none.

    Its subfolders are walked in parallel. ``ignore`` are patterns of paths to leave out; ``*``
    matches any characters, also ``/``.
    """
    root = os.path.realpath(folder)
    directly, folders = files_in(root, ignore=ignore)
    folders = sorted({_identity(root, path): path for path in reversed(folders)}.values())
    trees = list(mapper(partial(_images_in_tree, root, ignore), folders))
    empty = {
        path: tree.left_out for path, tree in zip(folders, trees, strict=True) if not tree.items
    }
    return replace(Listing.joined([directly, *trees]), empty=empty)


def _images_in_tree(root: str, ignore: tuple[str, ...], folder: str) -> Listing:
    """Images of a folder tree. Each folder is walked once; links to the root are not followed."""
    listings, walked, waiting = [], {_identity(root, "")}, [folder]
    while waiting:
        folder = waiting.pop()
        if (identity := _identity(root, folder)) in walked:
            listings.append(Listing(items=(), ignored={"folder reached twice": 1}))
            continue
        walked.add(identity)
        listing, folders = files_in(root, folder, ignore=ignore)
        listings.append(listing)
        waiting += reversed(folders)
    return Listing.joined(listings)


def files_in(
    root: str,
    folder: str = "",
    *,
    suffixes: tuple[str, ...] = SUFFIXES,
    ignore: tuple[str, ...] = (),
) -> tuple[Listing, list[str]]:
    """Files (without a label) and subfolders directly in a folder; ``root`` has no links.

    Files without an ending are taken too if they begin as images do.
    """
    files, folders, unread, ignored = list[Item](), list[str](), list[str](), Counter[str]()
    for entry in list_folder(os.path.join(root, folder)):  # noqa: PTH118 - no Path here
        path = f"{folder}/{entry.name}" if folder else entry.name
        name = entry.name.lower()
        if not folder and is_output(entry):
            continue
        if is_hidden(entry):
            ignored["hidden"] += 1
        elif _is_left_out(path, entry, ignore):
            ignored["left out by `ignore`"] += 1
        elif entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root):
            ignored["link out of the folder"] += 1
        elif is_folder(entry):
            folders.append(path)
        elif name.endswith(suffixes) or (suffixes is SUFFIXES and _begins_as_image(entry)):
            if stat := _stat_of_regular(entry):
                files.append(Item(path, NO_CLASS, entry.path, None, stat))
            else:
                ignored["not a regular file"] += 1
        elif name.endswith(_OTHER_IMAGES):
            unread.append(path)
        else:
            ignored[_no_image(name, suffixes)] += 1
    return Listing(items=tuple(files), ignored=ignored, unread=tuple(unread)), sorted(folders)


def _no_image(name: str, suffixes: tuple[str, ...]) -> str:
    """Why a file with another ending is not taken."""
    if name.endswith(_OF_STUDY):
        return OF_STUDY
    return "not an image (.jpg, .png, .tif, .dcm)" if suffixes is SUFFIXES else "not a .npy file"


def _identity(root: str, folder: str) -> tuple[int, int]:
    """Device and inode: equal for two paths of one folder."""
    try:
        stat = os.stat(os.path.join(root, folder))  # noqa: PTH116, PTH118 - as above
    except OSError as cause:
        raise StudyError(f"{root}/{folder}: {system_reason(cause)}") from cause
    return stat.st_dev, stat.st_ino


def _begins_as_image(entry: "os.DirEntry[str]") -> bool:
    """Whether a regular file without an ending begins as an image does."""
    if "." in entry.name or _stat_of_regular(entry) is None:
        return False
    try:
        head = read_file(entry.path, lambda stream: stream.read(HEAD_BYTES))
        return head.startswith((JPEG, PNG, *TIFF)) or is_dicom(head)
    except ImageError:
        return False


def _is_left_out(path: str, entry: "os.DirEntry[str]", ignore: tuple[str, ...]) -> bool:
    """Whether a pattern matches the path; a folder's ends with ``/`` for ``masks/*``."""
    name = composed(f"{path}/" if ignore and is_folder(entry) else path)
    return any(fnmatchcase(name, composed(pattern)) for pattern in ignore)


def list_folder(folder: str | Path) -> list["os.DirEntry[str]"]:
    """All entries of a folder; a StudyError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as cause:
        raise StudyError(f"{folder} cannot be listed: {system_reason(cause)}") from cause


def is_hidden(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is hidden, or a folder of thumbnails or metadata that a program made."""
    return entry.name.startswith(".") or entry.name.casefold() in _OF_PROGRAMS


def is_output(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is our folder of results or feature stores, which holds no images."""
    if not is_folder(entry):
        return False
    if entry.name == "results":
        return os.path.realpath(entry.path) == os.path.realpath("results")
    folder = Path(entry.path)
    return (folder / "index").is_dir() and any(folder.glob("*/meta.json"))


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stat_of_regular(entry: "os.DirEntry[str]") -> FileStat | None:
    """The stat of a regular file; None for anything else and for what has just vanished."""
    try:
        return FileStat.of(entry.stat()) if entry.is_file() else None
    except OSError:
        return None
