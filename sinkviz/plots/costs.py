"""What ways to compute attention cost against length: time, memory, caches.

Knows nothing about models: a table in, Axes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sinkviz.plots._labels import label_ends
from sinkviz.plots._parts import axes_or_new, label_values, log_positions, number, title
from sinkviz.plots.lengths import tick
from sinkviz.style import (
    COLOURS,
    DASH_DOT,
    DASH_DOT_DOT,
    DASHED,
    DOTTED,
    SOLID,
    ink,
    line_look,
    line_scale,
)

# Column -> what it is, and its label with the unit.
QUANTITIES = {
    "ms": ("time of one layer's attention", "time (ms)"),
    "peak_mb": ("peak memory of one layer's attention", "memory (MB)"),
    "perplexity": ("perplexity and keys attended to", "perplexity"),
    "cache_kb": ("cache of one stream, all layers", "keys and values (kB)"),
}
SIZES = {"length": "length (tokens)", "keys": "keys that a query attends to (tokens)"}


def mechanism_styles(names: list[str], ax: Axes) -> list[dict[str, Any]]:
    """Return how the curve of each way to attend is drawn, as keywords of ``Axes.plot``.

    Written out is the reference; fused ways are blue, window attention is grey as it is everywhere,
    what keeps sinks or chooses keys is orange.

    Args:
        names: such as ``eager``, ``sdpa``, ``window 64``, ``top-8 keys``, ``multi-query``.
        ax: where they are drawn.
    """
    looks = (
        (("eager", "full", "multi-head"), ink(ax), DASHED, "D"),
        (("sdpa", "grouped"), COLOURS["recent"], SOLID, "s"),
        (("flash",), COLOURS["recent"], DASHED, "v"),
        (("flex",), COLOURS["recent"], DOTTED, "P"),
        (("window",), COLOURS["evicted"], SOLID, "X"),
        (("sinks", "multi-query"), COLOURS["sink"], SOLID, "o"),
        (("top",), COLOURS["sink"], DASH_DOT, "^"),
    )
    other = ((), ink(ax), DASH_DOT_DOT, "*")
    scale = line_scale(ax)
    styles = []
    for name in names:
        _, colour, dash, marker = next((one for one in looks if name.startswith(one[0])), other)
        width = 1.6 if colour == ink(ax) else 2.0
        styles.append(line_look(colour, dash, marker, width, scale))
    return styles


def plot_costs(
    table: pd.DataFrame,
    quantity: str = "ms",
    *,
    against: str = "length",
    by: str = "mechanism",
    references: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw in one Axes what each way to attend costs, against the length of the text.

    One curve each, on logarithmic axes, where a straight line is a power of the length. Labels give
    the last value.

    Args:
        table: rows with ``by``, ``against`` and the quantity; rows without a value are left out,
            and several of one size are averaged.
        quantity: the column to draw: ``ms``, ``peak_mb``, ``perplexity`` ...
        against: the column along the x axis, tokens.
        by: the column that names the curves.
        references: names whose last value is a horizontal line.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: a column is missing, or no row has a value above zero.

    Example:
        >>> table = pd.DataFrame({"mechanism": ["eager"] * 2, "length": [128, 256], "ms": [1, 4]})
        >>> plot_costs(table).lines[0].get_ydata().tolist()
        [1.0, 4.0]
    """
    missing = {by, against, quantity} - set(table.columns)
    if missing:
        raise ValueError(f"the table lacks {', '.join(sorted(missing))}")
    known = table[table[quantity].astype(float) > 0]
    if not len(known):
        raise ValueError(f"no row has a {quantity}; there is nothing to draw")
    ax = axes_or_new(ax)
    curves = {
        str(name): rows.groupby(against)[quantity].mean().astype(float)
        for name, rows in known.groupby(by, sort=False)
    }
    drawn = {name: curve for name, curve in curves.items() if name not in references} or curves
    sizes = [size for curve in drawn.values() for size in curve.index]
    first, last = int(min(sizes)), int(max(max(sizes), 2 * min(sizes)))
    log_positions(ax, first, last)
    ax.set_xlim(first / 1.12, last * 1.06)
    ends = []
    for (name, curve), style in zip(
        curves.items(), mechanism_styles(list(curves), ax), strict=True
    ):
        if name in drawn:
            ax.plot(curve.index.to_numpy(), curve.to_numpy(), label=name, **style)
        else:
            style = {key: style[key] for key in ("color", "linestyle", "linewidth")}
            ax.axhline(float(curve.iloc[-1]), label=name, zorder=1.5, **style)
        ends.append((float(curve.iloc[-1]), f"{name}: {_plain(float(curve.iloc[-1]))}", style))
    _log_values(ax, np.concatenate([curve.to_numpy() for curve in curves.values()]))
    ax.set_xlabel(SIZES.get(against, f"{against} (tokens)"))
    plain = quantity.replace("_", " ")
    heading, label = QUANTITIES.get(quantity, (plain, plain))
    label_values(ax.yaxis, label)
    ax.spines[["top", "right"]].set_visible(False)
    above = label_ends(ax, ends)
    title(ax, heading, above)
    return ax


def _plain(value: float) -> str:
    return f"{value:.2g}" if value < 1 else number(value)


def _log_values(ax: Axes, values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())
    room = (high / low) ** 0.06 * 1.01
    ax.set_yscale("log")
    ax.set_ylim(low / room, high * room)
    wide = high / low
    subs = (1,) if wide > 1e3 else (1, 2, 5) if wide > 4 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    ax.yaxis.set_major_locator(LogLocator(10, subs=subs, numticks=30))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    ax.yaxis.set_minor_locator(NullLocator())
