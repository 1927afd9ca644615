"""Where names stand in a figure, so that no two of them overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from pipeline.report.figures.style import INK, SMALL

#: Directions to try, the nearest first: right, left, above, below, then the corners.
_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
#: Keeps a name readable over points.
HALO = withStroke(linewidth=2.0, foreground="white", alpha=0.85)
_REACHES = (4.0, 10.0, 18.0, 28.0)


@dataclass(frozen=True, kw_only=True)
class Label:
    """A name that belongs to a point of the data."""

    text: str
    x: float
    y: float
    colour: str = INK
    span: tuple[float | None, float | None] = (None, None)
    """Lower and upper end of its interval, which names should not cross."""


def spread(wanted: NDArray[np.floating], gap: float) -> NDArray[np.float64]:
    """Places at least ``gap`` apart, in the order of and as near as can be to those wanted.

    Least squares under order: taking ``gap`` times the rank off turns it into a monotone fit.

    Args:
        wanted: Shape (n,).
        gap: Least distance, > 0.

    Returns:
        Shape (n,).
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    placed = np.empty(len(wanted), dtype=np.float64)
    placed[order] = isotonic_regression(np.asarray(wanted, np.float64)[order] - steps).x + steps
    return placed


def name_ends(axes: Axes, labels: Sequence[Label], *, room: float = 0.3) -> None:
    """Write the names of curves to the right of where they end, with a thin line between.

    Args:
        axes: Its limits are final.
        labels: ``x`` and ``y`` are the last point of each curve.
        room: Share of the width that is added for the names.
    """
    if not labels:
        return
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = (high - low) * (SMALL * 1.25) / max(height, 1.0)
    places = spread(np.array([label.y for label in labels]), gap)
    width = right - left
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= right])
    axes.set_xlim(left, right + room * width)
    axes.spines["bottom"].set_bounds(left, right)
    for label, y in zip(labels, places, strict=True):
        axes.plot(
            [label.x, right + 0.04 * width],
            [label.y, y],
            color=label.colour,
            linewidth=0.4,
            alpha=0.7,
        )
        axes.text(
            right + 0.05 * width, y, label.text, color=label.colour, va="center", fontsize=SMALL
        )


def name_points(axes: Axes, labels: Sequence[Label]) -> None:
    """Write names beside their points, each where it covers least.

    The figure's layout is settled first; the axes' limits must be final.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    scale = figure.dpi / 72
    frame = axes.get_window_extent()
    points = axes.transData.transform([(label.x, label.y) for label in labels])
    taken = [_around(axes, label, 3 * scale) for label in labels]
    for label, point in zip(labels, points, strict=True):
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=SMALL,
            color=label.colour,
            va="center",
            ha="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": label.colour, "shrinkB": 3},
        )
        text.set_in_layout(False)
        text.set_path_effects([HALO])
        size = text.get_window_extent()
        offset = _best_offset(point, (size.width, size.height), scale, (taken, frame))
        text.set_position(tuple(offset / scale))
        middle = point + offset
        taken.append(
            Bbox.from_bounds(
                middle[0] - size.width / 2, middle[1] - size.height / 2, size.width, size.height
            )
        )


def _around(axes: Axes, label: Label, margin: float) -> Bbox:
    """Pixels that the point and its interval take."""
    ends = [(label.x, label.y if end is None else end) for end in label.span]
    corners = axes.transData.transform([(label.x, label.y), *ends])
    return Bbox([corners.min(axis=0) - margin, corners.max(axis=0) + margin])


def _best_offset(
    point: NDArray[np.float64],
    size: tuple[float, float],
    scale: float,
    around: tuple[list[Bbox], Any],
) -> NDArray[np.float64]:
    """Pixels from the point to the text's middle; the first that covers nothing, or least."""
    taken, frame = around
    best, least = np.zeros(2), np.inf
    for reach in _REACHES:
        for right, up in _WAYS:
            offset = np.array(
                [right * (reach * scale + size[0] / 2), up * (reach * scale + size[1] / 2)]
            )
            low, high = point + offset - np.array(size) / 2, point + offset + np.array(size) / 2
            box = Bbox([low, high])
            outside = np.maximum(0, [frame.x0 - low[0], frame.y0 - low[1]]).sum()
            outside += np.maximum(0, [high[0] - frame.x1, high[1] - frame.y1]).sum()
            cost = sum(_overlap(box, other) for other in taken) + outside * 10 * size[1]
            if cost < least:
                best, least = offset, cost
        if least == 0:
            break
    return best


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0
