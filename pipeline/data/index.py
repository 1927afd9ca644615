"""The index: what is remembered of images between runs, keys of files and measures of contents.

It lies in ``index/`` below the feature stores and is disposable: an entry that is damaged or of
another version counts as missing, and a full disk costs only time.

The measures are size, grey values, properties of the file, and appearance; none is about the class.
The audit tests whether they predict the label all the same, and shift how hospitals differ in
them. The measures of appearance are what a technician would name (exposure, contrast, noise,
sharpness, marks in the corners); each is made to ignore what the others measure.
"""

import hashlib
import io
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache import disk
from cache.errors import WriteFailedError
from pipeline.data.images import Content, RememberedFile, open_image
from pipeline.data.items import Item
from pipeline.data.sources import read_image
from pipeline.errors import ImageError, StudyError
from pipeline.parallel import Mapper, in_threads
from pipeline.progress import Progress

_LOG = logging.getLogger(__name__)
#: In the names of files and folders, so that another layout has other names.
_KEYS_VERSION, _MEASURES_VERSION = 4, 3
_DIGEST_BYTES = 32
#: Measured images that a killed run may lose.
_SAVE_EVERY_S = 30.0


class KeyIndex:
    """The index of the files of one domain, so that a second run reads no image.

    It holds only hashes of paths, because names of medical images can name people. An entry is
    used if size, times and inode agree *and* the file was last changed before the hashing began:
    a file changed within the clock tick in which it was hashed would look the same afterwards
    (git calls such entries racy). Racy entries are never written.

    Args:
        store_root: Folder of the feature stores.
        domain: Root folder of the domain's files.
        patients: Remember the patients of headers too, hashed with the secret of the store; another
            secret has another index.
        rehash: Ignore all entries.
    """

    def __init__(
        self, store_root: Path, domain: Path, *, patients: bool = False, rehash: bool = False
    ) -> None:
        salt = _salt_of(store_root) if patients else None
        self._folder, self._salt = store_root / "index", salt
        name = str(domain.resolve()) + (f"|{hashlib.sha256(salt).hexdigest()}" if salt else "")
        self._file = self._folder / f"{_short_hash(name)}-v{_KEYS_VERSION}.json"
        self._entries: dict[str, Any] = {} if rehash else self._load()

    def contents(
        self, items: Sequence[Item], mapper: Mapper, progress: Progress
    ) -> list[RememberedFile | str]:
        """The content of each file, remembered or read now, or the reason it cannot be used."""
        contents: list[Any] = [self._remembered(item) for item in items]
        missing = [row for row, content in enumerate(contents) if content is None]
        progress.expect(len(missing))
        stamp = self._stamp() if missing else None
        read = mapper(partial(_content_or_reason, salt=self._salt), [items[row] for row in missing])
        new: dict[str, list[Any]] = {}
        for row, content in zip(missing, read, strict=True):
            contents[row] = content
            if isinstance(content, RememberedFile):
                entry = [*items[row].stat, content.digest.hex(), *content[1:]]
                new[_short_hash(items[row].path)] = entry
            progress.advance()
        if stamp is not None and new:
            self._save(new, stamp)
        return contents

    def _remembered(self, item: Item) -> RememberedFile | None:
        """The entry of a file that has not changed since; None if there is none.

        The ctime shows a change even if an editor restores the old mtime.
        """
        entry = self._entries.get(_short_hash(item.path))
        if entry is None or entry[:4] != [*item.stat]:
            return None
        digest, *more = entry[4:]
        return RememberedFile(bytes.fromhex(digest), *more)

    def _stamp(self) -> int | None:
        """The current time by the clock of the disk, ns; None if nothing can be written."""
        file = self._folder / disk.temporary_name()
        with suppress(OSError):
            disk.make_dir(self._folder)
            disk.close(disk.open_new(file))
            stamp = file.stat().st_mtime_ns
            disk.unlink(file)
            return stamp
        return None

    def _save(self, new: dict[str, list[Any]], stamp: int) -> None:
        """Write the new entries, without the racy ones."""
        safe = {k: v for k, v in new.items() if max(v[1:3]) < stamp}
        # Read again: another run may have saved its entries meanwhile.
        others = {k: v for k, v in self._load().items() if k not in new}
        with suppress(WriteFailedError):
            write_checked(self._file, json.dumps(self._entries | others | safe).encode())

    def _load(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return dict(json.loads(read_checked(self._file)))
        return {}


def _salt_of(store_root: Path) -> bytes:
    """The secret with which the patients of a store are hashed; created when first needed.

    Validation patients depend on it, so it lies beside the stores and is kept.
    """
    file = store_root / "patients.salt"
    if not file.exists():
        disk.write_atomic(file, secrets.token_hex(_DIGEST_BYTES).encode())
    try:
        return bytes.fromhex(disk.read_all(file).decode())
    except (OSError, ValueError) as cause:
        raise StudyError(
            f"{file} cannot be read ({cause}). Patients of DICOM files are hashed with it. Restore "
            "it, or remove it and get another split of validation patients"
        ) from cause


def _content_or_reason(item: Item, *, salt: bytes | None) -> RememberedFile | str:
    try:
        return read_image(item).remembered(salt)
    except ImageError as reason:
        return str(reason)


def _short_hash(path: str) -> str:
    data = path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def write_checked(file: Path, body: bytes) -> None:
    """Write a file with its digest at the end."""
    disk.write_atomic(file, body + hashlib.sha256(body).digest())


def read_checked(file: Path) -> bytes:
    """Read such a file without its digest; a ValueError if any byte is damaged."""
    data = disk.read_all(file)
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{file} is damaged")
    return body


# Measures of one image.


_Grey = NDArray[np.float64]
#: Grey values between which no pixel is near the ends of the scale.
_MIDTONES = (0.15, 0.85)
#: The second difference of the second difference: zero on planes (Immerkaer 1996).
_GRAIN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], float)
_NORMAL_MEDIAN = 0.6745  # median of |z| for a standard normal z
#: Images are averaged down by whole numbers until the longer side is below twice this.
_LONG_SIDE = 256
#: How much brighter than its surroundings a stroke is.
_STROKE = 0.3
_FLOOR = 1e-3  # logarithms of shares and of noise start here
#: Share of each side that counts as border, on each end.
_BORDER = 0.05
#: Side of the small image by which near duplicates are found.
SMALL = 48
#: Luminance table of ITU-T T.81, annex K.1, row by row: what libjpeg scales by quality.
_ANNEX_K = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)
_QUALITIES = np.arange(1, 101)
_SCALES = np.where(_QUALITIES < 50, 5000 // _QUALITIES, 200 - 2 * _QUALITIES)[:, None]
#: The tables of these qualities, as libjpeg scales them, shape ``(100, 64)``.
_LIBJPEG = np.clip((_ANNEX_K * _SCALES + 50) // 100, 1, 255)


# Measures of appearance; the grey values of an image are 0 to 1.


def _exposure(grey: _Grey) -> float:
    """Mean grey of the middle two thirds, 0 to 1."""
    return float(_middle(grey).mean())


def _contrast(grey: _Grey) -> float:
    """Standard deviation of grey in the middle two thirds, 0 to 0.5."""
    return float(_middle(grey).std())


def _noise(grey: _Grey) -> float:
    """Log of the grain's standard deviation plus 0.001, from mid-grey pixels.

    The median of the response to Immerkaer's mask (Computer Vision and Image
    Understanding 64, 1996), which edges hardly move. NaN where no pixel is mid-grey.
    """
    from scipy import ndimage

    response = ndimage.convolve(grey, _GRAIN)[1:-1, 1:-1]
    inside = grey[1:-1, 1:-1]
    flat = np.abs(response[(inside > _MIDTONES[0]) & (inside < _MIDTONES[1])])
    if not flat.size:
        return float("nan")
    sigma = np.median(flat) / _NORMAL_MEDIAN / np.linalg.norm(_GRAIN)
    return float(np.log(sigma + _FLOOR))


def _sharpness(grey: _Grey) -> float:
    """Log of the mean absolute Laplacian at a scale of one pixel."""
    from scipy import ndimage

    edges = ndimage.gaussian_laplace(grey, 1.0)
    return float(np.log(np.abs(edges).mean() + 1e-6))


def _corner_marks(grey: _Grey) -> float:
    """Log of the share (plus 0.001) of thin bright strokes in the corner that has most.

    A stroke is thinner than a 25th of the image and brighter by 0.3 than its
    surroundings (white top-hat): burnt-in letters, not anatomy.
    """
    from scipy import ndimage

    size = max(3, round(min(grey.shape) / 25))
    down, across = (max(1, length // 4) for length in grey.shape)
    rows, columns = (slice(down), slice(-down, None)), (slice(across), slice(-across, None))
    strokes = (ndimage.white_tophat(grey[r, c], size=size) for r in rows for c in columns)
    return float(np.log(max((s > _STROKE).mean() for s in strokes) + _FLOOR))


def _middle(grey: _Grey) -> _Grey:
    down, across = (length // 6 for length in grey.shape)
    return grey[down : grey.shape[0] - down, across : grey.shape[1] - across]


#: To add a measure: a function above and one line here.
APPEARANCE: Mapping[str, Callable[[_Grey], float]] = MappingProxyType(
    {
        "exposure": _exposure,
        "contrast": _contrast,
        "noise": _noise,
        "sharpness": _sharpness,
        "corner_marks": _corner_marks,
    }
)

#: The measures of one image. Greys are 0 to 255; ``jpeg_quality`` is 1 to 100, NaN where the
#: file is no JPEG; ``small`` is the image at a small size, by which near duplicates are found;
#: ``pixels`` the digest of the pixels. The last are those of :data:`APPEARANCE`.
MEASURES = np.dtype(
    [
        ("key", np.uint8, (32,)),
        ("pixels", np.uint8, (32,)),
        ("small", np.uint8, (SMALL, SMALL)),
        ("height", np.int32),
        ("width", np.int32),
        ("mean", np.float32),
        ("std", np.float32),
        ("border", np.float32),
        ("file_bytes", np.int64),
        ("jpeg_quality", np.float32),
        *((name, np.float32) for name in APPEARANCE),
    ]
)


def measures_of(content: Content) -> NDArray[Any]:
    """One record of ``MEASURES``, with an empty key; an ImageError if the image cannot be used.

    For the measures of appearance, an image that is at least twice as large as a network's input
    is averaged down first: finer grain does not count.
    """
    measures, image = np.zeros((), MEASURES), content.image()
    greys = image.convert("L")
    values = np.asarray(greys)
    measures["pixels"] = np.frombuffer(_digest(image), np.uint8)
    measures["small"] = greys.resize((SMALL, SMALL), Image.Resampling.BOX)
    measures["height"], measures["width"] = values.shape
    measures["mean"], measures["std"] = values.mean(), values.std()
    # The outer frame.
    rows, columns = (max(1, round(_BORDER * side)) for side in values.shape)
    inside = values[rows:-rows, columns:-columns]
    total = values.sum(dtype=np.int64) - inside.sum(dtype=np.int64)
    measures["border"] = total / (values.size - inside.size)
    data = content.data
    measures["file_bytes"] = len(data) if isinstance(data, bytes) else data.size  # in 8 bits
    measures["jpeg_quality"] = _jpeg_quality(content)
    reduced = np.asarray(greys.reduce(max(1, max(values.shape) // _LONG_SIDE))) / 255
    for name, measure in APPEARANCE.items():
        measures[name] = measure(reduced)
    return measures


def _digest(image: Image.Image) -> bytes:
    """Digest of the pixels; grey stored as three equal channels counts as grey."""
    values = np.asarray(image)
    if values.ndim > 2 and (values == values[..., :1]).all():
        values = np.ascontiguousarray(values[..., 0])
    digest = hashlib.sha256(f"{values.shape}|".encode())
    digest.update(values.data)
    return digest.digest()


def _jpeg_quality(content: Content) -> float:
    """The libjpeg quality, 1 to 100, whose luminance table is nearest to the file's.

    Exact for files of libjpeg; NaN for other formats.
    """
    if not isinstance(content.data, bytes) or not content.data.startswith(b"\xff\xd8"):
        return float("nan")
    image, _ = open_image(content.data, content.options)
    tables: Mapping[int, Any] = getattr(image, "quantization", {})
    table = np.array(tables.get(0, ()))
    if table.size != _ANNEX_K.size:
        raise ImageError("damaged (no quantisation table)")
    return float(_QUALITIES[np.abs(_LIBJPEG - table).sum(axis=1).argmin()])


class MeasureIndex:
    """Measures of images, each taken once, by content key.

    They lie in the files of one folder. Each file is written once under its own name, so two runs
    at a time lose nothing. It holds records of dtype ``MEASURES`` as ``np.save`` writes them, then
    the SHA-256 of these bytes.
    """

    def __init__(self, store_root: Path) -> None:
        self._folder = store_root / "index" / f"facts-v{_MEASURES_VERSION}"
        files = sorted(self._folder.glob("*.npy"))
        self._records = np.concatenate([np.empty(0, MEASURES), *map(_read_measures, files)])
        self._row_of = {bytes(key): row for row, key in enumerate(self._records["key"])}

    def __contains__(self, key: bytes) -> bool:
        return key in self._row_of

    def records(self, keys: Iterable[bytes]) -> NDArray[Any]:
        """The records of these keys, in their order; a key may repeat."""
        return np.asarray(self._records[[self._row_of[key] for key in keys]])

    def add(self, records: Sequence[NDArray[Any]]) -> None:
        """Add measures, and write them to a new file."""
        new = [record for record in records if bytes(record["key"]) not in self._row_of]
        if not new:
            return
        self._row_of |= {bytes(r["key"]): len(self._records) + row for row, r in enumerate(new)}
        self._records = np.concatenate([self._records, np.array(new, MEASURES)])
        stream = io.BytesIO()
        np.save(stream, self._records[-len(new) :], allow_pickle=False)
        name = hashlib.sha256(stream.getvalue()).hexdigest()[:24]
        try:
            write_checked(self._folder / f"{name}.npy", stream.getvalue())
        except WriteFailedError as cause:
            _LOG.warning("the measures of the images cannot be kept: %s", cause)

    def measure(
        self, keys: Sequence[bytes], items: Sequence[Item], progress: Progress
    ) -> dict[bytes, str]:
        """Measure those of ``n`` keys and items that are missing; results are saved regularly.

        Returns:
            Reason by key for the images that cannot be measured.
        """
        missing = {k: i for k, i in zip(keys, items, strict=True) if k not in self}
        progress.expect(len(missing))
        waiting: list[NDArray[Any]] = []
        reasons: dict[bytes, str] = {}
        saved = time.monotonic()
        try:
            measured = in_threads(_measures_or_reason, list(missing.items()))
            for key, result in zip(missing, measured, strict=True):
                if isinstance(result, str):
                    reasons[key] = result
                else:
                    waiting.append(result)
                progress.advance()
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self.add(waiting)
                    waiting, saved = [], time.monotonic()
        finally:
            self.add(waiting)
        return reasons


def stored_measures(store_root: Path, keys: Sequence[bytes]) -> NDArray[Any] | None:
    """The records of all keys; None unless an audit has measured all of them."""
    index = MeasureIndex(store_root)
    return index.records(keys) if all(key in index for key in keys) else None


def _measures_or_reason(entry: tuple[bytes, Item]) -> NDArray[Any] | str:
    key, item = entry
    try:
        measures = measures_of(read_image(item, key))
    except ImageError as reason:
        return str(reason)
    measures["key"] = np.frombuffer(key, np.uint8)
    return measures


def _read_measures(file: Path) -> NDArray[Any]:
    """The stored records; none if the file is damaged or of another version."""
    with suppress(OSError, ValueError):
        records = np.load(io.BytesIO(read_checked(file)), allow_pickle=False)
        if records.dtype == MEASURES:
            return np.asarray(records)
    return np.empty(0, MEASURES)
