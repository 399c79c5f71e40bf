"""Names for curves and areas, beside or above the Axes and never over the data.

Knows nothing about traces, runs or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.transforms import Affine2D, ScaledTranslation, blended_transform_factory

from sinkviz.plots._parts import narrow, plain, points, size_in_points
from sinkviz.style import ink

LINE = 1.3  # height of a line of text, in units of its font size


def spread(wanted: Float[np.ndarray, " label"], gap: float) -> Float[np.ndarray, " label"]:
    """Return heights at least ``gap`` apart and as near as can be to the wanted ones.

    Args:
        wanted: heights in [0, 1], in any order.
        gap: smallest distance between neighbours.

    Returns:
        Heights in [0, 1] in the same order; evenly spaced where they do not all fit.

    Example:
        >>> spread(np.array([0.5, 0.5, 0.9]), 0.2).round(2).tolist()
        [0.4, 0.6, 0.9]
    """
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


def legend(ax: Axes, handles: Sequence[Artist], header: str = "", *, above: bool = False) -> float:
    """Put a legend beside the Axes, or above where they are narrow; never over the data.

    Args:
        ax: where it belongs to.
        handles: what it names.
        header: its title.
        above: put it above wherever it is, in one row if it fits.

    Returns:
        Height to leave free for it above the Axes, points.
    """
    if not (above or narrow(ax)):
        corner = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02)}
        box = ax.legend(handles=handles, title=header or None, frameon=False, **corner)
        list(map(plain, box.get_texts()))
        return 0.0
    wide, _ = size_in_points(ax)
    size = points("legend.fontsize")
    columns = 2 if narrow(ax) else len(handles)
    for last in (False, True):
        box = ax.legend(
            handles=handles,
            title=header or None,
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderpad=0.2,
            borderaxespad=0.1,
            labelspacing=0.3,
            ncols=columns,
            columnspacing=1.2,
            handlelength=2.4,
            alignment="left",
            fontsize=size,
            title_fontsize=size,
        )
        list(map(plain, box.get_texts()))
        extent = box.get_window_extent()
        fits = wide / (extent.width * 72 / ax.figure.dpi)
        if fits >= 1 or last:
            break
        # Smaller letters in two columns if they can be read, otherwise one column.
        size, columns = (0.95 * fits * size, 2) if fits * size > 6.5 else (0.8 * size, 1)
    return extent.height * 72 / ax.figure.dpi


def label_ends(
    ax: Axes, entries: Sequence[tuple[float, str, dict[str, Any]]], header: str = ""
) -> float:
    """Name curves at the right edge, each with a sample of its line; above where Axes are narrow.

    Args:
        ax: with its final limits.
        entries: (height of the curve at its end in data units, label, style) per curve.
        header: what the labels say.

    Returns:
        Height to leave free above the Axes, points.
    """
    _, high = size_in_points(ax)
    longest = max(len(text) for _, text, _ in entries)
    if narrow(ax) and longest > 12:
        inside = [Line2D([], [], label=text, **style) for _, text, style in entries]
        return legend(ax, inside, header)
    rows = len(entries) + bool(header)
    size = max(5.0, min(points("legend.fontsize"), 0.95 * high / (LINE * rows)))
    gap = LINE * size / (0.9 * high)
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = [float(np.clip(to_axes.transform((1, y))[1], 0, 1)) for y, _, _ in entries]
    top = 1 - gap if header else 1.0
    places = spread(np.array(ends) / top, gap / top) * top
    # Points to the right of the Axes across, Axes upwards: samples keep their length in any layout.
    right = Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans
    beside = blended_transform_factory(right + ScaledTranslation(1, 0, ax.transAxes), ax.transAxes)
    written = {"transform": beside, "va": "center", "size": size, "color": ink(ax)}
    for (_, text, style), end, place in zip(entries, ends, places, strict=True):
        leader = LineCollection(
            [[(2, end), (9, place), (31, place)]],
            colors=[style["color"]],
            linestyles=[style.get("linestyle", "-")],
            linewidths=[style.get("linewidth", 1.5)],
            transform=beside,
            clip_on=False,
        )
        ax.add_collection(leader, autolim=False)
        if style.get("marker"):
            mark = {"marker": style["marker"], "color": style["color"]}
            area = style.get("markersize", 5) ** 2
            ax.scatter([20], [place], area, transform=beside, clip_on=False, **mark)
        plain(ax.text(35, place, text, **written))
    if header:
        ax.text(35, max(places) + gap, header, style="italic", **written)
    return 0.0
