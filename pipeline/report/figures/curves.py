"""Figures of one head or network: ROC, net benefit, confusion, features, learning curves."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.evaluation.compare_heads import THRESHOLDS, net_benefit
from pipeline.evaluation.heads_record import head_of_entry
from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    MARKERS,
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
_SPLITS = (("fit", "training", BLUE), ("validation", "validation", VERMILION))
#: With more classes than this a cell is too small for its count.
_MOST_COUNTED_CLASSES = 12
#: Labels ``(n,)`` and probabilities ``(n, K)``.
_Scored = tuple[NDArray[np.int64], NDArray[np.float64]]
#: A line: ``x`` and ``y`` of shape ``(m,)``, its label, points to mark.
_Curve = tuple[NDArray[np.float64], NDArray[np.float64], str, Sequence[tuple[float, float]]]


def _best_head(results: Results) -> tuple[str, dict[str, _Scored]]:
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
    """ROC curves of the best head by domain (and class, if more than two), and reliability."""
    best, scored = _best_head(results)
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
    """Shares of negative and of positive images above each threshold, and the area below.

    Like scikit-learn's ``roc_curve``, whose import would take as long as drawing all figures.
    """
    if positive.all() or not positive.any():
        return np.empty(0), np.empty(0), f"{name}: one class only", ()
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # of each score
    true_positives = np.r_[0, np.cumsum(positive[order])[last]]
    false, true = (
        (np.r_[0, last + 1] - true_positives) / (~positive).sum(),
        true_positives / positive.sum(),
    )
    chosen = score > 1 / 2
    mark = (float(chosen[~positive].mean()), float(chosen[positive].mean()))
    return false, true, f"{np.diff(false) @ (true[1:] + true[:-1]) / 2:.3f}  {name}", [mark]


def _reliability(scored: _Scored, name: str) -> _Curve:
    """CORP reliability (Dimitriadis 2021): the monotone curve that recalibration would follow.

    The event is the second of two classes; with more classes, that the prediction is right.
    """
    from scipy.optimize import isotonic_regression  # late: a third of a second to import

    label, proba = scored
    binary = proba.shape[1] == 2
    event, p = (label == 1, proba[:, 1]) if binary else (proba.argmax(1) == label, proba.max(1))
    values, inverse, images = np.unique(p, return_inverse=True, return_counts=True)
    observed = np.bincount(inverse, weights=event) / images
    return values, isotonic_regression(observed, weights=images).x, name, ()


def _draw_square(axes: Axes, title: str, curves: Sequence[_Curve]) -> None:
    """Draw shares against shares, with the diagonal; the legend stands below the panel."""
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
    best, scored = _best_head(results)
    figure, cells = panels(len(scored), height=3.0)
    for axes, (domain, (label, proba)) in zip(cells, scored.items(), strict=True):
        positive = {best: proba[:, 1], "treat all": np.ones(len(label))}
        for shade, (name, value) in zip((colour(0), GREY), positive.items(), strict=True):
            steps = np.linspace(0.01, 0.7, 70)
            line = [net_benefit(label, value, t) for t in steps]
            axes.plot(steps, line, label=name, color=shade, linewidth=1.1)
            marks = [net_benefit(label, value, t) for t in THRESHOLDS]
            axes.plot(THRESHOLDS, marks, "o", color=shade, markersize=3)
        axes.axhline(0, color=GREY, linestyle=":", linewidth=1.1, label="treat nobody")
        most = max(0.01, float((label == 1).mean()))
        axes.set(xlim=(0, 0.7), ylim=(-0.2 * most, 1.05 * most))
        axes.set(xlabel="treated from this probability on", ylabel="net benefit")
        axes.set_title(shortened(domain, 30))
        legend_below(axes)
    event = printable(results.classes[1])
    figure.suptitle(f"Net benefit of {printable(best)}; positive: {event}", x=0.01, ha="left")
    return figure


def confusion(results: Results) -> Figure:
    """Counts of the best head in each domain, shaded by the share of the true class."""
    K = len(results.classes)
    if K == 2:
        raise NothingToDrawError("for two classes the ROC shows the same")
    best, scored = _best_head(results)
    figure, cells = panels(len(scored), height=0.9 + 0.22 * K, sharey=True)
    for axes, (domain, (label, proba)) in zip(cells, scored.items(), strict=True):
        counts = np.bincount(label * K + proba.argmax(axis=1), minlength=K * K).reshape(K, K)
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
        for spine in axes.spines.values():
            spine.set(visible=True, color=GREY)
        for i, j in np.argwhere(counts) if K <= _MOST_COUNTED_CLASSES else ():
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=6.5)
        axes.set_title(printable(domain))
        axes.set_yticks(range(K), results.classes)
        axes.set_xticks(range(K), results.classes, rotation=45, ha="right", rotation_mode="anchor")
    title = f"Images by true class (rows) and class predicted by {printable(best)}"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def feature_map(results: Results) -> Figure:
    """Images on two principal components; colours are domains, shades and markers are classes."""
    with h5py.File(BytesIO(results.file)) as file:
        curves = file[results.backbone].get("curves", {})
        maps = {
            target: {name: curves[target][name][()] for name in curves[target]}
            for target in (table.about["target"] for table in results.tables("shift_effects"))
            if "embedding" in curves.get(target, ())
        }
    if not maps:
        raise NothingToDrawError("no map of the features is stored")
    figure, cells = panels(len(maps), height=3.2)
    for axes, (target, arrays) in zip(cells, maps.items(), strict=True):
        axes.set_title(printable(target))
        x, y = arrays["embedding"].T
        in_target, label = arrays["embedding_target"].astype(bool), arrays["embedding_label"]
        for is_target, domain, hue in ((False, "source", BLUE), (True, "target", VERMILION)):
            for k, name in enumerate(results.classes):
                rows = (in_target == is_target) & (label == k)
                look: dict[str, Any] = {"color": _shade(hue, k, len(results.classes)), "mew": 0}
                look |= {"markersize": 2.4, "alpha": 0.7, "label": f"{domain}, {name}"}
                axes.plot(x[rows], y[rows], MARKERS[k % len(MARKERS)], **look)
        axes.set(xlabel="component 1", ylabel="component 2", xticks=[], yticks=[])
        legend_below(axes, gap=0.12, ncols=2, markerscale=2.0)
    figure.suptitle("Features on two principal components", x=0.01, ha="left")
    return figure


def _shade(hue: str, k: int, classes: int) -> tuple[float, ...]:
    """A shade of the colour, from pale for the first class to full for the last."""
    strength = 0.45 + 0.55 * k / max(1, classes - 1)
    return tuple(1 - strength * (1 - np.array(to_rgb(hue))))


# Learning curves.


def heads(results: Results) -> Figure:
    """Learning curves of the heads that train in epochs; first seed."""
    heads = results.of_backbone["heads"]
    return _learning_curves({head["head"]: head["curves"] for head in heads if head["curves"]})


def finetune(results: Results) -> Figure:
    """Learning curves of each method; first seed. Fit values are with dropout, as in training."""
    names = [f"{split}_{kind}" for split, *_ in _SPLITS for kind in _KINDS]
    runs: dict[str, dict[str, list[float | None]]] = {}
    for model in results.of_backbone["models"]:
        if curves := model["curves"]:
            values = {name: [epoch.get(name) for epoch in curves] for name in names}
            runs.setdefault(model["method"], values)
    return _learning_curves(runs)


def _learning_curves(runs: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Figure:
    """Two panels for each model: loss and accuracy by epoch, from ``fit_loss`` and so on."""
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
    for split, name, shade in _SPLITS:
        values = [value for value in run.get(f"{split}_{kind}", ()) if value is not None]
        look = "o-" if len(values) == 1 else "-"  # one epoch alone is a point
        axes.plot(range(1, len(values) + 1), values, look, color=shade, label=name)
        last = max(last, len(values))
    axes.set_ylabel(kind)
    # Epochs are whole and counted from 1, also where there is only one.
    ticks = MaxNLocator(6, integer=True, min_n_ticks=1).tick_values(1, last)
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= last and tick % 1 == 0])
    grid(axes, "y")
