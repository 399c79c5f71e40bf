"""One number per head, as cells: layers down, heads across.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
import seaborn
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize

from sinkviz.plots._parts import (
    bar_axes,
    bar_label,
    bar_ticks,
    bare,
    count_ticks,
    points,
    size_in_points,
)
from sinkviz.style import ATTENTION_TICKS, attention_map, attention_norm

MOST_NUMBERED = 12


def draw_heads(
    ax: Axes,
    values: Float[np.ndarray, "layer head"],
    *,
    cmap: Colormap,
    norm: Normalize,
    written: Float[np.ndarray, "layer head"],
    fmt: str,
    framed: Bool[np.ndarray, "layer head"],
) -> Colorbar:
    """Draw a cell per head and return the colour bar, which has neither ticks nor label yet.

    Args:
        ax: where to draw.
        values: one per head.
        cmap: their colours.
        norm: their scale.
        written: numbers for the cells, where there are 12 layers and heads or fewer.
        fmt: format of those numbers.
        framed: heads to draw a line around.
    """
    layers, heads = values.shape
    room = min(size / n for size, n in zip(size_in_points(ax), (heads, layers), strict=True))
    seaborn.heatmap(
        values,
        ax=ax,
        cmap=cmap,
        norm=norm,
        annot=written if max(layers, heads) <= MOST_NUMBERED and room > 12 else None,
        fmt=fmt,
        annot_kws={"size": min(points("axes.labelsize"), 0.42 * room)},
        xticklabels=False,
        yticklabels=False,
        linewidths=0.5 if room > 8 else 0,
        linecolor=ax.get_facecolor(),
        cbar_ax=bar_axes(ax),
    )
    _frame(ax, framed, room)
    ax.set(xlabel="head", ylabel="layer")
    bare(ax)
    count_ticks(ax.xaxis, heads, offset=0.5)
    count_ticks(ax.yaxis, layers, offset=0.5)
    return ax.collections[0].colorbar


def draw_shares(
    ax: Axes, shares: Float[np.ndarray, "layer head"], epsilon: float, label: str
) -> Colorbar:
    """Draw what each head gives to a token, in per cent; heads above epsilon are framed.

    Args:
        ax: where to draw.
        shares: of attention, in [0, 1].
        epsilon: from where a head counts as one that rests there.
        label: of the colour bar, which is returned.
    """
    bar = draw_heads(
        ax,
        shares,
        cmap=attention_map(ax),
        norm=attention_norm(),
        written=np.round(100 * shares),
        fmt=".0f",
        framed=shares > epsilon,
    )
    bar_ticks(bar, ATTENTION_TICKS)
    bar_label(bar, label, size_in_points(ax)[1])
    return bar


def _frame(ax: Axes, marked: Bool[np.ndarray, "layer head"], room: float) -> None:
    """Draw a line inside each marked cell, dark in light so that it shows on every colour.

    Each has a line of its own: one around a group would frame an unmarked cell in its middle, too.
    """
    width = float(np.clip(room / 12, 0.7, 2.2))
    inset = 0.8 * width / room
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
    lines = [
        np.array((column, row)) + inset + (1 - 2 * inset) * corners
        for row, column in np.argwhere(marked)
    ]
    for colour, extra in (("white", min(1.6, width)), ("black", 0.0)):
        ax.add_collection(
            LineCollection(
                lines,
                colors=colour,
                linewidths=width + extra,
                capstyle="projecting",
                clip_on=False,
                zorder=3,
            ),
            autolim=False,
        )
