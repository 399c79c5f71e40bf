"""What the figures share: new Axes, titles that fit, token ticks, colour bars, labels at curves.

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
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sinkviz.style import ink, role_style

MOST_TOKEN_TICKS = 40
LINE = 1.3  # height of a line of text, in units of its font size


def axes_or_new(ax: Axes | None) -> Axes:
    """Return ``ax``, or the Axes of a new figure where there is none."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def points(name: str) -> float:
    """Return the font size that an rcParam stands for, points."""
    return FontProperties(size=rcParams[name]).get_size_in_points()


def size_in_points(ax: Axes) -> tuple[float, float]:
    """Return width and height of an Axes before the layout has run, points."""
    box = ax.get_window_extent()
    return box.width * 72 / ax.figure.dpi, box.height * 72 / ax.figure.dpi


def plain(text: Text) -> Text:
    """Switch mathematics off in a text that may hold tokens: a dollar is a dollar."""
    text.set_parse_math(False)
    return text


def title(ax: Axes, text: str) -> None:
    """Set a title of one line, smaller where the usual size would not fit over the Axes."""
    artist = plain(ax.set_title(text, loc="left"))
    room, _ = size_in_points(ax)
    width = artist.get_window_extent().width * 72 / ax.figure.dpi
    artist.set_fontsize(max(6.0, artist.get_fontsize() * min(1.0, room / width)))


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
        room = size_in_points(axis.axes)[0 if across else 1] / max(1, len(tokens))
        size = max(4.0, min(points(f"{axis.axis_name}tick.labelsize"), room / 1.1))
        axis.set_ticks(range(first, first + len(tokens)), labels, fontsize=size)
        for label in axis.get_ticklabels():
            plain(label).set_rotation(90 if across else 0)
        axis.set_tick_params(length=0)
        axis.set_label_text(f"{what} (token)")
    else:
        axis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.set_label_text(f"{what} (text position, tokens)")


def hatched_ground(ax: Axes, role: str = "masked") -> None:
    """Hatch an Axes under its data; it shows wherever the data leave cells out."""
    ground = Rectangle((0, 0), 1, 1, transform=ax.transAxes, zorder=-1, **role_style(role, ax))
    ax.add_patch(ground)


def colour_bar(
    ax: Axes, mappable: ScalarMappable, label: str, ticks: Sequence[float] | None = None
) -> Colorbar:
    """Put a colour bar beside an Axes, as high as the Axes and owned by it."""
    bar = ax.figure.colorbar(mappable, cax=ax.inset_axes([1.03, 0, 0.04, 1]), label=label)
    bar.outline.set_visible(False)
    if ticks is not None:
        share_ticks(bar, ticks)
    return bar


def share_ticks(bar: Colorbar, ticks: Sequence[float]) -> None:
    """Put the ticks of a colour bar where its norm has them, with plain numbers."""
    bar.set_ticks(list(ticks), labels=[f"{tick:g}" for tick in ticks])
    bar.ax.yaxis.set_minor_locator(NullLocator())


def number(value: float) -> str:
    """Return a perplexity with the digits that matter.

    Example:
        >>> number(12.34), number(1234.5), number(123456.0)
        ('12.3', '1,234', '1.2e+05')
    """
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}" if value < 1e5 else f"{value:.1e}"


def log_positions(ax: Axes, first: float, last: float) -> None:
    """Give the x axis a logarithmic scale with plain whole numbers: 1, 4, 16 ... tokens."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(first, last)
    exponents = np.arange(np.ceil(np.log2(first)), np.floor(np.log2(last)) + 1)
    step = int(np.ceil(len(exponents) / 7))
    ax.xaxis.set_major_locator(FixedLocator(2.0 ** exponents[::step]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def spread(wanted: Sequence[float], gap: float) -> np.ndarray:
    """Return heights at least ``gap`` apart and as near as can be to the wanted ones.

    Args:
        wanted: heights in [0, 1], in any order.
        gap: smallest distance between neighbours.

    Returns:
        Heights in [0, 1] in the same order; evenly spaced where they do not all fit.

    Example:
        >>> spread([0.5, 0.5, 0.9], 0.2).round(2).tolist()
        [0.4, 0.6, 0.9]
    """
    wanted = np.asarray(wanted, dtype=float)
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    # Without the gaps this is a monotone regression: pool neighbours that are out of order.
    pools: list[list[float]] = []
    for value in wanted[order] - gap * np.arange(len(wanted)):
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = np.array([np.mean(pool) for pool in pools for _ in pool])
    placed = level.clip(0, 1 - gap * (len(wanted) - 1)) + gap * np.arange(len(wanted))
    result = np.empty_like(placed)
    result[order] = placed
    return result


def label_ends(
    ax: Axes, entries: Sequence[tuple[float, str, dict[str, Any]]], header: str = ""
) -> None:
    """Name curves at the right edge; each label begins with a sample of its line.

    Args:
        ax: with its final limits.
        entries: (height of the curve at its end in data units, label, style) per curve.
        header: what the labels say, above them.
    """
    _, high = size_in_points(ax)
    rows = len(entries) + bool(header)
    size = max(5.0, min(points("legend.fontsize"), 0.95 * high / (LINE * rows)))
    gap = LINE * size / (0.9 * high)
    ends = [
        float(np.clip(ax.transAxes.inverted().transform(ax.transData.transform((1, y)))[1], 0, 1))
        for y, _, _ in entries
    ]
    top = 1 - gap if header else 1.0
    places = spread(np.array(ends) / top, gap / top) * top
    for (_, text, style), end, place in zip(entries, ends, places, strict=True):
        leader = LineCollection(
            [[(1.005, end), (1.03, place), (1.10, place)]],
            colors=[style["color"]],
            linestyles=[style.get("linestyle", "-")],
            linewidths=[style.get("linewidth", 1.5)],
            transform=ax.transAxes,
            clip_on=False,
        )
        ax.add_collection(leader, autolim=False)
        plain(
            ax.text(
                1.12, place, text, transform=ax.transAxes, va="center", size=size, color=ink(ax)
            )
        )
    if header:
        above = max(places) + gap
        ax.text(1.12, above, header, transform=ax.transAxes, va="center", size=size, style="italic")
