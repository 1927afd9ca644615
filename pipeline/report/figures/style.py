"""The style of all figures, and PNG files that have the same bytes each time.

Figures are made without pyplot: the user's settings do not change our figures, and ours do not
change the user's.
"""

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pipeline.words import printable

#: Okabe and Ito's colours, which people with any kind of colour vision can distinguish. Yellow
#: is left out: it is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, VERMILION, GREEN, PURPLE, ORANGE, _ = COLOURS
#: Colours of texts; both have a contrast of more than 4.5 : 1 on white.
INK, GREY = "#222222", "#6B6B6B"
#: Line styles for series beyond the number of colours.
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
#: From white to blue, for shares.
SHADES = LinearSegmentedColormap.from_list("headrace", ["#FFFFFF", "#56A0D0"])

#: Inches: a page's text is about this wide.
WIDTH = 7.2
SMALL = 7.0
_SETTINGS = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": SMALL,
    "figure.titlesize": 9.5,
    "figure.titleweight": "bold",
    "lines.linewidth": 1.3,
    "text.color": INK,
    # Names come from users: a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "ytick.labelsize": SMALL,
    "savefig.dpi": 200.0,
}


def styled() -> Any:
    """A context in which our settings hold, whatever the user's are."""
    return mpl.style.context(_SETTINGS, after_reset=True)


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.06, h_pad=0.05, wspace=0.03, hspace=0.03)
    return figure


def png_of(make: Callable[..., Figure], *arguments: Any) -> bytes:
    """The figure that a function makes, as PNG. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    with styled():
        figure = make(*arguments)
        _fix_layout(figure)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _fix_layout(figure: Figure) -> None:
    """Fix the layout after one run: the solver's last bits may differ from run to run."""
    engine = figure.get_layout_engine()
    if engine is None or not figure.axes:
        return
    engine.execute(figure)
    figure.set_layout_engine(None)  # with "none", each file would be drawn once more before
    for axes in figure.axes:
        left, bottom, width, height = (round(float(x), 6) for x in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def colour(number: int) -> str:
    """Colour of series ``number``; colours repeat after six."""
    return COLOURS[number % len(COLOURS)]


def dash(number: int) -> Any:
    """Line style of series ``number``: solid until the colours repeat."""
    return _DASHES[number // len(COLOURS) % len(_DASHES)]


def grid(axes: Axes, axis: Any = "x") -> None:
    """Draw pale grid lines behind everything."""
    axes.grid(visible=True, axis=axis, color="#EBEBEB", linewidth=0.6)
    axes.set_axisbelow(True)


def legend_below(axes: Axes, gap: float = 0.2, **more: Any) -> None:
    """Put the legend below the panel; ``gap`` is a share of the panel's height."""
    position: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -gap)}
    axes.legend(frameon=False, **position, **more)


def shortened(name: str, most: int = 40) -> str:
    """A name with its middle cut out if it is too long to stand beside or below a panel."""
    text, half = printable(name), most // 2
    return text if len(text) <= most else f"{text[:half].rstrip()} … {text[2 - half :].lstrip()}"


def panels(
    count: int, *, height: float, extra: float = 0.5, width: float = 0, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels, at least one: three in a row, four as two and two.

    Args:
        count: Number of panels.
        height: Height of one row of panels, in inches, like all lengths.
        extra: Height for the titles of the figure.
        width: Width of one panel. 0: the panels fill the page, one panel two thirds of it.
        sharey: Whether all panels share the vertical axis.
    """
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    whole = columns * width or (WIDTH if columns > 1 else 2 * WIDTH / 3)
    figure = new_figure(extra + rows * height, whole)
    cells = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for axes in cells[count:]:
        axes.set_visible(False)
    return figure, cells[:count]
