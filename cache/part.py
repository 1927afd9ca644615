"""One immutable HDF5 part: rows to bytes, bytes back to rows.

A part holds exactly ``features`` (n, ...) float32 and ``key`` (n, 32) uint8, and the
root attributes ``format``, ``fingerprint``, ``n`` and ``provenance``. It is built in
memory, because HDF5's own file writing ignores failed writes. Its name is the SHA-256
of its bytes, because HDF5's checksums miss some damage. Bytes are parsed only after
that check, and by a schema that accepts nothing else: only hard links, no external or
virtual data, no filter, no shape beyond the bytes.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cache.errors import BadFeaturesError, DamagedPartError
from cache.recipe import FORMAT

_KEY_BYTES = 32
NAME = re.compile(r"part-[0-9a-f]{64}\.h5")
#: Largest part that is written or read; parts that a run makes stay below 256 MiB.
MAX_BYTES = 1 << 30
_OVERHEAD = 1 << 20
_ATTRIBUTES = frozenset({"format", "fingerprint", "n", "provenance"})
#: Readable by HDF5 1.10 tools, and the same bytes for the same rows every time.
_LIBVER = ("earliest", "v108")


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of one part.

    Attributes:
        key: Shape ``(n, 32)``, uint8; SHA-256 of each image's content.
        features: Shape ``(n, ...)``, float32, finite; row ``i`` belongs to ``key[i]``.
        fingerprint: Fingerprint of the recipe that made the rows.
        provenance: JSON text: device, engine, batch size, versions.
    """

    key: NDArray[np.uint8]
    features: NDArray[np.float32]
    fingerprint: str
    provenance: str = "{}"


def name_of(data: bytes) -> str:
    """File name of a part with these bytes."""
    return f"part-{hashlib.sha256(data).hexdigest()}.h5"


def check_rows(key: NDArray[np.uint8], features: NDArray[np.float32]) -> None:
    """Raise a BadFeaturesError for rows that must never be stored."""
    if features.dtype != np.float32 or features.ndim < 2 or not features.size:
        raise BadFeaturesError(
            f"features must be float32 of shape (n, ...) with n > 0, got {features.dtype} "
            f"of shape {features.shape}"
        )
    if features.nbytes + key.nbytes > MAX_BYTES - _OVERHEAD:
        raise BadFeaturesError(f"{features.nbytes:,} bytes do not fit into one part: commit less")
    if key.dtype != np.uint8 or key.shape != (len(features), _KEY_BYTES):
        raise BadFeaturesError(
            f"{len(features)} rows need keys of shape ({len(features)}, {_KEY_BYTES}) uint8, "
            f"got {key.dtype} of shape {key.shape}"
        )
    finite = np.isfinite(features.reshape(len(features), -1)).all(axis=1)
    if not finite.all():
        raise BadFeaturesError(f"{int((~finite).sum())} of {len(features)} rows are not finite")
    if len({row.tobytes() for row in key}) != len(key):
        raise BadFeaturesError(f"a key stands twice among {len(key)} rows")


def to_bytes(part: Part) -> bytes:
    """Build the HDF5 image of a part; its rows are checked by :func:`check_rows`."""
    check_rows(part.key, part.features)
    with h5py.File.in_memory(libver=_LIBVER) as file:
        file.create_dataset("features", data=part.features.astype("<f4", copy=False))
        file.create_dataset("key", data=part.key)
        file.attrs["format"] = FORMAT
        file.attrs["fingerprint"] = part.fingerprint
        file.attrs["n"] = len(part.key)
        file.attrs["provenance"] = part.provenance
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def from_bytes(data: bytes, *, name: str, fingerprint: str) -> Part:
    """Read a part from its bytes; the arrays are views into them.

    Raises:
        DamagedPartError: The name (SHA-256 of the bytes), schema, recipe or values are wrong.
    """
    if name_of(data) != name:
        raise DamagedPartError(f"{name}: its SHA-256 is not its name: the file was damaged")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            _check_schema(file, name, fingerprint)
            key = _view(file["key"], data)
            features = _view(file["features"], data)
            provenance = str(file.attrs["provenance"])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as cause:
        if isinstance(cause, DamagedPartError):
            raise
        raise DamagedPartError(f"{name}: not a readable part: {cause}") from cause
    try:
        check_rows(key, features)
    except BadFeaturesError as cause:
        raise DamagedPartError(f"{name}: {cause}") from cause
    return Part(key=key, features=features, fingerprint=fingerprint, provenance=provenance)


def _check_schema(file: h5py.File, name: str, fingerprint: str) -> None:
    if set(file) != {"features", "key"} or set(file.attrs) != _ATTRIBUTES:
        raise DamagedPartError(
            f"{name}: has {sorted(file)} with attributes {sorted(file.attrs)}, "
            f"a part has ['features', 'key'] with {sorted(_ATTRIBUTES)}"
        )
    if file.attrs["format"] != FORMAT:
        raise DamagedPartError(f"{name}: format {file.attrs['format']}, this reads {FORMAT}")
    if file.attrs["fingerprint"] != fingerprint:
        raise DamagedPartError(f"{name}: made by another recipe ({file.attrs['fingerprint']})")
    rows = int(file.attrs["n"])
    for dataset, dtype in (("features", "<f4"), ("key", "|u1")):
        _check_dataset(file, name, dataset, np.dtype(dtype))
        if file[dataset].shape[0] != rows:
            raise DamagedPartError(f"{name}: n = {rows}, {dataset} has {file[dataset].shape}")
    if file["key"].shape != (rows, _KEY_BYTES):
        raise DamagedPartError(f"{name}: key has shape {file['key'].shape}")


def _check_dataset(file: h5py.File, name: str, dataset: str, dtype: np.dtype[Any]) -> None:
    """Accept only plain numbers that lie in this file, unfiltered, in one piece."""
    link = file.get(dataset, getlink=True)
    data = file[dataset] if isinstance(link, h5py.HardLink) else None
    as_written = (
        isinstance(data, h5py.Dataset)
        and data.dtype == dtype
        and data.ndim >= 2
        and not data.attrs
        and not data.external
        and not data.is_virtual
        and data.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        and data.id.get_create_plist().get_nfilters() == 0
        and data.id.get_offset() is not None
        and data.id.get_storage_size() == data.size * dtype.itemsize
    )
    if not as_written:
        raise DamagedPartError(f"{name}: {dataset} is not a plain contiguous {dtype} dataset")


def _view(dataset: h5py.Dataset, data: bytes) -> NDArray[Any]:
    """View of the dataset's numbers in the bytes: contiguous data has one offset."""
    flat = np.frombuffer(data, dataset.dtype, dataset.size, dataset.id.get_offset())
    return flat.reshape(dataset.shape)
