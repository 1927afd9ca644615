"""Images that a study leaves out by name: near copies, for example, as the audit lists them.

The file has one image a line, as the audit prints it: the domain, a slash, the path below
the domain's folder. Empty lines and those that start with ``#`` say nothing. The others
keep their split, so that numbers with and without these images compare.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError

_HEAD = """\
# Images that no stage should use. To leave them out, write into the study file, above its
# first [table]: exclude = "PATH OF THIS FILE"
"""


def read_exclusions(file: Path) -> tuple[str, ...]:
    """Names in the file, in its order.

    Raises:
        StudyError: It is not a text file.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise StudyError(f"exclude: {file} cannot be read as text: {cause}") from cause
    return tuple(line for line in lines if line.strip() and not line.startswith("#"))


def as_file(names: Iterable[str]) -> bytes:
    """What :func:`read_exclusions` reads, sorted."""
    return (_HEAD + "".join(f"{name}\n" for name in sorted(set(names)))).encode()


def kept(names: Sequence[str], file: Path, skipped: Collection[str] = ()) -> NDArray[np.bool_]:
    """Which images stay.

    Args:
        names: ``n`` images, as the audit prints them.
        file: See :func:`read_exclusions`.
        skipped: Images that cannot be read, and may be listed all the same.

    Returns:
        Shape ``(n,)``.

    Raises:
        StudyError: A line names no image: it is a slip of the pen, another study's, or gone.
    """
    left_out = read_exclusions(file)
    if unknown := sorted(set(left_out) - set(names) - set(skipped)):
        raise StudyError(
            f"exclude: {file} names {unknown[0]!r} ({len(unknown)} such lines), which is no image "
            f"of the study, or no longer there; allowed are lines such as {names[0]}"
        )
    return ~np.isin(names, left_out)
