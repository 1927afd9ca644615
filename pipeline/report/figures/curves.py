"""Curves: learning curves by epoch; of the best head ROC, net benefit and confusion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.evaluation.compare_heads import THRESHOLDS, head_of_entry, net_benefit
from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    SHADES,
    VERMILION,
    colour,
    dash,
    grid,
    legend_below,
    new_figure,
    panels,
    shortened,
)
from pipeline.words import printable

_KINDS = ("loss", "accuracy")
_SPLITS = (("fit", BLUE), ("validation", VERMILION))
#: Beyond this many classes a cell is too small for its count.
_COUNTED = 12
#: Labels ``(n,)`` and probabilities ``(n, K)``.
Scored = tuple[NDArray[np.int64], NDArray[np.float64]]
#: Of a line: ``x`` and ``y`` of shape ``(m,)``, its text below, points to mark.
_Curve = tuple[NDArray[np.float64], NDArray[np.float64], str, Sequence[tuple[float, float]]]


def _of_best(results: Results) -> tuple[str, dict[str, Scored]]:
    """The head that is best on validation, and its probabilities in each domain."""
    best = head_of_entry(results.of_backbone)
    if best == "prior":
        raise NothingToDrawError("the prior looks at no image")
    stored = results.predictions
    if stored is None:
        raise NothingToDrawError(f"no probabilities of {results.backbone} are stored")
    (proba,) = [values for (name, _), values in stored.proba.items() if name == best]
    scored = {}
    for table in results.tables("heads"):
        rows = (stored.domain == table.about["domain"]) & (stored.split == table.about["role"])
        if rows.any():
            scored[table.title.split(":")[0]] = stored.label[rows], proba[rows]
    return best, scored


def roc(results: Results) -> Figure:
    """ROC of the best head by domain, of each of more than two classes; beside it reliability."""
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
    legend = 0.15 * max(map(len, squares.values()))
    figure, cells = panels(len(squares), height=2.6 + legend, extra=0.45, width=2.4)
    for axes, (title, curves) in zip(cells, squares.items(), strict=True):
        _draw_square(axes, title, curves)
    figure.suptitle(f"ROC and reliability of {printable(best)}", x=0.01, ha="left")
    return figure


def _roc(positive: NDArray[np.bool_], score: NDArray[Any], name: str) -> _Curve:
    if positive.all() or not positive.any():
        return np.empty(0), np.empty(0), f"{name}: one class only", ()
    false, true = _rates(positive, score)
    chosen = score > 1 / 2
    mark = (float(chosen[~positive].mean()), float(chosen[positive].mean()))
    return false, true, f"{np.diff(false) @ (true[1:] + true[:-1]) / 2:.3f}  {name}", [mark]


def _rates(
    positive: NDArray[np.bool_], score: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of the negative and of the positive images that each threshold calls positive.

    scikit-learn's ``roc_curve``, whose import would take as long as drawing all figures.
    """
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # of each score
    true = np.r_[0, np.cumsum(positive[order])[last]]
    false = np.r_[0, last + 1] - true
    return false / false[-1], true / true[-1]


def _reliability(scored: Scored, name: str) -> _Curve:
    """CORP reliability (Dimitriadis 2021): the monotone curve that recalibration would follow.

    The event is the second of two classes, else that the prediction is right.
    """
    from scipy.optimize import isotonic_regression  # late: a third of a second to import

    label, proba = scored
    binary = proba.shape[1] == 2
    event, p = (label == 1, proba[:, 1]) if binary else (proba.argmax(1) == label, proba.max(1))
    values, place, images = np.unique(p, return_inverse=True, return_counts=True)
    observed = np.bincount(place, weights=event) / images
    return values, isotonic_regression(observed, weights=images).x, name, ()


def _draw_square(axes: Axes, title: str, curves: Sequence[_Curve]) -> None:
    """Shares against shares, with the diagonal; names below, where they cover no curve."""
    for k, (x, y, text, marks) in enumerate(curves):
        look: dict[str, Any] = {"color": colour(k), "linestyle": dash(k), "linewidth": 1.1}
        axes.plot(x, y, label=shortened(text), **look)
        for mark in marks:
            axes.plot(*mark, "o", color=colour(k), markersize=5, mec="white", mew=0.6)
    is_roc = title.startswith("ROC")
    names = ("1 - specificity", "sensitivity") if is_roc else ("predicted", "observed")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, zorder=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=names[0], ylabel=names[1])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_title(shortened(title, 30))
    axes.set_box_aspect(1)
    legend_below(axes)


def benefit(results: Results) -> Figure:
    """Net benefit of the best head by threshold in each domain; marks where the table has it."""
    if len(results.classes) > 2:
        raise NothingToDrawError("net benefit is of two classes")
    best, scored = _of_best(results)
    figure, cells = panels(len(scored), height=3.0)
    for axes, (domain, (label, proba)) in zip(cells, scored.items(), strict=True):
        _decision_curves(axes, label, {best: proba[:, 1], "treat all": np.ones(len(label))})
        axes.set_title(shortened(domain, 30))
    event = printable(results.classes[1])
    figure.suptitle(f"Net benefit of {printable(best)}; positive: {event}", x=0.01, ha="left")
    return figure


def _decision_curves(
    axes: Axes, label: NDArray[np.int64], positive: Mapping[str, NDArray[np.floating]]
) -> None:
    for k, (name, value) in enumerate(positive.items()):
        steps = np.linspace(0.01, 0.7, 70)
        look: dict[str, Any] = {"color": GREY if k else colour(0), "linewidth": 1.1}
        axes.plot(steps, [net_benefit(label, value, t) for t in steps], label=name, **look)
        marks = [net_benefit(label, value, t) for t in THRESHOLDS]
        axes.plot(THRESHOLDS, marks, "o", color=look["color"], markersize=3)
    axes.axhline(0, color=GREY, linestyle=":", linewidth=1.1, label="treat nobody")
    most = max(0.01, float((label == 1).mean()))
    axes.set(xlim=(0, 0.7), ylim=(-0.2 * most, 1.05 * most))
    axes.set(xlabel="treated from this probability on", ylabel="net benefit")
    legend_below(axes)


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
    counts = np.bincount(label * K + proba.argmax(axis=1), minlength=K * K).reshape(K, K)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREY)
    for i, j in np.argwhere(counts) if K <= _COUNTED else ():
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=6.5)


# Learning curves.


def heads(results: Results) -> Figure:
    """Curves of heads that train in epochs, of their first seed."""
    heads = results.of_backbone["heads"]
    return _learning_curves({head["head"]: head["curves"] for head in heads if head["curves"]})


def finetune(results: Results) -> Figure:
    """Curves of the first seed of each method that trains; fit with dropout, as it was trained."""
    names = [f"{split}_{kind}" for split, _ in _SPLITS for kind in _KINDS]
    runs = {
        model["method"]: {name: [epoch.get(name) for epoch in model["curves"]] for name in names}
        for model in reversed(results.of_backbone["models"])
        if model["curves"]
    }
    return _learning_curves(dict(reversed(runs.items())))


def _learning_curves(runs: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Figure:
    """A row of two panels for each model, of values by epoch under ``fit_loss`` and so on."""
    if not runs:
        raise NothingToDrawError("there are no curves by epoch")
    figure = new_figure(0.4 + (2.0 if len(runs) < 3 else 1.5) * len(runs))
    cells = figure.subplots(len(runs), len(_KINDS), squeeze=False)
    for row, (title, run) in zip(cells, runs.items(), strict=True):
        row[0].set_title(printable(title))
        for axes, kind in zip(row, _KINDS, strict=True):
            _draw_curves(axes, run, kind)
    for axes in cells[-1]:
        axes.set_xlabel("epoch")
    cells[0][0].legend(frameon=False)
    figure.suptitle("Learning curves", x=0.01, ha="left")
    return figure


def _draw_curves(axes: Axes, run: Mapping[str, Sequence[float | None]], kind: str) -> None:
    last = 1
    for split, shade in _SPLITS:
        values = [value for value in run.get(f"{split}_{kind}", ()) if value is not None]
        look = "o-" if len(values) == 1 else "-"  # one epoch alone is a point
        axes.plot(range(1, len(values) + 1), values, look, color=shade, label=split)
        last = max(last, len(values))
    axes.set_ylabel(kind)
    # Epochs are whole and counted from 1, also where there is only one.
    ticks = MaxNLocator(6, integer=True, min_n_ticks=1).tick_values(1, last)
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= last and tick % 1 == 0])
    grid(axes, "y")
