"""Figures of stage 3: how methods of fine-tuning learned, what they cost, how they do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.data.patients import FIT
from pipeline.report.figures import curves, ranked
from pipeline.report.figures.album import FOLDER, draw_album
from pipeline.report.figures.curves import Run
from pipeline.report.figures.labels import Label, name_ends
from pipeline.report.figures.ranked import Entry, Where, place_name
from pipeline.report.figures.reports import read_report
from pipeline.report.figures.style import (
    GREY,
    INK,
    SMALL,
    NothingToDrawError,
    arrangement,
    colour,
    grid,
    new_figure,
)
from pipeline.study import SOURCE

#: Begins the names of the stage's files; a trial's goes on with what it left out.
COMPARISON = "comparison"
#: Stands for the backbone of networks that are trained from nothing.
_OWN = "pixels"


@dataclass(frozen=True, kw_only=True)
class FinetuneData:
    """Trained models of one backbone, and the networks of their own beside them.

    Attributes:
        rows: Values of ``comparison.json``, in its order.
    """

    backbone: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def entries(self) -> list[Entry]:
        """A model each, in the order of the file."""
        return [_entry(row, self._name(row)) for row in self.rows]

    @property
    def places(self) -> list[Where]:
        """Where models are judged, the fit split left out; the source first."""
        found = dict.fromkeys((d["domain"], d["role"]) for row in self.rows for d in row["domains"])
        return sorted((w for w in found if w[1] != FIT), key=lambda where: where[0] != SOURCE)

    def by_name(self, key: str) -> dict[str, Any]:
        """What rows have under a key, by the name of the model; empty values are left out."""
        return {self._name(row): row[key] for row in self.rows if row.get(key)}

    def _name(self, row: Mapping[str, Any]) -> str:
        many = sum(other["method"] == row["method"] for other in self.rows) > 1
        return f"{row['method']}, seed {row['seed']}" if many else str(row["method"])


def _entry(row: Mapping[str, Any], name: str) -> Entry:
    return Entry(
        head=row["method"],
        name=name,
        seed=row["seed"],
        seconds=row["seconds"] or 0.0,
        scores={
            ((d["domain"], d["role"]), metric): (score["value"], score["low"], score["high"])
            for d in row["domains"]
            for metric, score in d["metrics"].items()
        },
        seeds={},
    )


def read_comparison(file: Path) -> list[FinetuneData]:
    """By backbone, in the order of the file.

    Raises:
        MissingPredictionsError: Stage 3 has not been run.
    """
    report = read_report(file, "finetune")
    names = dict.fromkeys(row["backbone"] for row in report["rows"])
    pretrained = [name for name in names if name != _OWN]
    return [
        FinetuneData(
            backbone=name,
            rows=tuple(row for row in report["rows"] if row["backbone"] in (name, _OWN)),
        )
        for name in pretrained or names
    ]


def draw(results: Path) -> list[Path]:
    """Draw all figures of every ``comparison*.json`` of a study.

    A trial with fewer or smaller images has a file of its own, and figures of its own.

    Returns:
        The files written, in ``results/<study>/figures``.

    Raises:
        MissingPredictionsError: Stage 3 has not been run.
    """
    files = sorted(results.glob(f"{COMPARISON}*.json")) or [results / f"{COMPARISON}.json"]
    return [
        path
        for file in files
        for data in read_comparison(file)
        for path in draw_album(
            results / FOLDER, FIGURES, data, data.backbone + file.stem.removeprefix(COMPARISON)
        )
    ]


def learning_curves(data: FinetuneData) -> Figure:
    """Loss and accuracy by epoch of each method that trains."""
    return curves.learning_curves(
        {name: [_run(rows)] for name, rows in data.by_name("curves").items()},
        "Learning curves (fit: as it trained, with dropout)",
    )


def _run(rows: list[Mapping[str, Any]]) -> Run:
    """Rows by epoch turned into values by name; a name without values in all is left out."""
    names = [f"{side}_{kind}" for side in ("fit", "validation") for kind in ("loss", "accuracy")]
    return {
        name: [row[name] for row in rows]
        for name in names
        if all(row.get(name) is not None for row in rows)
    }


def accuracy_against_time(data: FinetuneData) -> Figure:
    """What the time to train buys at each place."""
    timed = [entry for entry in data.entries if entry.seconds > 0]
    title = "Accuracy against time to train (lp and last_block from the store)"
    return ranked.accuracy_against_time(timed, data.places, title)


def forest(data: FinetuneData) -> Figure:
    """Frozen and fine-tuned beside each other, in the order of their methods."""
    title = "Frozen (lp) against fine-tuned"
    return ranked.forest(data.entries, data.places, title)


def along_alpha(data: FinetuneData) -> Figure:
    """Accuracy on the straight line from the linear probe to the fine-tuned network."""
    mixed = data.by_name("mixed")
    if not mixed:
        raise NothingToDrawError("no method mixes weights (wise_ft has not been run)")
    rows, columns = arrangement(len(mixed))
    figure = new_figure(0.4 + 2.5 * rows, 1.5 + 2.6 * columns)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(mixed) :]:
        axes.set_visible(False)
    figure.suptitle("WiSE-FT: accuracy between probe and network", x=0.01, ha="left")
    named = []
    for axes, (name, found) in zip(panels, mixed.items(), strict=False):
        axes.set_title(name)
        named.append((axes, _alpha_panel(axes, found)))
    figure.draw_without_rendering()
    for axes, labels in named:
        name_ends(axes, labels, room=0.45)
    return figure


def _alpha_panel(axes: Axes, found: Mapping[str, Any]) -> list[Label]:
    lines: dict[Where, list[tuple[float, float]]] = {}
    for step in found["curve"]:
        for d in step["domains"]:
            lines.setdefault((d["domain"], d["role"]), []).append((step["alpha"], d["accuracy"]))
    labels = []
    for number, (where, points) in enumerate(lines.items()):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, "o-", color=colour(number), markersize=3)
        labels.append(Label(text=place_name(where), x=x[-1], y=y[-1], colour=colour(number)))
    axes.axvline(found["alpha"], color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.annotate(
        "chosen on validation",
        (found["alpha"], 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3 if found["alpha"] < 0.5 else -3, 4),
        textcoords="offset points",
        ha="left" if found["alpha"] < 0.5 else "right",
        color=INK,
        fontsize=SMALL,
    )
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [found["from"], "0.25", "0.5", "0.75", found["to"]])
    axes.set(xlabel="alpha", ylabel="accuracy")
    axes.margins(y=0.12)
    grid(axes, "y")
    return labels


#: To add a figure of stage 3: a function of its data, and one line here.
FIGURES: Mapping[str, Callable[[FinetuneData], Figure]] = MappingProxyType(
    {
        "finetune-forest": forest,
        "finetune-curves": learning_curves,
        "finetune-time": accuracy_against_time,
        "finetune-alpha": along_alpha,
    }
)
