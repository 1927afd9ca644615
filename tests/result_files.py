"""Change what a stage has left as a later run would have left it: with digests that fit."""

import errno
import os
from pathlib import Path

from cache import disk
from pipeline.results import read_set, write_set


def rewrite(
    file: Path,
    values: dict | None = None,
    files: dict[str, bytes] | None = None,
    *,
    without: str = "/",
):
    """Other values in a record, other files in its set, or none that end so."""
    found = read_set(file, "stage")
    kept = {name: digest for name, digest in found.digests.items() if not name.endswith(without)}
    write_set(file, found.record | (values or {}), files or {}, unchanged=kept)


def record_of(file: Path) -> dict:
    """The values of a record."""
    return read_set(file, "stage").record


def forbid_writing(monkeypatch, folder: Path) -> None:
    """A folder that may only be read, also for root."""
    for name in ("open_new", "replace", "unlink", "make_dir"):
        real = getattr(disk, name)

        def guarded(path, *more, real=real, name=name):
            inside = folder.resolve() in (path.resolve(), *path.resolve().parents)
            if inside and not (name == "make_dir" and path.is_dir()):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *more)

        monkeypatch.setattr(disk, name, guarded)
