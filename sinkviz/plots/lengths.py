"""Perplexity against the length of the text that a model reads at once.

Knows nothing about models: a table in, Axes out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sinkviz.plots._labels import label_ends
from sinkviz.plots._parts import axes_or_new, label_values, log_positions, number, points, title
from sinkviz.style import (
    COLOURS,
    DASH_DOT,
    DASHED,
    DOTTED,
    SOLID,
    ink,
    line_look,
    line_scale,
    paper,
)

LABELS = {"peak_mb": "peak memory (MB)"}
NAMES = {"alibi": "ALiBi", "rope": "rotary", "t5": "T5 bias", "none": "no positions"}


def position_styles(positions: list[str], ax: Axes) -> list[dict[str, Any]]:
    """Return how the curve of each position scheme is drawn, as keywords of ``Axes.plot``.

    Schemes keep their look in every figure. Two share a colour at most, and then differ by dash
    and marker.

    Args:
        positions: names such as ``alibi rope t5 sinusoidal learned none``; others get the ink.
        ax: where they are drawn.
    """
    looks = {
        "alibi": (COLOURS["sink"], SOLID, "o", 2.4),
        "t5": (COLOURS["sink"], DASHED, "s", 1.7),
        "rope": (COLOURS["recent"], SOLID, "^", 2.0),
        "none": (COLOURS["evicted"], DASH_DOT, "v", 1.7),
        "sinusoidal": (ink(ax), SOLID, "D", 1.5),
        "learned": (ink(ax), DOTTED, "X", 1.7),
    }
    other = (ink(ax), DASH_DOT, "P", 1.5)
    scale = line_scale(ax)
    styles = []
    for position in positions:
        colour, dash, marker, width = looks.get(position, other)
        # What ends at the training length is a point there, under nothing.
        order = {"learned": 2.6, "alibi": 2.5}.get(position, 2.4)
        styles.append(line_look(colour, dash, marker, width, scale) | {"zorder": order})
    return styles


def plot_lengths(table: pd.DataFrame, *, value: str = "perplexity", ax: Axes | None = None) -> Axes:
    """Draw in one Axes what each position scheme makes of ever longer texts.

    One curve per model, on logarithmic axes; a thin line marks the training length. Lengths that a
    model cannot read have no value and are left out. Labels give the value at the longest length.

    Args:
        table: rows with ``position``, ``length`` (tokens), ``train_length`` and the value;
            ``model`` too where several models share a scheme.
        value: the column to draw.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: a column is missing, or no row has a value.

    Source: Press et al. 2021, arXiv 2108.12409, figure 1.

    Example:
        >>> table = pd.DataFrame({"position": ["alibi", "alibi"], "length": [64, 128],
        ...                       "train_length": [64, 64], "perplexity": [20.0, 19.0]})
        >>> plot_lengths(table).lines[0].get_ydata().tolist()
        [20.0, 19.0]
    """
    missing = {"position", "length", "train_length", value} - set(table.columns)
    if missing:
        raise ValueError(f"the table lacks {', '.join(sorted(missing))}")
    known = table[table[value].notna()].sort_values("length")
    if not len(known):
        raise ValueError(f"no row has a {value}; there is nothing to draw")
    ax = axes_or_new(ax)
    by = "model" if "model" in known and known.model.nunique() > known.position.nunique() else None
    groups = list(known.groupby(by or "position", sort=False))
    first, last = int(known.length.min()), int(known.length.max())
    log_positions(ax, first, max(last, 2 * first))
    ax.set_xlim(first / 1.12, max(last, 2 * first) * 1.06)
    styles = position_styles([str(rows.position.iloc[0]) for _, rows in groups], ax)
    ends = []
    for (key, rows), style in zip(groups, styles, strict=True):
        y = rows[value].to_numpy(float)
        name = str(key) if by else NAMES.get(str(key), str(key))
        ax.plot(rows.length.to_numpy(), y, label=name, **style)
        until = "" if rows.length.max() == last else f" (ends at {rows.length.max():,})"
        ends.append((float(y[-1]), f"{name}: {number(float(y[-1]))}{until}", style))
    _value_axis(ax, known[value].to_numpy(float))
    trained = known.train_length.dropna().unique()
    for length in trained:
        _mark(ax, float(length))
    label = LABELS.get(value, value.replace("_", " "))
    ax.set_xlabel("length that is read at once (tokens)")
    label_values(ax.yaxis, label)
    ax.spines[["top", "right"]].set_visible(False)
    above = label_ends(ax, ends, header="at the longest")
    title(ax, f"{label.split(' (')[0]} against length", above)
    return ax


def _value_axis(ax: Axes, values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())
    room = (high / low) ** 0.06 * 1.01
    ax.set_yscale("log")
    ax.set_ylim(low / room, high * room)
    subs = (1, 2, 5) if high / low > 4 else (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ax.yaxis.set_major_locator(LogLocator(10, subs=subs, numticks=30))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    ax.yaxis.set_minor_locator(NullLocator())


def tick(value: float) -> str:
    """Return the label of a tick, plain at any size.

    Example:
        >>> tick(0.05), tick(12.0), tick(10_000.0)
        ('0.05', '12', '10,000')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _mark(ax: Axes, length: float) -> None:
    ax.axvline(length, color=ink(ax), linewidth=0.8, linestyle=":", zorder=1.5)
    ax.annotate(
        f"training length ({length:g})",
        (length, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -2),
        textcoords="offset points",
        ha="left",
        va="top",
        fontsize=0.85 * points("legend.fontsize"),
        bbox={"facecolor": paper(ax), "edgecolor": "none", "pad": 0.5},
    )
