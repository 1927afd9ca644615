"""Learning curves by epoch."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import BLUE, VERMILION, grid, new_figure
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
