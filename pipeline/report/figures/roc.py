"""Figures of the best head from the probability of each image: ROC, reliability, confusion."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import (
    GREY,
    SHADES,
    SMALL,
    arrangement,
    colour,
    dash,
    new_figure,
    panels,
)
from pipeline.words import printable

#: Beyond this many classes a cell is too small for its count.
_COUNTED = 12
_SIDE, _LINE = 2.55, 0.15
#: Labels ``(n,)`` and probabilities ``(n, K)``.
Scored = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """One line of a square: ``x`` and ``y`` of shape (m,), its text below, a point to mark."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    text: str
    mark: tuple[float, float] | None = None


def _of_best(results: Results) -> tuple[str, dict[str, Scored]]:
    """The head that is best on validation, and its probabilities in each domain.

    Raises:
        NothingToDrawError: They are not stored.
    """
    of_backbone = next(b for b in results.record["backbones"] if b["backbone"] == results.backbone)
    best = of_backbone["best"] or of_backbone["heads"][0]["head"]
    kept = results.predictions
    if kept is None:
        raise NothingToDrawError(f"no probabilities of {results.backbone} are stored")
    (proba,) = [values for (name, _), values in kept.proba.items() if name == best]
    scored = {}
    for table in results.tables("heads"):
        rows = (kept.domain == table.about["domain"]) & (kept.split == table.about["role"])
        if rows.any():
            scored[table.title.split(":")[0]] = kept.label[rows], proba[rows]
    return best, scored


def heads(results: Results) -> Figure:
    """ROC of the best head in each domain, of each class where there are more than two.

    Beside it the reliability of its probabilities.
    """
    best, scored = _of_best(results)
    squares: dict[str, list[_Curve]] = {}
    for domain, (label, proba) in scored.items():
        if len(results.classes) == 2:
            curve = _roc(label == 1, proba[:, 1], domain)
            squares.setdefault(f"ROC of {results.classes[1]}, with AUROC", []).append(curve)
        else:
            classes = enumerate(results.classes)
            squares[f"ROC, {domain}"] = [_roc(label == k, proba[:, k], n) for k, n in classes]
    squares["Reliability"] = [_reliability(rows, domain) for domain, rows in scored.items()]
    figure = _squares(squares)
    figure.suptitle(f"ROC and reliability of {printable(best)}", x=0.01, ha="left")
    return figure


def _roc(positive: NDArray[np.bool_], score: NDArray[Any], name: str) -> _Curve:
    if positive.all() or not positive.any():
        return _Curve(x=np.empty(0), y=np.empty(0), text=f"{name}: one class only")
    false, true, _ = roc_curve(positive, score)
    chosen = score > 1 / 2
    return _Curve(
        x=false,
        y=true,
        text=f"{roc_auc_score(positive, score):.3f}  {name}",
        mark=(float(chosen[~positive].mean()), float(chosen[positive].mean())),
    )


def _reliability(scored: Scored, name: str) -> _Curve:
    """CORP reliability (Dimitriadis 2021): the monotone curve that recalibration would follow.

    The event is the second of two classes, else that the prediction is right.
    """
    label, proba = scored
    binary = proba.shape[1] == 2
    event, p = (label == 1, proba[:, 1]) if binary else (proba.argmax(1) == label, proba.max(1))
    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, event)
    return _Curve(x=fit.X_thresholds_, y=fit.y_thresholds_, text=name)


def _squares(squares: Mapping[str, Sequence[_Curve]]) -> Figure:
    """Panels of shares, with the names of the curves below, where nothing can cover them."""
    rows, columns = arrangement(len(squares))
    lines = max(map(len, squares.values()))
    text = _LINE * lines + 0.05
    figure = new_figure(0.45 + rows * (_SIDE + text), 0.2 + 2.35 * columns)
    cells = figure.add_gridspec(2 * rows, columns, height_ratios=[_SIDE, text] * rows)
    for number, (title, curves) in enumerate(squares.items()):
        row, column = divmod(number, columns)
        axes = figure.add_subplot(cells[2 * row, column])
        below = figure.add_subplot(cells[2 * row + 1, column])
        _unit_square(axes, title)
        below.set_axis_off()
        below.set(xlim=(0, 1), ylim=(lines, 0))
        for k, curve in enumerate(curves):
            look: dict[str, Any] = {"color": colour(k), "linestyle": dash(k)}
            axes.plot(curve.x, curve.y, linewidth=1.1, **look)
            if curve.mark:
                axes.plot(*curve.mark, "o", color=colour(k), markersize=5, mec="white", mew=0.6)
            below.plot([0.0, 0.09], [k + 0.5] * 2, linewidth=1.6, **look)
            words = below.text(0.12, k + 0.5, printable(curve.text), va="center", fontsize=SMALL)
            words.set_in_layout(False)  # a long name must not shrink the panel above it
    return figure


def _unit_square(axes: Axes, title: str) -> None:
    """Both axes from 0 to 1, equally long, with the diagonal."""
    is_roc = title.startswith("ROC")
    names = ("1 - specificity", "sensitivity") if is_roc else ("predicted", "observed")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, zorder=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=names[0], ylabel=names[1])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_title(printable(title))
    axes.set_box_aspect(1)


def confusion(results: Results) -> Figure:
    """Counts of the best head in each domain, shaded by the share of the true class."""
    K = len(results.classes)
    if K == 2:
        raise NothingToDrawError("of two classes the ROC says the same")
    best, scored = _of_best(results)
    figure, cells = panels(len(scored), height=0.9 + 0.22 * K, sharey=True)
    for axes, (domain, rows) in zip(cells, scored.items(), strict=True):
        _matrix(axes, *rows, K)
        axes.set_title(printable(domain))
        axes.set_yticks(range(K), results.classes)
        axes.set_xticks(range(K), results.classes, rotation=45, ha="right", rotation_mode="anchor")
    title = f"Images by true class (rows) and class predicted by {printable(best)}"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _matrix(axes: Axes, label: NDArray[Any], proba: NDArray[Any], K: int) -> None:
    counts = confusion_matrix(label, proba.argmax(axis=1), labels=range(K))
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREY)
    for (i, j), count in _cells(counts) if K <= _COUNTED else ():
        axes.text(j, i, str(count), ha="center", va="center", fontsize=6.5)


def _cells(counts: NDArray[Any]) -> Iterator[tuple[tuple[int, ...], Any]]:
    return (cell for cell in np.ndenumerate(counts) if cell[1])
