"""What a model can still tell: accuracy against distance, and how long a change is felt.

Tables in, Axes out; knows nothing about models or how anything was asked.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from sinkviz.plots._labels import label_ends
from sinkviz.plots._parts import axes_or_new, label_values, title
from sinkviz.plots.methods import _check, _curves
from sinkviz.plots.runs import _mark
from sinkviz.style import ink, policy_styles

SMALLEST = 1e-7  # a change below what float32 can tell is drawn as none
GUESSING = (0, (4, 4))  # the dash of what guessing would get


def plot_recall(table: pd.DataFrame, *, named: bool = True, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the share of right answers against the distance, one curve per policy.

    A thin line marks the window's edge, where the line that tells the answer leaves the cache, and
    a dashed one what guessing would get.

    Args:
        table: columns ``model``, ``policy``, ``cache`` and ``distance`` (tokens), ``accuracy`` and
            ``chance`` (in [0, 1]).
        named: name the curves at the right edge; off beside another Axes that does.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: a column is missing, or there is no row.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 9.
    """
    _check(table, "model", "policy", "cache", "distance", "accuracy", "chance")
    ax = axes_or_new(ax)
    curves = [(*one[:2], one[2].sort_values("distance")) for one in _curves(table)]
    styles = policy_styles([policy for _, policy, _ in curves], ax)
    ends = []
    for (label, _, rows), style in zip(curves, styles, strict=True):
        ax.plot(rows["distance"], rows["accuracy"], label=label, clip_on=False, **style)
        ends.append((float(rows["accuracy"].iloc[-1]), label, style))
    chance, far = float(table["chance"].mean()), float(table["distance"].max())
    guessing = {"color": ink(ax), "linewidth": 0.8, "linestyle": GUESSING}
    ax.axhline(chance, zorder=1.5, **guessing)
    ends.append((chance, "chance", guessing))
    ax.set_xlim(0, 1.02 * far)
    ax.set_ylim(0, 1.14)
    edges = sorted(set(table["cache"].dropna().astype(int)))
    _mark(ax, [(edge, f"cache ({edge:,} tokens)") for edge in edges if edge < far])
    ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel("distance from query to line (tokens)")
    ax.set_ylabel("right answers")
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, "answers by distance", label_ends(ax, ends) if named else 0.0)
    return ax


def plot_forgetting(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes how much a changed beginning still matters, one curve per policy.

    Args:
        table: columns ``model``, ``policy``, ``caches`` (caches of tokens read since the texts are
            the same again), ``most`` (largest change of a token's nll, nats) and ``layers``.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes; changes on a logarithmic scale with none at all at its foot.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    _check(table, "model", "policy", "caches", "most", "layers")
    ax = axes_or_new(ax)
    curves = [(*one[:2], one[2].sort_values("caches")) for one in _curves(table)]
    styles = policy_styles([policy for _, policy, _ in curves], ax)
    ends = []
    for (label, _, rows), style in zip(curves, styles, strict=True):
        every = max(1, len(rows) // 6)
        ax.plot(rows["caches"], rows["most"], label=label, markevery=every, **style)
        ends.append((float(rows["most"].iloc[-1]), label, style))
    layers, far = int(table["layers"].max()), float(table["caches"].max())
    ax.set_yscale("symlog", linthresh=SMALLEST, linscale=0.5)
    ax.set_ylim(-0.4 * SMALLEST, 300 * max(1.0, float(table["most"].max())))
    ticks = [0.0, *10.0 ** np.arange(-6, 2, 2)]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e−")))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0, far)
    _mark(ax, [(1, "one cache"), (layers, f"one per layer ({layers})")])
    ax.set_xlabel("read since the texts are the same (caches)")
    label_values(ax.yaxis, "largest change of nll (nats)")
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, "how long a changed beginning matters", label_ends(ax, ends))
    return ax


def grid_recall(table: pd.DataFrame) -> Figure:
    """Draw a figure with the answers by distance, a panel per model and task.

    Multiple-choice questions have no distance: they are bars.

    Args:
        table: of the experiment ``stream_eval``.

    Returns:
        The figure, which it owns.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    _check(table, "model", "task", "accuracy")
    groups = [(key, rows) for key, rows in table.groupby(["task", "model"], sort=False)]
    width = 4.2 * len(groups) + 1.8
    figure, row = plt.subplots(
        1, len(groups), figsize=(width, 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    several = table["model"].nunique() > 1
    for nth, (ax, ((task, model), rows)) in enumerate(zip(row[0], groups, strict=True)):
        last = nth == len(groups) - 1
        if task == "arc":
            _bars(ax, rows)
        else:
            plot_recall(rows, named=last, ax=ax)
        if nth:
            ax.set_ylabel("")
        what = {"names": "who was named", "codes": "which code", "arc": "ARC"}[task]
        title(ax, what + (f", {model}" if several else ""))
    return figure


def _bars(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw the share of right answers of each policy as a bar, with chance across."""
    curves = list(_curves(rows))
    for place, ((_, _, own), style) in enumerate(
        zip(curves, policy_styles([policy for _, policy, _ in curves], ax), strict=True)
    ):
        ax.bar(place, own["accuracy"].iloc[0], color=style["color"], width=0.6)
    ax.axhline(float(rows["chance"].mean()), color=ink(ax), linewidth=0.8, linestyle=GUESSING)
    ax.set_xticks(range(len(curves)), [label.replace(" ", "\n", 1) for label, _, _ in curves])
    ax.set_ylim(0, 1.14)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_ylabel("right answers")
    ax.spines[["top", "right"]].set_visible(False)


def grid_limits(table: pd.DataFrame) -> Figure:
    """Draw a figure of what is forgotten: the beginning of a text, and lines beyond the cache.

    Args:
        table: of the experiment ``limits``.

    Returns:
        The figure, which it owns.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    _check(table, "kind", "most")
    recall = table[table["kind"] == "recall"]
    figure, axes = plt.subplots(
        1, 2 if len(recall) else 1, figsize=(11, 3.8), squeeze=False, layout="constrained"
    )
    plot_forgetting(table[table["most"].notna()], ax=axes[0, 0])
    if len(recall):
        plot_recall(recall, ax=axes[0, 1])
    return figure
