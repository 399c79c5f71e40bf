"""What sinks are worth to each kind of softmax: perplexity by number of sinks, as a heat map.

Knows nothing about models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from sinkviz.plots._parts import (
    axes_or_new,
    bar_label,
    bar_ticks,
    bare,
    number,
    plain,
    size_in_points,
    title,
)
from sinkviz.plots.birth import bar_beside, plot_birth
from sinkviz.style import (
    ATTENTION_SCALE,
    LOG_SCALE,
    attention_map,
    attention_norm,
    bias_map,
    bias_norm,
)

LINEAR = 0.02  # nats, up to which the scale is linear
SHARES = ("first token", "sink rate", "null")


def _wide(table: pd.DataFrame, quantity: str, columns: str) -> pd.DataFrame:
    """Return a quantity with a row per model, in the order of the table."""
    rows = table[table["quantity"] == quantity]
    if rows.empty:
        raise ValueError(f"the table has no rows of quantity {quantity!r}; run('sink_token') has")
    wide = rows.pivot(index="model", columns=columns, values="value")
    return wide.reindex(list(dict.fromkeys(rows["model"])))


def _cells(
    ax: Axes, values: pd.DataFrame, written: np.ndarray, cmap: Colormap, norm: Normalize
) -> Colorbar:
    """Draw a labelled cell per value, and return a colour bar that has neither ticks nor label."""
    room = min(size / n for size, n in zip(size_in_points(ax), values.shape[::-1], strict=True))
    seaborn.heatmap(
        values,
        ax=ax,
        cmap=cmap,
        norm=norm,
        annot=written,
        fmt="",
        annot_kws={"size": min(10.0, 0.42 * room)},
        linewidths=0.5,
        linecolor=ax.get_facecolor(),
        cbar=False,
    )
    bare(ax)
    ax.set_ylabel("")
    ax.tick_params(axis="y", rotation=0)
    list(map(plain, ax.get_yticklabels()))
    return ax.figure.colorbar(ax.collections[0], cax=bar_beside(ax))


def plot_sink_table(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the perplexity of each model by the number of sinks in its cache.

    Cells hold perplexities; their colour is what the nll has more than with the most sinks.

    Args:
        table: rows of ``sink_token``: ``model``, ``quantity`` (``perplexity``), ``n_sink`` and
            ``value``.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: the table has no perplexities.

    Source: Xiao et al. 2023, arXiv 2309.17453, table 3.

    Example:
        >>> rows = [{"model": "a", "quantity": "perplexity", "n_sink": n, "value": value}
        ...         for n, value in ((0, 60.0), (4, 20.0))]
        >>> ax = plot_sink_table(pd.DataFrame(rows))
        >>> [text.get_text() for text in ax.texts], ax.get_title(loc="left")
        (['60.0', '20.0'], 'perplexity by sinks kept in the cache')
    """
    wide = _wide(table, "perplexity", "n_sink")
    wide.columns = [f"{count:.0f}" for count in wide.columns]
    nll = np.log(wide)
    extra = nll.sub(nll.iloc[:, -1], axis=0)
    ax = axes_or_new(ax)
    largest = max(0.05, float(extra.abs().max(axis=None)))
    written = np.array([[number(value) for value in row] for row in wide.to_numpy()])
    # One sink less is worth a hundredth of a nat or a whole one: both must show.
    bar = _cells(ax, extra, written, bias_map(ax), bias_norm(largest, LINEAR))
    ends = (0.0, LINEAR, float(f"{largest:.1g}"))
    bar_ticks(bar, sorted({*ends, *(-end for end in ends)}))
    bar_label(bar, f"more nll than with the most sinks (nats, {LOG_SCALE})", size_in_points(ax)[1])
    ax.set_xlabel("sinks (tokens)")
    title(ax, "perplexity by sinks kept in the cache")
    return ax


def plot_sink_shares(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes each model's attention on the first token, its sink rate and null mass.

    Args:
        table: rows of ``sink_token``: ``model``, ``quantity`` (``first token``, ``sink rate`` and
            ``null``) and ``value``, shares in [0, 1].
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: the table lacks one of these quantities.

    Example:
        >>> rows = [{"model": "a", "quantity": quantity, "value": 0.25} for quantity in SHARES]
        >>> [text.get_text() for text in plot_sink_shares(pd.DataFrame(rows)).texts]
        ['0.25', '0.25', '0.25']
    """
    wide = pd.concat([_wide(table, one, "quantity") for one in SHARES], axis=1)
    wide.columns = list(SHARES)
    ax = axes_or_new(ax)
    written = np.array([[f"{value:.2f}" for value in row] for row in wide.to_numpy()])
    bar = _cells(ax, wide, written, attention_map(ax), attention_norm())
    bar_ticks(bar, (0, 0.05, 0.2, 0.5, 1))
    bar_label(bar, f"share ({ATTENTION_SCALE})", size_in_points(ax)[1])
    ax.set_xlabel("")
    title(ax, "where attention goes")
    return ax


def grid_sink_table(table: pd.DataFrame) -> Figure:
    """Draw perplexities, shares and, where recorded, training curves in a figure of its own.

    Args:
        table: rows of ``sink_token``; training curves have a ``step``.

    Returns:
        The figure.

    Raises:
        ValueError: the table lacks a quantity.

    Source: Xiao et al. 2023, arXiv 2309.17453, table 3 and figure 6.
    """
    curves = table[table["step"].notna()] if "step" in table else table.iloc[:0]
    high = 1.3 + 0.42 * table["model"].nunique()
    figure = plt.figure(figsize=(11.0, high + (3.2 if len(curves) else 0)), layout="constrained")
    grid = figure.add_gridspec(
        2 if len(curves) else 1, 2, height_ratios=(high, 3.2) if len(curves) else None
    )
    plot_sink_table(table, ax=figure.add_subplot(grid[0, 0]))
    shares = plot_sink_shares(table, ax=figure.add_subplot(grid[0, 1]))
    shares.set_yticklabels([])
    if len(curves):
        wide = curves.pivot(index=["model", "step"], columns="quantity", values="value")
        wide = wide.reindex(list(dict.fromkeys(curves["model"])), level="model").reset_index()
        left, right = (figure.add_subplot(grid[1, column]) for column in (0, 1))
        plot_birth(wide, "loss", ax=left, names=False)
        plot_birth(wide, "sink_rate", ax=right)
    return figure
