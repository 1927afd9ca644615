"""Figures of stage 4: the gap between the source and each target, taken apart."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from matplotlib.figure import Figure

from pipeline.report.figures.album import FOLDER, draw_album
from pipeline.report.figures.shift_data import ShiftData, read_shift
from pipeline.report.figures.shift_gains import fixes, forecast
from pipeline.report.figures.shift_losses import stacks, waterfall
from pipeline.report.figures.shift_scores import densities, feature_map, nulls, reliability, roc
from pipeline.report.figures.shift_subgroups import subgroups

#: To add a figure of stage 4: a function of its data, and one line here.
FIGURES: Mapping[str, Callable[[ShiftData], Figure]] = MappingProxyType(
    {
        "shift-waterfall": waterfall,
        "shift-stacks": stacks,
        "shift-null": nulls,
        "shift-map": feature_map,
        "shift-scores": densities,
        "shift-reliability": reliability,
        "shift-roc": roc,
        "shift-forecast": forecast,
        "shift-fixes": fixes,
        "shift-subgroups": subgroups,
    }
)


def draw(results: Path) -> list[Path]:
    """Draw all figures of ``results/<study>/shift.json`` and the probabilities beside it.

    Returns:
        The files written, in ``results/<study>/figures``.

    Raises:
        MissingPredictionsError: Stage 4 has not been run.
    """
    return [
        path
        for data in read_shift(results)
        for path in draw_album(results / FOLDER, FIGURES, data, data.backbone)
    ]
