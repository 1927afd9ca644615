"""Figures of what a loss is made of: Ng's table as steps, and stacks of terms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.figures.shift_data import ShiftData
from pipeline.figures.style import (
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
from pipeline.shift.ng import CHAIN, TRANSFER

_ROW = 0.24
#: Errors in the order in which a step leads from one to the next.
_ROLES = ("human", "s_fit", "s_traindev", "t_dev", "t_test")
_WORDS: Mapping[str, str] = {
    "human": "a person, source",
    "s_fit": "source, fitted images",
    "s_traindev": "source, other patients",
    "t_dev": "target, looked at",
    "t_test": "target",
    "avoidable_bias": "avoidable bias",
    "variance": "variance",
    "mismatch": "mismatch",
    "dev_overfit": "overfit to target dev",
    "target_hardness": "target is harder",
    "transfer_gap": "does not transfer",
    "mix": "class mix",
    "rate": "errors within classes",
    "confidence_shift": "other scores",
    "y_given_score": "a score means less",
    "transfer": "threshold",
    "discrimination": "discrimination",
    "x_to_shared": "source outside the overlap",
    "y_given_x": "Y given X",
    "shared_to_target": "target outside the overlap",
}
#: (title, where in the decomposition its terms are).
_VIEWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("by class (Kitagawa)", ("kitagawa",)),
    ("by threshold", ("threshold", "terms")),
    ("by score", ("score", "terms")),
    ("DISDE on the score", ("disde", "score", "terms")),
    ("DISDE on 8 components", ("disde", "pca", "terms")),
)
_TERMS = (BLUE, ORANGE, GREEN)


def waterfall(data: ShiftData) -> Figure:
    """Ng's table as steps from the error on fitted images to that on the target."""
    targets = data.having("ng", "shift.json has no Ng table")
    rows = max(len(_steps(target["ng"])) for target in targets)
    figure = new_figure(0.75 + rows * _ROW + 0.3, 1.7 + 2.75 * min(len(targets), 2))
    count = -(-len(targets) // 2)
    if count > 1:
        figure.set_figheight(0.5 + count * (0.55 + rows * _ROW))
    panels = list(figure.subplots(count, min(len(targets), 2), squeeze=False).flat)
    for axes in panels[len(targets) :]:
        axes.set_visible(False)
    for number, (axes, target) in enumerate(zip(panels, targets, strict=False)):
        _waterfall_panel(axes, target["ng"], named=number % 2 == 0)
        axes.set_title(target["target"])
    figure.suptitle("Error by role, and the steps between (Ng's table)", x=0.01, ha="left")
    figure.supxlabel("error, % of images; whiskers: 95 % intervals", fontsize=8)
    return figure


def _steps(ng: Mapping[str, Any]) -> list[tuple[str, float, float, Mapping[str, Any], str]]:
    """(name, from, to, value with its interval, colour) of each bar, top to bottom."""
    errors, chain = ng["errors"], ng["chain"]
    steps: list[tuple[str, float, float, Mapping[str, Any], str]] = []
    known = [role for role in _ROLES if role in errors]
    for role, name in zip(known, [*known[1:], None], strict=True):
        value = errors[role]
        steps.append((role, 0.0, value["estimate"], value, GREY))
        for step, (_, start) in CHAIN.items():
            if start == role and step in chain and name is not None:
                gap = chain[step]
                level = value["estimate"]
                shade = VERMILION if gap["estimate"] >= 0 else GREEN
                steps.append((step, level, level + gap["estimate"], gap, shade))
    level = errors["s_traindev"]["estimate"]
    for step in TRANSFER:
        if step in ng["transfer"]:
            gap = ng["transfer"][step]
            steps.append((step, level, level + gap["estimate"], gap, PURPLE))
            level += gap["estimate"]
    return steps


def _waterfall_panel(axes: Axes, ng: Mapping[str, Any], *, named: bool) -> None:
    steps = _steps(ng)
    heights = np.arange(len(steps))[::-1]
    for height, (name, start, end, value, shade) in zip(heights, steps, strict=True):
        axes.barh(height, 100 * (end - start), left=100 * start, height=0.62, color=shade)
        offset = start if name in {*CHAIN, *TRANSFER} else 0.0
        low, high = (100 * (offset + value[bound]) for bound in ("low", "high"))
        axes.plot([low, high], [height, height], color=INK, linewidth=0.9)
        sign = "+" if name in {*CHAIN, *TRANSFER} else ""
        axes.annotate(
            f"{100 * value['estimate']:{sign}.1f}",
            (max(low, high, 100 * end, 100 * start), height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
        )
    for above, below in zip(range(len(steps)), range(1, len(steps)), strict=False):
        edge = 100 * steps[above][2]
        if steps[below][0] not in TRANSFER:
            axes.plot(
                [edge] * 2, [heights[above] - 0.31, heights[below] + 0.31], color=GREY, lw=0.5
            )
    axes.set_yticks(heights, [_WORDS[step[0]] for step in steps] if named else [])
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.16)
    axes.axvline(0, color=GREY, linewidth=0.6)
    grid(axes)


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
