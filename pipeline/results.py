"""The result files of a stage: readers accept only a complete set from one run.

A stage writes its files first and its record last. The record lists the SHA-256 of every file
that belongs to it, under ``files``, and ends with the SHA-256 of its own text. So one altered byte
is found, and files of two runs are never mixed. A run that dies in between leaves a set that
readers refuse; their message names the command that makes it again.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cache import disk
from pipeline.errors import MissingResultsError, ResultsError

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_WITH_CHECKSUM = re.compile(rb'(.*),\n "sha256": "([0-9a-f]{64})"\n}', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ResultSet:
    """An undamaged record and the files that belong to it.

    Attributes:
        file: Path of the record.
        record: Its values.
        digests: SHA-256 of each file, hex; by name, relative to the record's folder.
        sha256: SHA-256 of the record's own file.
        stage: The command that writes the set.
    """

    file: Path
    record: dict[str, Any]
    digests: Mapping[str, str]
    sha256: str
    stage: str

    def read(self, name: str) -> bytes:
        """Read a file of the set; a ResultsError if it is not the one that the record names."""
        path = self.file.parent / name
        try:
            data = disk.read_all(path)
        except OSError:
            data = None
        if data is None or _sha256(data) != self.digests.get(name):
            raise ResultsError(
                f"{path} is not the file that {self.file.name} was written with: it is damaged, or "
                f"of another run. Run headrace {self.stage} STUDY again"
            )
        return data

    def check(self) -> None:
        """Read and check every file of the set, see :meth:`read`."""
        for name in self.digests:
            self.read(name)


def read_set(file: Path, stage: str) -> ResultSet:
    """Read the record of a stage; its files are checked when they are read.

    Raises:
        MissingResultsError: There is none.
        ResultsError: It is damaged, or of an older version.
    """
    again = f"run headrace {stage} STUDY"
    try:
        data = disk.read_all(file, disk.MAX_JSON_BYTES)
    except FileNotFoundError as cause:
        raise MissingResultsError(f"there is no {file}: {again} first") from cause
    except OSError as cause:
        raise ResultsError(f"{file} cannot be read ({cause.strerror or cause}): {again}") from cause
    try:
        record = _without_checksum(data)
        digests = dict(record.pop("files"))
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise ResultsError(
            f"{file} is not as headrace {stage} writes it: damaged, changed by hand, or of another "
            f"version. Its results are not used; {again} again"
        ) from cause
    return ResultSet(file=file, record=record, digests=digests, sha256=_sha256(data), stage=stage)


def write_set(
    file: Path,
    record: Mapping[str, Any],
    files: Mapping[str, bytes] = _NOTHING,
    *,
    unchanged: Mapping[str, str] = _NOTHING,
    owned: Sequence[str] = (),
) -> dict[str, str]:
    """Put the files of a run in place, the record last, and remove older files.

    All files are on the disk before the first gets its name: if the disk refuses a write, which
    is a WriteFailedError, nothing changes.

    Args:
        file: Path of the record.
        record: JSON values.
        files: Contents by name, relative to the record's folder.
        unchanged: Existing files that belong to the run, with their SHA-256.
        owned: Patterns of files that only this stage writes.

    Returns:
        SHA-256 by name, including the record.
    """
    digests = {**unchanged, **{name: _sha256(data) for name, data in files.items()}}
    written = _with_checksum(json.dumps({**record, "files": digests}, indent=1, allow_nan=False))
    contents = {file.parent / name: data for name, data in files.items()} | {file: written}
    disk.write_all_atomic(contents)
    _clear(file.parent, owned, {file.parent / name for name in digests})
    return {**digests, file.name: _sha256(written)}


def add_files(
    file: Path, record: Mapping[str, Any], files: Mapping[str, bytes], stage: str
) -> None:
    """Add files to the set of a record; a ResultsError if another run has replaced it since."""
    before = read_set(file, stage)
    if before.record != json.loads(json.dumps(record)):
        raise ResultsError(f"another run has replaced {file}: run headrace {stage} STUDY again")
    write_set(file, record, files, unchanged=before.digests)


def write_file(path: Path, data: bytes) -> None:
    """Put a file in place that is a result by itself, and then its SHA-256 beside it.

    ``sha256sum -c NAME.sha256`` checks it wherever the two are copied. Temporary files of dead
    processes beside it are removed.
    """
    with suppress(OSError):  # cleaning is a courtesy: it stops no stage
        disk.remove_abandoned(path.parent)
    line = f"{_sha256(data)}  {path.name}\n"
    disk.write_all_atomic({path: data, path.with_name(f"{path.name}.sha256"): line.encode()})


def _with_checksum(text: str) -> bytes:
    """JSON with one value per line and the digest of this text as the last value."""
    body = text.removesuffix("\n}").encode()
    return body + f',\n "sha256": "{_sha256(body)}"\n}}'.encode()


def _without_checksum(data: bytes) -> dict[str, Any]:
    """Parse such a text; a ValueError if its digest differs."""
    match = _WITH_CHECKSUM.fullmatch(data)
    if match is None or _sha256(match[1]) != match[2].decode():
        raise ValueError("its SHA-256 differs")
    record: dict[str, Any] = json.loads(data)
    del record["sha256"]
    return record


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _clear(folder: Path, owned: Sequence[str], named: set[Path]) -> None:
    """Remove files of an older run, so that nobody takes them for files of this one."""
    files = {path for pattern in owned for path in folder.glob(pattern) if path.is_file()}
    stale = [path for path in files - named if not path.name.startswith(disk.TEMPORARY)]
    for parent in {path.parent for path in stale}:
        disk.remove(parent, sorted(path.name for path in stale if path.parent == parent))
        if parent != folder:
            disk.remove_dir(parent)
