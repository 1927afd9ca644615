"""Draw a table of figures into a folder: each as PNG and SVG, none half written."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from cache import disk
from pipeline.report.figures.style import NotAskedForError, NothingToDrawError, image_bytes, styled
from pipeline.words import as_file_name

_LOG = logging.getLogger(__name__)
KINDS = ("png", "svg")
FOLDER = "figures"
D = TypeVar("D")


def draw_album(
    folder: Path, figures: Mapping[str, Callable[[D], Figure]], data: D, suffix: str
) -> list[Path]:
    """Draw every figure whose data are there.

    What cannot be drawn is said in the log, with the reason, and the others go on: the
    numbers are on disk already, and a figure must not cost them.

    Args:
        folder: Made if it is not there.
        figures: By name.
        data: What all of them are drawn from.
        suffix: Of the file names, such as the backbone.

    Returns:
        The files that were written; older ones of figures that are not drawn now are gone.
    """
    disk.make_dir(folder)
    written: list[Path] = []
    for name, make in figures.items():
        paths = {kind: folder / f"{name}-{as_file_name(suffix)}.{kind}" for kind in KINDS}
        images = _images(name, make, data, suffix)
        if images is None:
            # A figure of an earlier run would be taken for one of these numbers.
            disk.remove(folder, [path.name for path in paths.values() if path.exists()])
            continue
        for kind, path in paths.items():
            disk.publish(path, images[kind])
            written.append(path)
    return written


def _images(
    name: str, make: Callable[[D], Figure], data: D, suffix: str
) -> Mapping[str, bytes] | None:
    """By kind; None where the figure cannot be drawn, which is logged."""
    try:
        figure = styled(make)(data)
        return {kind: image_bytes(figure, kind) for kind in KINDS}
    except NotAskedForError:
        return None
    except NothingToDrawError as reason:
        _LOG.info("figure %s of %s is not drawn: %s", name, suffix, reason)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told and costs one figure
        what = type(error).__name__
        _LOG.warning("figure %s of %s could not be drawn: %s: %s", name, suffix, what, error)
    return None
