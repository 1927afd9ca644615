"""The files of one run of a stage: whole and of that run, or refused.

A stage writes its files first and its record last. The record names every file that belongs
to it by its SHA-256, under ``files``, and ends with the SHA-256 of all text before it. So one
altered byte in any of them is found, and files of two runs are never taken for those of one.
A run that dies in between leaves a set that no reader takes, and the command that mends it.
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
_SEALED = re.compile(rb'(.*),\n "sha256": "([0-9a-f]{64})"\n}', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ResultSet:
    """A record that is as it was written, and the files that belong to it.

    Attributes:
        file: Of the record.
        record: Its values.
        digests: SHA-256 of each file, hex; by name, relative to the record's folder.
        sha256: Of the record's own file.
        stage: The command that makes the set.
    """

    file: Path
    record: dict[str, Any]
    digests: Mapping[str, str]
    sha256: str
    stage: str

    def read(self, name: str) -> bytes:
        """A file of the set; a ResultsError where it is not the one that the record names."""
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
        """Read every file of the set, as :meth:`read`."""
        for name in self.digests:
            self.read(name)


def read_set(file: Path, stage: str) -> ResultSet:
    """The record of a stage, if no byte of it has changed; its files are checked as they are read.

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
        record = _unseal(data)
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
    kept: Mapping[str, str] = _NOTHING,
    owned: Sequence[str] = (),
) -> dict[str, str]:
    """Put the files of a run in place, the record last, and clear what it does not name.

    All are on the disk before the first gets its name: a disk that refuses, which is a
    WriteFailedError, changes nothing.

    Args:
        file: Of the record.
        record: JSON values.
        files: By name, relative to the record's folder, their contents.
        kept: Files that are there already and belong to the run, with their SHA-256.
        owned: Patterns of files that only this stage writes.

    Returns:
        SHA-256 by name, also of the record itself.
    """
    digests = {**kept, **{name: _sha256(data) for name, data in files.items()}}
    sealed = _seal(json.dumps({**record, "files": digests}, indent=1, allow_nan=False))
    contents = {file.parent / name: data for name, data in files.items()} | {file: sealed}
    disk.publish_all(contents)
    _clear(file.parent, owned, {file.parent / name for name in digests})
    return {**digests, file.name: _sha256(sealed)}


def add_files(
    file: Path, record: Mapping[str, Any], files: Mapping[str, bytes], stage: str
) -> None:
    """Add files to the set of a record; a ResultsError where another run has replaced it since."""
    before = read_set(file, stage)
    if before.record != json.loads(json.dumps(record)):
        raise ResultsError(f"{file} is of another run by now: run headrace {stage} STUDY again")
    write_set(file, record, files, kept=before.digests)


def write_file(path: Path, data: bytes) -> None:
    """Put a file in place that is a result by itself, then its SHA-256 beside it.

    ``sha256sum -c NAME.sha256`` checks it wherever the two are copied to. What a dead process
    left of such a file beside it is removed.
    """
    with suppress(OSError):  # in a sticky folder another user's file has to stay
        disk.remove_abandoned(path.parent)
    line = f"{_sha256(data)}  {path.name}\n"
    disk.publish_all({path: data, path.with_name(f"{path.name}.sha256"): line.encode()})


def _seal(text: str) -> bytes:
    """JSON of one value a line, with the digest of its text as the last value."""
    body = text.removesuffix("\n}").encode()
    return body + f',\n "sha256": "{_sha256(body)}"\n}}'.encode()


def _unseal(data: bytes) -> dict[str, Any]:
    """The values; nothing is parsed whose digest differs."""
    sealed = _SEALED.fullmatch(data)
    if sealed is None or _sha256(sealed[1]) != sealed[2].decode():
        raise ValueError("its SHA-256 differs")
    record: dict[str, Any] = json.loads(data)
    del record["sha256"]
    return record


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _clear(folder: Path, owned: Sequence[str], named: set[Path]) -> None:
    """Remove files that an older run left: they would be taken for those of this one."""
    files = {path for pattern in owned for path in folder.glob(pattern) if path.is_file()}
    stale = [path for path in files - named if not path.name.startswith(disk.TEMPORARY)]
    for parent in {path.parent for path in stale}:
        disk.remove(parent, sorted(path.name for path in stale if path.parent == parent))
        if parent != folder:
            disk.remove_dir(parent)
