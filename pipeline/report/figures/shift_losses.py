"""Figures of what a loss is made of: Ng's table as steps, and stacks of terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.figures.shift_data import ShiftData
from pipeline.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SMALL,
    VERMILION,
    grid,
    new_figure,
)
from pipeline.shift.error_table import CHAIN, TRANSFER

_ROW = 0.24
#: Errors in the order in which a step leads from one to the next.
_ROLES = ("human", "s_fit", "s_traindev", "t_test")
_WORDS: Mapping[str, str] = {
    "human": "a person, source",
    "s_fit": "source, fitted images",
    "s_traindev": "source, other patients",
    "t_test": "target",
    "avoidable_bias": "avoidable bias",
    "variance": "variance",
    "mismatch": "mismatch",
    "target_hardness": "target is harder",
    "transfer_gap": "does not transfer",
    "mix": "class mix",
    "rate": "errors within classes",
    "confidence_shift": "other scores",
    "y_given_score": "a score means less",
    "transfer": "threshold",
    "discrimination": "discrimination",
}
#: (title, where in the decomposition its terms are).
_VIEWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("by class (Kitagawa)", ("kitagawa",)),
    ("by threshold", ("threshold", "terms")),
    ("by score", ("score", "terms")),
)
_TERMS = (BLUE, ORANGE, GREEN)


def waterfall(data: ShiftData) -> Figure:
    """Ng's table as steps from the error on fitted images to that on the target."""
    targets = data.having("ng", "shift.json has no Ng table")
    names = _lines(targets)
    rows, columns = -(-len(targets) // 2), min(len(targets), 2)
    figure = new_figure(0.6 + rows * (0.5 + len(names) * _ROW), 1.7 + 2.75 * columns)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(targets) :]:
        axes.set_visible(False)
    for number, (axes, target) in enumerate(zip(panels, targets, strict=False)):
        _waterfall_panel(axes, target, names, named=number % columns == 0)
        axes.set_title(target["target"])
    figure.suptitle("Error by role, and the steps between (Ng's table)", x=0.01, ha="left")
    again = any(gap.get("ci_retrain") for target in targets for gap in target["gaps"].values())
    dotted = " of patients, dotted: of refitted heads" if again else ""
    figure.supxlabel(f"error, % of images; lines: 95 % intervals{dotted}", fontsize=8)
    return figure


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One bar: a role's error from 0, or a step from one error to the next; in percent."""

    name: str
    start: float
    width: float
    low: float
    high: float
    colour: str
    retrain: tuple[float, float] | None = None

    @property
    def end(self) -> float:
        return self.start + self.width

    @property
    def is_role(self) -> bool:
        return self.name in _ROLES


def _lines(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the lines from above, the same for all panels; what nobody knows comes last."""
    known = {step.name for target in targets for step in _steps(target)}
    chain = [name for role in _ROLES for name in (role, *_from(role))]
    unknown = [name for target in targets for name in target.get("not_identifiable", ())]
    listed = [name for name in (*chain, *TRANSFER) if name in known]
    return list(dict.fromkeys([*listed, *unknown]))


def _from(role: str) -> list[str]:
    return [step for step, (_, start) in CHAIN.items() if start == role]


def _steps(target: Mapping[str, Any]) -> list[_Step]:
    """Bars from above: each known error with the step that leads to the next, then the parts."""
    errors = {role: target["ng"][role] for role in _ROLES if target["ng"].get(role) is not None}
    gaps = target["gaps"]
    steps: list[_Step] = []
    for role, value in errors.items():
        steps.append(_of_role(role, value))
        steps += [_of_gap(step, steps[-1].end, gaps[step]) for step in _from(role) if step in gaps]
    level = 100 * errors["s_traindev"]["estimate"]
    for step in TRANSFER:
        if step in gaps:
            steps.append(_of_gap(step, level, gaps[step], PURPLE))
            level = steps[-1].end
    return steps


def _of_role(name: str, value: Any) -> _Step:
    # A person's error is given as a number, without an interval.
    known = (
        value if isinstance(value, Mapping) else dict.fromkeys(("estimate", "low", "high"), value)
    )
    width, low, high = (100 * known[key] for key in ("estimate", "low", "high"))
    return _Step(name=name, start=0.0, width=width, low=low, high=high, colour=GREY)


def _of_gap(name: str, start: float, gap: Mapping[str, Any], shade: str | None = None) -> _Step:
    low, high = (start + 100 * bound for bound in gap["ci_sampling"])
    retrain = gap.get("ci_retrain")
    return _Step(
        name=name,
        start=start,
        width=100 * gap["est"],
        low=low,
        high=high,
        colour=shade or (VERMILION if gap["est"] >= 0 else GREEN),
        retrain=retrain and (start + 100 * retrain[0], start + 100 * retrain[1]),
    )


def _waterfall_panel(
    axes: Axes, target: Mapping[str, Any], names: Sequence[str], *, named: bool
) -> None:
    steps = _steps(target)
    heights = dict(zip(names, range(len(names) - 1, -1, -1), strict=True))
    for step in steps:
        _draw_step(axes, heights[step.name], step)
    for step, after in pairwise(steps):
        if after.name not in TRANSFER:
            ends = [heights[step.name] - 0.31, heights[after.name] + 0.31]
            axes.plot([step.end] * 2, ends, color=GREY, linewidth=0.5)
    for name in target.get("not_identifiable", ()):
        axes.annotate(
            "not identifiable",
            (0, heights[name]),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=GREY,
            fontsize=SMALL,
        )
    words = [_WORDS.get(name, name) for name in names]
    axes.set_yticks(list(heights.values()), words if named else [])
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.16)
    axes.set_ylim(-0.6, len(heights) - 0.4)
    axes.axvline(0, color=GREY, linewidth=0.6)
    grid(axes)


def _draw_step(axes: Axes, height: float, step: _Step) -> None:
    axes.barh(height, step.width, left=step.start, height=0.62, color=step.colour)
    axes.plot([step.low, step.high], [height + 0.08] * 2, color=INK, linewidth=0.9)
    ends = [step.low, step.high, step.start, step.end]
    if step.retrain:
        axes.plot(step.retrain, [height - 0.14] * 2, color=INK, linewidth=0.9, linestyle=":")
        ends += step.retrain
    axes.annotate(
        f"{step.width:.1f}" if step.is_role else f"{step.width:+.1f}",
        (max(ends), height),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
    )


def stacks(data: ShiftData) -> Figure:
    """The same loss seen in several ways: each bar's terms add up to it."""
    targets = data.having("decomposition", "shift.json has no decomposition")
    figure = new_figure(0.55 + len(targets) * (0.55 + 0.46 * len(_VIEWS)))
    panels = figure.subplots(len(targets), 1, squeeze=False)[:, 0]
    for axes, target in zip(panels, targets, strict=True):
        _stack_panel(axes, target["decomposition"])
        total = 100 * target["decomposition"]["total"]["estimate"]
        axes.set_title(f"{target['target']}: {total:+.1f} points of error")
    figure.suptitle("What the loss is made of: five views of one gap", x=0.01, ha="left")
    panels[-1].set_xlabel("points of error, target less source; grey line: the whole loss")
    return figure


def _stack_panel(axes: Axes, parts: Mapping[str, Any]) -> None:
    total = 100 * parts["total"]["estimate"]
    axes.axvline(total, color=GREY, linewidth=0.9, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.6)
    heights = np.arange(len(_VIEWS))[::-1]
    left = min(0.0, total)
    for height, (_, path) in zip(heights, _VIEWS, strict=True):
        terms, reason = _terms(parts, path)
        if reason:
            axes.annotate(
                reason,
                (left, height),
                xytext=(2, 0),
                textcoords="offset points",
                color=GREY,
                va="center",
                fontsize=SMALL,
            )
            continue
        ends = {True: 0.0, False: 0.0}
        for shade, term in zip(_TERMS, terms.values(), strict=False):
            width = 100 * term["estimate"]
            side = width >= 0
            axes.barh(height - 0.14, width, left=ends[side], height=0.4, color=shade)
            ends[side] += width
    axes.set_yticks(heights, [title for title, _ in _VIEWS])
    axes.set_ylim(-0.6, len(_VIEWS) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.04)
    grid(axes)
    for height, (_, path) in zip(heights, _VIEWS, strict=True):
        _write_terms(axes, (left, height + 0.24), _terms(parts, path)[0])


def _terms(parts: Mapping[str, Any], path: Sequence[str]) -> tuple[Mapping[str, Any], str]:
    """The terms of a view, or why there are none."""
    found: Any = parts
    for key in path:
        if found is None:
            break
        if found.get("refused"):
            return {}, f"refused: {found['refused']}"
        found = found.get(key)
    return (found, "") if found else ({}, "not defined here")


def _write_terms(axes: Axes, start: tuple[float, float], terms: Mapping[str, Any]) -> None:
    """All on one line, each in its bar's colour, one after the other."""
    last: Any = axes.annotate("", start, va="center", fontsize=6.5)
    for shade, (name, term) in zip(_TERMS, terms.items(), strict=False):
        text = f"{_WORDS.get(name, name)} {100 * term['estimate']:+.1f}"
        first = last.get_text() == ""
        last = axes.annotate(
            text,
            start if first else (1, 0.5),
            xycoords="data" if first else last,
            xytext=(2 if first else 8, 0),
            textcoords="offset points",
            va="center",
            color=shade,
            fontsize=6.5,
            weight="bold",
        )
        last.set_in_layout(False)
