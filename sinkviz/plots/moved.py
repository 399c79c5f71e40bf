"""Where the sink goes when the beginning of a text is edited: shares of attention, stacked.

Knows nothing about models.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sinkviz.plots._labels import legend
from sinkviz.plots._parts import axes_or_new, points, title
from sinkviz.style import COLOURS, faint, ink, paper, role_style

LEAST_SHARE = 5e-4  # what never has more is left out, and so is its name


def signed(change: float) -> str:
    """Return a change with its sign and two decimals.

    Example:
        >>> signed(0.126), signed(-2.0), signed(-0.001)
        ('+0.13', '−2.00', '0.00')
    """
    rounded = round(float(change), 2)
    return f"{rounded:+.2f}".replace("-", "−") if rounded else "0.00"


def _parts(table: pd.DataFrame, ax: Axes) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """Return what the bars are stacked of: label, shares by edit, look."""
    there = table["first_stays"].to_numpy(dtype=bool)
    place = table["position_0"].to_numpy(dtype=float)
    plain = {"edgecolor": paper(ax), "linewidth": 0}
    return [
        ("first token, in its place", np.where(there, place, 0), role_style("sink", ax)),
        (
            "first token, elsewhere",
            table["first_token"].to_numpy(dtype=float),
            plain | {"facecolor": COLOURS["sink"], "hatch": "////"},
        ),
        ("another in its place", np.where(there, 0, place), plain | {"facecolor": ink(ax)}),
        ("rest of the text", table["rest"].to_numpy(dtype=float), {"facecolor": faint(ax, 0.16)}),
        ("null (nowhere)", table["null"].to_numpy(dtype=float), role_style("null", ax)),
    ]


def plot_moved_mass(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes where attention goes when the beginning of a text is edited.

    A bar per edit, stacked to one: the token that was first, whatever stands at position 0 instead,
    and the rest. Numbers at the right are changes of the nll of the same last tokens, nats.

    Args:
        table: of one model, a row per edit: ``edit``, ``position_0``, ``first_token`` (elsewhere),
            ``rest`` and ``null`` (shares in [0, 1]), ``first_stays`` (whether the first token still
            stands first) and ``nll_change``.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: there is no row, or the shares of an edit do not sum to one.

    Source: after Xiao et al. 2023, arXiv 2309.17453, table 1.

    Example:
        >>> rows = [{"edit": "as it is", "position_0": 0.6, "first_token": 0.0, "rest": 0.4,
        ...          "null": 0.0, "first_stays": True, "nll_change": 0.0},
        ...         {"edit": "removed", "position_0": 0.1, "first_token": 0.0, "rest": 0.9,
        ...          "null": 0.0, "first_stays": False, "nll_change": 0.5}]
        >>> plot_moved_mass(pd.DataFrame(rows)).get_title(loc="left")
        'in first place, the first token gets 0.60 of the attention, others 0.10'
    """
    if table.empty:
        raise ValueError("the table has no row; give one per edit")
    sums = table[["position_0", "first_token", "rest", "null"]].sum(axis=1)
    if (abs(sums - 1) > 1e-3).any():
        raise ValueError(f"the shares of an edit must sum to one, got {sums.round(3).tolist()}")
    ax = axes_or_new(ax)
    places, left, handles = np.arange(len(table)), np.zeros(len(table)), []
    for label, share, look in _parts(table, ax):
        if (share > LEAST_SHARE).any():
            ax.barh(places, share, left=left, height=0.74, label=label, **look)
            handles.append(Patch(label=label, **look))
        left = left + share
    size = 0.9 * points("ytick.labelsize")
    for place, change in zip(places, table["nll_change"], strict=True):
        ax.text(
            0.985,
            place,
            signed(change),
            ha="right",
            va="center",
            fontsize=size,
            color=ink(ax),
            bbox={"facecolor": paper(ax), "edgecolor": "none", "pad": 1.5},
        )
    ax.text(0.985, -0.62, "nll change", ha="right", va="bottom", fontsize=size, style="italic")
    ax.set_yticks(places, table["edit"])
    ax.set_ylim(len(table) - 0.5, -1.1)
    ax.set_xlim(0, 1)
    ax.set_xlabel("mean share of attention, queries of the second half")
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    above = legend(ax, handles)
    stays = table["first_stays"].to_numpy(dtype=bool)
    other = table.loc[~stays, "position_0"].mean()
    first = table.loc[stays, "position_0"].max()
    title(
        ax,
        f"in first place, the first token gets {first:.2f} of the attention"
        + (f", others {other:.2f}" if not stays.all() else ""),
        above,
    )
    return ax


def grid_moved_mass(table: pd.DataFrame) -> Figure:
    """Draw where attention goes after each edit, a panel per model, in a figure of its own.

    Args:
        table: as for ``plot_moved_mass``, with a column ``model``.

    Returns:
        The figure.

    Raises:
        ValueError: there is no row.

    Example:
        >>> row = {"edit": "as it is", "position_0": 0.6, "first_token": 0.0, "rest": 0.4,
        ...        "null": 0.0, "first_stays": True, "nll_change": 0.0}
        >>> figure = grid_moved_mass(pd.DataFrame([{"model": "a"} | row, {"model": "b"} | row]))
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['a', 'b']
    """
    if table.empty:
        raise ValueError("the table has no row; give one per model and edit")
    groups = list(table.groupby("model", sort=False))
    figure, axes = plt.subplots(
        len(groups),
        1,
        squeeze=False,
        figsize=(9.0, sum(1.1 + 0.33 * len(rows) for _, rows in groups)),
        layout="constrained",
    )
    for ax, (name, rows) in zip(axes.flat, groups, strict=True):
        plot_moved_mass(rows, ax=ax)
        ax.set_ylabel(str(name))
    return figure
