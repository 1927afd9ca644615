"""Figure of the subgroups: every metric in every group, at home and at each target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures.labels import HALO
from pipeline.report.figures.shift_data import ShiftData
from pipeline.report.figures.style import (
    GREY,
    INK,
    MARKERS,
    SMALL,
    NotAskedForError,
    NothingToDrawError,
    colour,
    grid,
    new_figure,
    settle,
)
from pipeline.report.shift_subgroups import METRICS
from pipeline.study import SOURCE
from pipeline.words import printable

_LINE, _GAP = 0.13, 0.12  # inches: of one domain in a group, and between two groups
#: Characters of a name: what is more than the first is left out of its middle, each that is
#: more than the second widens the figure by so many inches.
_LONG, _SHORT, _CHARACTER = 56, 26, 0.055

Table = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One group of one attribute.

    Attributes:
        top: Height of its first domain, in lines from above.
        groups: By domain; a domain without the attribute is missing.
    """

    name: str
    top: float
    groups: Mapping[str, Mapping[str, Any]]


def subgroups(data: ShiftData) -> Figure:
    """A panel for each metric, a row for each group, a line in it for each domain."""
    tables = _by_domain(data)
    if not tables:
        raise NotAskedForError("the study looks at no [subgroups]")
    metrics = [name for name in METRICS if _has(tables, name)]
    if not metrics:
        raise NothingToDrawError("no subgroup is large enough to have numbers")
    domains = list(tables)
    headings, rows, lines = _rows(tables)
    longest = max(len(name) for name in (*(t for _, t in headings), *(r.name for r in rows)))
    names = 1.9 + _CHARACTER * max(0, longest - _SHORT)
    figure = new_figure(1.25 + _LINE * lines, names + 1.6 * len(metrics))
    panels = figure.subplots(
        1,
        1 + len(metrics),
        sharey=True,
        width_ratios=[0.3, *[1.0] * len(metrics)],
    )
    _counts(panels[0], rows, domains)
    panels[0].set_ylim(lines, 0)
    for axes, metric in zip(panels[1:], metrics, strict=True):
        _panel(axes, rows, domains, metric)
    _name(panels[0], headings, rows, len(domains))
    handles = [
        Line2D(
            [],
            [],
            color=colour(i),
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            label=_said(one),
        )
        for i, one in enumerate(domains)
    ]
    figure.legend(
        handles=handles,
        # The title of the figure: beside a legend outside, a suptitle has no room of its own.
        title="Subgroups: the source's head in each of them",
        title_fontproperties={"weight": "bold", "size": 9.5},
        alignment="left",
        loc="outside upper left",
        ncols=len(domains),
        frameon=False,
        labelcolor="linecolor",
        fontsize=8,
        borderpad=0.2,
    )
    figure.supxlabel(
        "95 % intervals by patient: thick, of the group alone; thin, of all groups of its "
        "attribute at once\na number: points against all other images, where shown to be below "
        "these; grey or no mark: too few",
        fontsize=SMALL,
    )
    settle(figure)
    for axes in panels[1:]:
        _make_room(axes)
    return figure


def _by_domain(data: ShiftData) -> dict[str, list[Table]]:
    """Tables of the source, then of each target by its name."""
    found: dict[str, list[Table]] = {}
    for target in data.targets:
        for table in target.get("subgroups", ()):
            name = SOURCE if table["domain"] == SOURCE else target["target"]
            known = found.setdefault(name, [])
            if all(table["attribute"] != other["attribute"] for other in known):
                known.append(table)
    return found


def _has(tables: Mapping[str, Sequence[Table]], metric: str) -> bool:
    every = (group for many in tables.values() for table in many for group in table["groups"])
    return any(metric in group["metrics"] for group in every)


def _rows(
    tables: Mapping[str, Sequence[Table]],
) -> tuple[list[tuple[float, str]], list[_Row], float]:
    """Headings with their heights, rows, and the height of all, in lines.

    All domains have the same groups in the same order.
    """
    headings, rows, at = [], [], 0.0
    first = next(iter(tables.values()))
    for attribute in (table["attribute"] for table in first):
        headings.append((at + 0.6, _name_of(attribute)))
        at += 1.5
        named = {
            domain: {group["name"]: group for group in table["groups"]}
            for domain, many in tables.items()
            for table in many
            if table["attribute"] == attribute
        }
        for name in next(iter(named.values())):
            groups = {domain: found[name] for domain, found in named.items()}
            if any(group["images"] for group in groups.values()):
                rows.append(_Row(name=_name_of(name), top=at + 0.5, groups=groups))
                at += len(tables) + _GAP / _LINE
    return headings, rows, at


def _name(axes: Axes, headings: Sequence[tuple[float, str]], rows: Sequence[_Row], n: int) -> None:
    """Names of groups in the middle of their lines, attributes above them in bold."""
    middles = [row.top + (n - 1) / 2 for row in rows]
    axes.set_yticks(
        [*middles, *(at for at, _ in headings)],
        [*(r.name for r in rows), *(t for _, t in headings)],
    )
    for tick in axes.get_yticklabels()[len(rows) :]:
        tick.set_fontweight("bold")
        tick.set_fontsize(8)


def _counts(axes: Axes, rows: Sequence[_Row], domains: Sequence[str]) -> None:
    """Images of each group and domain, grey where they are too few."""
    # To the right, above its numbers: it is wider than these, and would run into the next.
    axes.set_title("images").set(x=0.95, horizontalalignment="right")
    axes.set(xlim=(0, 1), xticks=[])
    axes.tick_params(axis="y", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for row in rows:
        for i, domain in enumerate(domains):
            group = row.groups.get(domain)
            if group and group["images"]:
                axes.text(
                    0.95,
                    row.top + i,
                    str(group["images"]),
                    ha="right",
                    va="center_baseline",
                    fontsize=SMALL - 0.5,
                    color=GREY if group["few"] else colour(i),
                )


def _panel(axes: Axes, rows: Sequence[_Row], domains: Sequence[str], metric: str) -> None:
    axes.set_title(METRICS[metric])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="y", length=0, labelleft=False)
    grid(axes)
    for row in rows:
        for i, domain in enumerate(domains):
            value = row.groups.get(domain, _NOTHING).get("metrics", _NOTHING).get(metric)
            if value:
                _mark(axes, value, row.top + i, i)


def _make_room(axes: Axes) -> None:
    """Widen to the left until no number that stands left of an interval crosses the axis.

    The layout must be settled: a number is as wide as it is, whatever the axis says.
    """
    frame, (low, high) = axes.get_window_extent(), axes.get_xlim()
    for text in axes.texts:
        anchor = axes.transData.transform(text.xy)[0]  # type: ignore[attr-defined]
        share = (anchor - text.get_window_extent().x0 + 3) / frame.width
        at = text.xy[0]  # type: ignore[attr-defined]
        low = min(low, round((at - share * high) / (1 - share), 6))
    axes.set_xlim(low, high)


def _mark(axes: Axes, value: Mapping[str, Any], height: float, series: int) -> None:
    shade = colour(series)
    if once := value["simultaneous"]:
        axes.plot(once, [height, height], color=shade, linewidth=0.6)
    axes.plot([value["low"], value["high"]], [height, height], color=shade, linewidth=1.8)
    axes.plot(
        [value["estimate"]], [height], MARKERS[series % len(MARKERS)], color=shade, markersize=3.6
    )
    if value["rest"] and value["rest"]["below"]:
        axes.annotate(
            f"{100 * value['rest']['estimate']:+.1f}".replace("-", "\u2212"),
            ((once or [value["low"]])[0], height),
            xytext=(-2, 0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            fontsize=SMALL - 0.5,
            fontweight="bold",
            color=INK,
            path_effects=[HALO],
        ).set_in_layout(False)


def _name_of(group: str) -> str:
    """Ends of a long name: what tells names apart stands there, and all of it in the tables."""
    name, half = printable(group), _LONG // 2
    short = len(name) <= _LONG
    return name if short else f"{name[:half].rstrip()} \u2026 {name[-half:].lstrip()}"


def _said(domain: str) -> str:
    return f"{domain}, out of fold" if domain == SOURCE else printable(domain)


_NOTHING: Mapping[str, Any] = MappingProxyType({})
