"""Change what a stage has left as a later run would have left it: with digests that fit."""

from pathlib import Path

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
    write_set(file, found.record | (values or {}), files or {}, kept=kept)


def record_of(file: Path) -> dict:
    """The values of a record."""
    return read_set(file, "stage").record
