"""Learning curves by epoch, and accuracy between two networks."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import BLUE, GREY, VERMILION, colour, grid, new_figure, panels
from pipeline.words import printable

_KINDS = ("loss", "accuracy")
_SPLITS = (("fit", BLUE), ("validation", VERMILION))


def heads(results: Results) -> Figure:
    """Curves of heads that train in epochs, of their first seed."""
    heads = results.of_backbone["heads"]
    return learning_curves({head["head"]: head["curves"] for head in heads if head["curves"]})


def finetune(results: Results) -> Figure:
    """Curves of the first seed of each method that trains; fit with dropout, as it was trained."""
    names = [f"{split}_{kind}" for split, _ in _SPLITS for kind in _KINDS]
    runs = {
        model["method"]: {name: [epoch.get(name) for epoch in model["curves"]] for name in names}
        for model in reversed(results.of_backbone["models"])
        if model["curves"]
    }
    return learning_curves(dict(reversed(runs.items())))


def learning_curves(runs: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Figure:
    """A row of two panels for each model.

    Args:
        runs: By title, values by epoch under ``fit_loss``, ``validation_accuracy`` and so on;
            a curve with a value that is None is left out.
    """
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


def alpha(results: Results) -> Figure:
    """Accuracy on the straight line from the linear probe to the fine-tuned network."""
    models = results.of_backbone["models"]
    between = {m["method"]: m["interpolated"] for m in models if m["interpolated"]}
    if not between:
        raise NothingToDrawError("no method interpolates weights")
    figure, cells = panels(len(between), height=2.4)
    for axes, (name, line) in zip(cells, between.items(), strict=True):
        by_domain: dict[str, dict[float, float]] = {}
        for step in line["curve"]:
            for d in step["domains"]:
                domain = d["domain"] if d["role"] == "target" else d["role"]
                by_domain.setdefault(domain, {})[step["alpha"]] = d["accuracy"]
        for number, (domain, values) in enumerate(by_domain.items()):
            x, y = zip(*sorted(values.items()), strict=True)
            axes.plot(x, y, "o-", color=colour(number), markersize=3, label=printable(domain))
        axes.axvline(line["alpha"], color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [line["from"], "0.25", "0.5", "0.75", line["to"]])
        axes.set(xlabel="alpha", ylabel="accuracy", title=printable(name))
        axes.legend(frameon=False)
        grid(axes, "y")
    figure.suptitle("WiSE-FT: accuracy between the probe and the network", x=0.01, ha="left")
    return figure
