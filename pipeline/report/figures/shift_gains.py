"""Figures of what mends a loss, and what could be known of it without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.data.patients import draw_patients
from pipeline.report.figures.labels import HALO
from pipeline.report.figures.shift_data import ShiftData, Side
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    SMALL,
    VERMILION,
    NothingToDrawError,
    grid,
    new_figure,
)
from pipeline.shift.effects import rate

_ROW = 0.24
#: Share of a panel from its edge, in which a name in its middle might run out of it.
_NEAR = 0.25
_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "ac": "AC (mean confidence)",
        "doc": "DoC",
        "im": "IM (isotonic)",
        "atc_mc": "ATC (confidence)",
        "atc_ne": "ATC (entropy)",
        "cot_source_prior": "COT, source prior",
        "cot_mlls_prior": "COT, MLLS prior",
        "cott": "COTT",
        "cm_atc": "CM-ATC",
        "cm_doc": "CM-DoC",
        "cbpe": "CBPE",
        "coral": "CORAL",
    }
)


def fixes(data: ShiftData) -> Figure:
    """Gain of each fix over the source's head; those that see target labels stand apart."""
    targets = data.having("fixes", "shift.json has no fixes")
    shown = [[row for row in t["fixes"] if row["name"] != "source_only"] for t in targets]
    if not any(shown):
        raise NothingToDrawError("no fix but the source's own head was tried")
    count, columns = -(-len(targets) // 2), min(len(targets), 2)
    figure = new_figure(
        0.6 + count * (0.5 + _ROW * (1 + max(map(len, shown)))), 1.6 + 2.8 * columns
    )
    panels = list(figure.subplots(count, columns, squeeze=False, sharey=True).flat)
    for axes in panels[len(targets) :]:
        axes.set_visible(False)
    for axes, target, rows in zip(panels, targets, shown, strict=False):
        _fix_panel(axes, rows)
        base = next((row for row in target["fixes"] if row["name"] == "source_only"), None)
        axes.set_title(
            target["target"] + (f", from {100 * base['accuracy']:.1f} %" if base else "")
        )
    figure.suptitle("Fixes: gain in accuracy over the source's head", x=0.01, ha="left")
    figure.supxlabel("points of accuracy gained, with 95 % interval", fontsize=8)
    return figure


def _fix_panel(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    blind = [row for row in rows if not row["uses_target_labels"]]
    seeing = [row for row in rows if row["uses_target_labels"]]
    # One empty row between the blocks holds the heading of the second.
    heights = [*range(len(blind)), *range(len(blind) + 1, len(rows) + 1)]
    axes.axvline(0, color=GREY, linewidth=0.8)
    for height, row in zip(heights, [*blind, *seeing], strict=True):
        shade = ORANGE if row["uses_target_labels"] else BLUE
        low, middle, high = (100 * row["difference"][k] for k in ("low", "estimate", "high"))
        axes.plot([low, high], [height, height], color=shade, linewidth=1.2)
        axes.plot([middle], [height], "s" if row["uses_target_labels"] else "o", color=shade, ms=4)
    if seeing:
        axes.axhspan(len(blind) - 0.4, len(rows) + 0.6, color="#F6F0E4", zorder=0, linewidth=0)
        axes.text(
            0.02,
            len(blind),
            "uses target labels",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=SMALL,
            color=INK,
            fontstyle="italic",
            path_effects=[HALO],
        )
    axes.set_yticks(heights, [_words(row["name"]) for row in [*blind, *seeing]])
    axes.set_ylim(len(rows) + (0.6 if seeing else -0.4), -0.6)
    axes.tick_params(axis="y", length=0)
    grid(axes)


def forecast(data: ShiftData) -> Figure:
    """Accuracy foretold without labels, beside the accuracy that the labels show."""
    targets = data.having("forecast", "shift.json has no forecast", blind=True)
    truth = {t["target"]: data.side(t["target"]) for t in data.targets}
    rows = max(len(target["forecast"]["accuracy"]) for target in targets)
    count, columns = -(-len(targets) // 2), min(len(targets), 2)
    figure = new_figure(0.6 + count * (0.6 + _ROW * (rows + 2)), 1.6 + 2.8 * columns)
    panels = list(figure.subplots(count, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in panels[len(targets) :]:
        axes.set_visible(False)
    drawn = list(zip(panels, targets, strict=False))
    bands = [_forecast_panel(axes, t["forecast"], truth.get(t["target"])) for axes, t in drawn]
    for (axes, target), of_panel in zip(drawn, bands, strict=True):
        # Below each band: once all panels are there, and the limits that they share.
        for row, band in enumerate(of_panel):
            _name_band(axes, len(target["forecast"]["accuracy"]) + row, band)
        axes.set_title(target["target"], pad=14)
        axes.tick_params(axis="x", labelbottom=True)
    figure.suptitle(
        "Accuracy foretold without labels, and the truth where it is known", x=0.01, ha="left"
    )
    figure.supxlabel(
        "accuracy with 95 % intervals",
        fontsize=8,
    )
    return figure


@dataclass(frozen=True, kw_only=True)
class _Band:
    """A band that is drawn: what it is, and a place in it; ``lined`` if a line stands there."""

    text: str
    x: float
    colour: str
    lined: bool = False


def _name_band(axes: Axes, height: float, band: _Band) -> None:
    """Write what a band is into it, beside its line, inwards where it lies near an edge."""
    left, right = axes.get_xlim()
    share = (band.x - left) / (right - left)
    if _NEAR < share < 1 - _NEAR and not band.lined:
        side, offset = "center", 0
    else:
        side, offset = ("left", 4) if share < 1 / 2 else ("right", -4)
    axes.annotate(
        band.text,
        (band.x, height),
        xytext=(offset, 0),
        textcoords="offset points",
        ha=side,
        va="center",
        color=band.colour,
        fontsize=SMALL,
        path_effects=[HALO],
    )


def _draw_truth(axes: Axes, there: Side) -> _Band:
    right = there.proba.argmax(axis=1) == there.label
    true = rate(
        right, there.patient, partial(draw_patients, there.patient, np.random.default_rng(0))
    )
    axes.axvspan(true.low, true.high, color=PALE, alpha=0.7, linewidth=0)
    axes.axvline(true.estimate, color=VERMILION, linewidth=1.3)
    axes.annotate(
        f"true {true.estimate:.3f}",
        (true.estimate, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=VERMILION,
        fontsize=SMALL,
    )
    return _Band(text="grey: 95 % interval of the truth", x=true.estimate, colour=INK, lined=True)


def _forecast_panel(axes: Axes, found: Mapping[str, Any], there: Side | None) -> tuple[_Band, ...]:
    """Draw, and return the bands; there is no truth to draw of a target without labels."""
    axes.axvspan(found["low"], found["high"], color=SKY, alpha=0.18, linewidth=0)
    middle = (found["low"] + found["high"]) / 2
    bands = [_Band(text="blue: range of the estimates", x=middle, colour=BLUE)]
    if there is not None:
        bands.append(_draw_truth(axes, there))
    heights = np.arange(len(found["accuracy"]))
    for height, value in zip(heights, found["accuracy"].values(), strict=True):
        if value["low"] is not None and value["high"] is not None:
            axes.plot([value["low"], value["high"]], [height, height], color=BLUE, linewidth=1.2)
        axes.plot([value["estimate"]], [height], "o", color=BLUE, markersize=4)
    axes.set_yticks(heights, [_words(name) for name in found["accuracy"]])
    axes.set_ylim(len(heights) + 1.6, -0.6)
    axes.tick_params(axis="y", length=0)
    grid(axes)
    return tuple(bands)


def _words(name: str) -> str:
    """``k_shot(5)`` as ``5 labels a class``; other names in words."""
    if name.startswith("k_shot(") and name.endswith(")"):
        return f"{name[7:-1]} labels a class"
    return _WORDS.get(name, name.replace("_", " "))
