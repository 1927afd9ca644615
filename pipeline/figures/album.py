"""Draw a table of figures into a folder: each as PNG and SVG, none half written."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from cache import disk
from pipeline.figures.style import NothingToDrawError, image_bytes, styled

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
        The files that were written.
    """
    disk.make_dir(folder)
    written: list[Path] = []
    for name, make in figures.items():
        try:
            figure = styled(make)(data)
            images = {kind: image_bytes(figure, kind) for kind in KINDS}
        except NothingToDrawError as reason:
            _LOG.info("figure %s of %s is not drawn: %s", name, suffix, reason)
            continue
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told and costs one figure
            _LOG.warning(
                "figure %s of %s could not be drawn: %s: %s",
                name, suffix, type(error).__name__, error,
            )  # fmt: skip
            continue
        for kind, data_of_kind in images.items():
            path = folder / f"{name}-{_as_file_name(suffix)}.{kind}"
            disk.publish(path, data_of_kind)
            written.append(path)
    return written


def _as_file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)
