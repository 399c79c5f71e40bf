"""What the figures share: new Axes, titles that fit, ticks, colour bars, grids of panels.

Knows nothing about traces, runs or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sinkviz.style import LOG_SCALE, role_style

MOST_TOKEN_TICKS = 40
PAPER_COLUMN = 3.3  # inches, of two columns on a page
SLIDE_HEIGHT = 0.54  # of the width, with room for a headline
LEAST_WIDTH, LEAST_PANEL = 2.0, 1.0  # inches


def axes_or_new(ax: Axes | None) -> Axes:
    """Return ``ax``, or the Axes of a new figure where there is none."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def points(name: str) -> float:
    """Return the font size that an rcParam stands for, points."""
    return FontProperties(size=rcParams[name]).get_size_in_points()


def size_in_points(ax: Axes) -> tuple[float, float]:
    """Return width and height of an Axes before the layout has run, points."""
    box = ax.get_window_extent()
    return float(box.width) * 72 / ax.figure.dpi, float(box.height) * 72 / ax.figure.dpi


def narrow(ax: Axes) -> bool:
    """Return whether an Axes is no wider than the column of a paper."""
    return size_in_points(ax)[0] < 230


def plain(text: Text) -> Text:
    """Switch mathematics off in a text that may hold tokens: a dollar is a dollar."""
    text.set_parse_math(False)
    return text


def title(ax: Axes, text: str, above: float = 0.0) -> None:
    """Set a title of one line, smaller where the usual size would not fit over the Axes.

    Args:
        ax: with its legend, if it has one.
        text: the title.
        above: height of a legend between Axes and title, points.
    """
    artist = plain(ax.set_title(text, loc="left", pad=rcParams["axes.titlepad"] + above))
    room, high = size_in_points(ax)
    if ax.get_aspect() != "auto":  # the square will be in the middle of its slot
        room = (room + min(room, high - above)) / 2
    width = artist.get_window_extent().width * 72 / ax.figure.dpi
    # Small letters are a little wider than in proportion.
    artist.set_fontsize(max(6.0, artist.get_fontsize() * min(1.0, 0.95 * room / width)))


def short(token: str, most: int = 14) -> str:
    """Return a token as a tick label: no control characters, at most ``most`` characters."""
    shown = "".join({"\n": "↵", "\t": "→"}.get(c, c if c.isprintable() else "·") for c in token)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def token_ticks(axis: Axis, tokens: Sequence[str], *, what: str, first: int = 0) -> None:
    """Label an axis with tokens where there are 40 or fewer, otherwise with text positions.

    Args:
        axis: the x or y axis; token i is drawn at coordinate ``first + i``.
        tokens: of the text, those drawn.
        what: what a token is here, ``query`` or ``key``.
        first: text position of the first of them.
    """
    across = axis.axis_name == "x"
    if len(tokens) <= MOST_TOKEN_TICKS:
        labels = [short(token) for token in tokens]
        sizes = size_in_points(axis.axes)
        square = axis.axes.get_aspect() != "auto"
        room = (min(sizes) if square else sizes[0 if across else 1]) / len(tokens)
        size = max(4.0, min(points(f"{axis.axis_name}tick.labelsize"), 0.8 * room))
        axis.set_ticks(range(first, first + len(tokens)), labels, fontsize=size)
        for label in axis.get_ticklabels():
            plain(label).set_rotation(90 if across else 0)
        axis.set_tick_params(length=0)
        axis.set_label_text(f"{what} (token)")
    else:
        axis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.set_label_text(f"{what} (text position, tokens)")


def bare(ax: Axes) -> None:
    """Take the frame away: beside a map it would look like one more column."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def panels(
    count: int,
    columns: int | None = None,
    width: float | None = None,
    least: float = LEAST_PANEL,
) -> tuple[Figure, list[Axes]]:
    """Return a new figure with ``count`` square panels, and the panels.

    Args:
        count: how many panels.
        columns: how many side by side; without it two rows from four panels on, and eight columns
            at most.
        width: of the figure, inches; as wide as its panels need where not given.
        least: width of a panel below which there are fewer columns, inches.

    Raises:
        ValueError: ``width`` is too small for one panel.
    """
    columns = columns or (count if count < 4 else min(-(-count // 2), 8))
    if width is not None:
        columns = max(1, min(columns, int((check_width(width) - 0.7) / least)))
    rows = -(-count // columns)
    columns = -(-count // rows)  # as even as can be
    size = (1.4 + 1.8 * columns, 0.8 + 1.9 * rows)
    if width is not None:
        size = (width, fitting(width, 0.6 + rows * ((width - 1.0) / columns + 0.2)))
    figure, grid = plt.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=True,
        sharey=True,
        figsize=size,
        layout="constrained",
    )
    for spare in grid.flat[count:]:
        spare.set_visible(False)
    return figure, list(grid.flat[:count])


def fitting(width: float, height: float) -> float:
    """Return the height of a figure, inches, cut to that of a slide where it is as wide as one."""
    return min(height, SLIDE_HEIGHT * width) if width > 2 * PAPER_COLUMN else height


def check_width(width: float) -> float:
    """Return the width of a figure, inches.

    Raises:
        ValueError: nothing could be read in it.
    """
    if width < LEAST_WIDTH:
        raise ValueError(f"width must be at least {LEAST_WIDTH:g} inches, got {width:g}")
    return width


def map_grid_labels(figure: Figure, heading: str, mappable: ScalarMappable, label: str) -> Colorbar:
    """Give a grid of (query, key) maps its shared labels and one colour bar."""
    figure.supxlabel("key (text position, tokens)", fontsize=points("axes.labelsize"))
    figure.supylabel("query (text position, tokens)", fontsize=points("axes.labelsize"))
    plain(figure.suptitle(heading, fontsize=points("axes.titlesize")))
    bar = figure.colorbar(mappable, ax=figure.axes, fraction=0.03, aspect=30)
    bar_label(bar, label, figure.get_figheight() * 72 - 50)
    return bar


def hatched_ground(ax: Axes, role: str = "masked") -> None:
    """Hatch an Axes under its data; it shows wherever the data leave cells out."""
    ground = Rectangle((0, 0), 1, 1, transform=ax.transAxes, zorder=-1, **role_style(role, ax))
    ax.add_patch(ground)


def draw_cells(ax: Axes, cells: np.ma.MaskedArray, **how: Any) -> AxesImage:
    """Draw an array cell by cell, without a frame; where it is masked, the ground is hatched."""
    hatched_ground(ax)
    bare(ax)
    return ax.imshow(cells, interpolation="nearest", **how)


def colour_bar(ax: Axes, mappable: ScalarMappable, label: str, ticks: Sequence[float]) -> Colorbar:
    """Put a colour bar beside an Axes, as high as the Axes and owned by it."""
    bar = ax.figure.colorbar(mappable, cax=bar_axes(ax))
    bar_ticks(bar, ticks)
    bar_label(bar, label, min(size_in_points(ax)))
    return bar


def bar_label(bar: Colorbar, label: str, room: float) -> None:
    """Label a colour bar, on two lines where one is longer than ``room`` points."""
    bar.set_label(label)
    text = bar.ax.yaxis.label
    if text.get_window_extent().height * 72 / bar.ax.figure.dpi > room:
        text.set_text(label.replace(" (", "\n(", 1))


def bar_axes(ax: Axes) -> Axes:
    """Return new Axes for a colour bar at the right of an Axes, which owns them; 10 points wide."""
    point = 1 / min(size_in_points(ax))
    return ax.inset_axes([1 + 8 * point, 0, 10 * point, 1])


def bar_ticks(bar: Colorbar, ticks: Sequence[float]) -> None:
    """Put the ticks of a colour bar where its norm has them, with plain numbers."""
    bar.outline.set_visible(False)
    bar.set_ticks(list(ticks), labels=[f"{tick:g}".replace("-", "−") for tick in ticks])
    bar.ax.yaxis.set_minor_locator(NullLocator())


def number(value: float) -> str:
    """Return a perplexity with the digits that matter.

    Example:
        >>> number(1.234), number(12.34), number(1234.5), number(123456.0)
        ('1.23', '12.3', '1,234', '1.2e+05')
    """
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}" if value < 1e5 else f"{value:.1e}"


def label_values(axis: Axis, label: str) -> None:
    """Name an axis of values, and say so where its scale is logarithmic.

    Axes of lengths, positions and steps need no word for it: their ticks are powers.

    Args:
        axis: the x or y axis, with the scale that it keeps.
        label: what the values are; a unit stands in brackets at the end.

    Example:
        >>> ax = Figure().subplots()
        >>> ax.set_yscale("log")
        >>> label_values(ax.yaxis, "time (ms)")
        >>> ax.get_ylabel()
        'time (ms, log scale)'
    """
    if axis.get_scale() != "linear":  # symlog too: all but its foot is logarithmic
        opened = f"{label[:-1]}, " if label.endswith(")") else f"{label} ("
        label = f"{opened}{LOG_SCALE})"
    axis.set_label_text(label)


def log_positions(ax: Axes, first: int, last: int) -> None:
    """Give the x axis a logarithmic scale with plain whole numbers: 1, 4, 16 ... tokens."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(first, last)
    exponents = np.arange(np.ceil(np.log2(first)), np.floor(np.log2(last)) + 1)
    fits = max(2, size_in_points(ax)[0] // (6 * points("xtick.labelsize")))
    step = int(np.ceil(len(exponents) / fits))
    ax.xaxis.set_major_locator(FixedLocator(2.0 ** exponents[::step]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def count_ticks(axis: Axis, count: int, offset: float = 0.0) -> None:
    """Number layers or heads 0, 1, 2 ..., leaving out what does not fit.

    Args:
        axis: the x or y axis; number i is drawn at coordinate ``i + offset``.
        count: how many there are.
        offset: of the tick from the number, cells.
    """
    across = axis.axis_name == "x"
    cell = size_in_points(axis.axes)[0 if across else 1] / count
    need = points(f"{axis.axis_name}tick.labelsize") * (2.4 if across else 1.4)
    shown = range(0, count, max(1, int(np.ceil(need / cell))))
    axis.set_ticks([one + offset for one in shown], [str(one) for one in shown], rotation=0)
