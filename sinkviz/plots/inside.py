"""Inside a sink: its norms beside those of other tokens, and what is lost without it.

Knows nothing about models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sinkviz.metrics import ROLES
from sinkviz.plots._labels import label_ends
from sinkviz.plots._parts import axes_or_new, count_ticks, label_values, plain, points, title
from sinkviz.plots._stack import draw_stack
from sinkviz.plots.moved import signed
from sinkviz.style import COLOURS, DASHED, ink, line_scale

QUANTITIES = ("value norm", "key norm", "residual norm", "largest activation")
SHORT = {"sink": "first token", "recent": "recent", "middle": "middle", "self": "self"}


def _wide(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Return a quantity of the unchanged model, a row per layer."""
    rows = table[(table["quantity"] == quantity) & (table["change"] == "none")]
    if rows.empty:
        raise ValueError(f"the table has no rows of quantity {quantity!r} without a change")
    return rows.pivot(index="layer", columns="of", values="value")


def plot_first_and_rest(table: pd.DataFrame, quantity: str, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes a length of the first token, and of the others, layer by layer.

    Args:
        table: of one model: ``change`` (``none`` here), ``layer``, ``quantity``, ``of`` (``first``
            or ``rest``) and ``value``.
        quantity: which of the table's quantities.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: the table has no such quantity.

    Source: Guo et al. 2024, arXiv 2410.13835, figure 1.

    Example:
        >>> rows = [{"change": "none", "layer": 0, "quantity": "value norm", "of": of, "value": x}
        ...         for of, x in (("first", 1.0), ("rest", 4.0))]
        >>> plot_first_and_rest(pd.DataFrame(rows), "value norm").get_title(loc="left")
        '0.25 times the others'
    """
    wide = _wide(table, quantity)
    ax = axes_or_new(ax)
    scale = line_scale(ax)
    layers = wide.index.to_numpy(dtype=int)
    looks = {
        "first": {"color": COLOURS["sink"], "marker": "o", "linewidth": 2.4 * scale},
        "rest": {"color": ink(ax), "marker": "D", "linestyle": DASHED, "linewidth": 1.6 * scale},
    }
    names = {"first": "first", "rest": "others"}
    ends = []
    for of, look in looks.items():
        look = look | {"markersize": 5.5 * scale}
        ax.plot(layers, wide[of], label=names[of], **look)
        ends.append((float(wide[of].iloc[-1]), names[of], look))
    ratio = wide["first"] / wide["rest"]
    far = float(ratio.iloc[np.abs(np.log(ratio.clip(lower=1e-9))).argmax()])
    low, high = wide.min(axis=None), wide.max(axis=None)
    if high > 8 * low > 0:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.3, high * 1.3)
        ax.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(0, 1.1 * high)
    ax.set_xlim(-0.15, len(layers) - 0.85)
    ax.set_xlabel("layer")
    label_values(ax.yaxis, quantity)
    count_ticks(ax.xaxis, len(layers))
    ax.spines[["top", "right"]].set_visible(False)
    above = label_ends(ax, ends)
    title(ax, f"{far:.2g} times the others", above)
    return ax


def plot_changed_mass(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes where attention goes under each change, stacked to one; and what it costs.

    Numbers over the bars are changes of nll, nats.

    Args:
        table: of one model: ``change``, ``layer``, ``quantity`` (``attention`` and ``nll change``),
            ``of`` (a role) and ``value``.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: the table has no rows of attention.

    Example:
        >>> rows = [{"change": "none", "layer": 0, "quantity": "attention", "of": role, "value": x}
        ...         for role, x in zip(ROLES, (0.5, 0.3, 0.1, 0.1, 0.0))]
        >>> rows.append({"change": "none", "layer": None, "quantity": "nll change", "of": "all",
        ...              "value": 0.0})
        >>> [text.get_text() for text in plot_changed_mass(pd.DataFrame(rows)).texts]
        ['0.00']
    """
    rows = table[table["quantity"] == "attention"]
    if rows.empty:
        raise ValueError("the table has no rows of quantity 'attention'")
    changes = list(dict.fromkeys(rows["change"]))
    shares = rows.pivot_table(index="change", columns="of", values="value", observed=True)
    shares = shares.reindex(changes)[list(ROLES)].to_numpy(dtype=float)
    cost = table[table["quantity"] == "nll change"].set_index("change")["value"]
    ax = axes_or_new(ax)
    labels = SHORT | {"null": "null (nowhere)"}
    handles = draw_stack(ax, np.arange(len(changes)), shares, labels, bars=True)
    for place, change in enumerate(changes):
        ax.text(
            place,
            1.01,
            signed(cost[change]),
            ha="center",
            va="bottom",
            fontsize=points("xtick.labelsize"),
        )
    ax.set_xticks(np.arange(len(changes)), [change.replace(" ", "\n", 1) for change in changes])
    ax.tick_params(axis="x", length=0)
    box = ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
    list(map(plain, box.get_texts()))
    title(ax, "where attention goes, and the nll it costs (nats)", 1.2 * points("xtick.labelsize"))
    return ax


def grid_inside(table: pd.DataFrame) -> Figure:
    """Draw norms, activations and changes, two rows per model, in a figure of its own.

    Args:
        table: as for ``plot_first_and_rest`` and ``plot_changed_mass``, with a column ``model``.

    Returns:
        The figure.

    Raises:
        ValueError: there is no row, or a quantity is missing.
    """
    if table.empty:
        raise ValueError("the table has no row; give those of inside_a_sink")
    groups = list(table.groupby("model", sort=False))
    figure = plt.figure(figsize=(11.0, 5.6 * len(groups)), layout="constrained")
    halves = figure.subfigures(len(groups), 1, squeeze=False)[:, 0]
    for half, (name, rows) in zip(halves, groups, strict=True):
        plain(half.suptitle(str(name), fontsize=points("axes.titlesize")))
        grid = half.add_gridspec(2, 4, height_ratios=(1, 1.15))
        for column, quantity in enumerate(QUANTITIES):
            plot_first_and_rest(rows, quantity, ax=half.add_subplot(grid[0, column]))
        plot_changed_mass(rows, ax=half.add_subplot(grid[1, :]))
    return figure
