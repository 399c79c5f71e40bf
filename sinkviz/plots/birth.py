"""How sinks are born: sink rate and loss against training step.

Knows nothing about models.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sinkviz.plots._labels import label_ends, legend
from sinkviz.plots._parts import (
    axes_or_new,
    bar_ticks,
    bare,
    count_ticks,
    plain,
    points,
    size_in_points,
    title,
)
from sinkviz.style import (
    ATTENTION_SCALE,
    COLOURS,
    DASHES,
    MARKERS,
    attention_map,
    attention_norm,
    ink,
    line_scale,
    paper,
)

NAMES = {
    "learning_rate": "learning rate",
    "sink_rate": "sink rate (share of heads)",
    "loss": "held-out loss (nats/token)",
    "first_token": "mean attention on the first token",
    "strongest": "first token, strongest head",
}
BORN = 0.05  # sink rate from which a curve is a sink's


def born_at(rows: pd.DataFrame) -> int | None:
    """Return the row from which on the sink rate stays above ``BORN``; None where it ends below.

    A rate that flickers, one head more and one head less, is not born before it stays.

    Example:
        >>> born_at(pd.DataFrame({"sink_rate": [0.0, 0.06, 0.0, 0.06, 0.3]}))
        3
    """
    below = np.flatnonzero(rows["sink_rate"] <= BORN)
    first = int(below[-1]) + 1 if len(below) else 0
    return first if first < len(rows) else None


def _styles(groups: list[tuple[str, pd.DataFrame]], ax: Axes) -> list[dict[str, Any]]:
    """Return a look per model: orange where sinks are born; dash and marker tell models apart."""
    scale, looks = line_scale(ax), []
    for nth, (_, rows) in enumerate(groups):
        born = born_at(rows) is not None
        looks.append(
            {
                "color": COLOURS["sink"] if born else ink(ax),
                "linestyle": DASHES[nth % len(DASHES)],
                "marker": MARKERS[nth % len(MARKERS)],
                "linewidth": 2.0 * scale,
                "markersize": 5.0 * scale,
                "markevery": (0.02 * (nth % 5), 0.11),
            }
        )
    return looks


def _mark_phases(ax: Axes, table: pd.DataFrame, decays: bool) -> None:
    """Draw a thin line where a phase of training begins; name the weight decay where it changes.

    Models that were trained differently share no phases, and none are drawn.
    """
    names = ["phase_start", "weight_decay"]
    of_models = {
        tuple(rows[names].drop_duplicates().itertuples(index=False, name=None))
        for _, rows in table.groupby("model", sort=False)
    }
    if len(of_models) > 1:
        return
    before, row = None, 0
    for start, decay in of_models.pop():
        if start > 0:
            ax.axvline(start, color=ink(ax), linewidth=0.8, linestyle=":", zorder=1)
        if decays and decay != before:
            ax.annotate(
                f"{'weight ' * (before is None)}decay {decay:g}",
                (max(start, ax.get_xlim()[0]), 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2 - 1.2 * row * points("legend.fontsize")),
                textcoords="offset points",
                fontsize=0.85 * points("legend.fontsize"),
                va="top",
                bbox={"facecolor": paper(ax), "edgecolor": "none", "pad": 0.5},
            )
            row += 1
        before = decay


def _step_axis(ax: Axes, table: pd.DataFrame) -> None:
    """Give the x axis a logarithmic scale of training steps."""
    first, last = table["step"].min(), table["step"].max()
    ax.set_xscale("log")
    ax.set_xlim(first, last)
    # Between powers of ten, and in few letters: in a narrow figure they would stand on each other.
    decade = size_in_points(ax)[0] / max(1, np.log10(last / first))
    fits = decade > 11 * points("xtick.labelsize")
    ax.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0) if fits else (1.0,)))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda step, _: f"{step / 1e3:g} k" if step >= 1e3 else f"{step:g}")
    )
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("training step")
    ax.spines[["top", "right"]].set_visible(False)


def bar_beside(ax: Axes) -> Axes:
    """Return new Axes for a colour bar at the right of Axes that are no square; 10 points wide."""
    point = 1 / size_in_points(ax)[0]
    return ax.inset_axes([1 + 8 * point, 0, 10 * point, 1])


def _checked(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    missing = [name for name in ("model", "step", "sink_rate", *names) if name not in table]
    if missing or table.empty:
        raise ValueError(
            f"the table needs rows with the columns {', '.join(missing) or 'of sink_birth'}; "
            "give that of run('sink_birth')"
        )
    return table


def plot_birth(
    table: pd.DataFrame,
    quantity: str = "sink_rate",
    *,
    names: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw in one Axes how a quantity changed while models were trained.

    A curve per model against the logarithm of the step: orange where it ended with sinks. Dotted
    lines mark where a phase of training (learning rate, weight decay) begins, where all models
    share them.

    Args:
        table: rows of ``sink_birth``: ``model``, ``step``, ``sink_rate`` and the quantity;
            ``phase_start`` (step) and ``weight_decay`` where phases are to be marked.
        quantity: ``sink_rate``, ``strongest``, ``first_token``, ``loss`` or ``learning_rate``.
        names: name the models at the right of their curves, where there are several.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: there is no row, no such quantity, or a column is missing.

    Source: after Gu et al. 2024, arXiv 2410.10781, figure 4.

    Example:
        >>> rows = [{"model": "a", "step": step, "sink_rate": rate, "phase_start": 0,
        ...          "weight_decay": 0.1} for step, rate in ((10, 0.0), (1000, 0.0), (3000, 0.5))]
        >>> plot_birth(pd.DataFrame(rows)).get_title(loc="left")
        'sinks are born between step 1,000 and step 3,000'
    """
    if quantity not in NAMES:
        raise ValueError(f"no quantity {quantity!r}; known are {', '.join(NAMES)}")
    table = _checked(table, quantity)
    groups = list(table.groupby("model", sort=False))
    ax = axes_or_new(ax)
    ends = []
    for (name, rows), look in zip(groups, _styles(groups, ax), strict=True):
        ax.plot(rows["step"], rows[quantity], label=str(name), **look)
        ends.append((float(rows[quantity].iloc[-1]), str(name), look))
    _step_axis(ax, table)
    ax.set_ylabel(NAMES[quantity])
    if quantity not in ("loss", "learning_rate"):
        ax.set_ylim(-0.02, max(0.3, 1.05 * table[quantity].max()))
    elif quantity == "learning_rate":
        ax.set_ylim(0, 1.6 * table[quantity].max())
    if {"phase_start", "weight_decay"} <= set(table):
        _mark_phases(ax, table, decays=quantity == "learning_rate")
    above = 0.0
    if names and len(groups) > 1:
        # Beside the ends where all curves reach the edge.
        together = len({rows["step"].iloc[-1] for _, rows in groups}) == 1
        above = label_ends(ax, ends) if together else legend(ax, list(ax.lines))
    if quantity in ("sink_rate", "loss"):
        title(ax, _heading(groups, quantity), above)
    return ax


def _heading(groups: list[tuple[str, pd.DataFrame]], quantity: str) -> str:
    if quantity == "loss":
        ends = [rows["loss"].iloc[-1] for _, rows in groups]
        last = f"{min(ends):.2f}" + (f" to {max(ends):.2f}" if len(ends) > 1 else "")
        return f"the loss ends at {last} nats"
    births = [born_at(rows) for _, rows in groups]
    n_born = len(births) - births.count(None)
    if len(groups) > 1 or not n_born:
        return f"sinks are born in {n_born} of {len(groups)} models"
    ((_, rows),), (first,) = groups, births
    before, after = rows["step"].iloc[first - 1] if first else 0, rows["step"].iloc[first]
    return f"sinks are born between step {before:,.0f} and step {after:,.0f}"


def plot_birth_layers(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes how the first token's attention grew in each layer: steps across.

    Args:
        table: of one model: ``step`` and a column per layer, ``layer_0`` ..., with the mean
            attention on the first token.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: there are fewer than two rows, or no layers.

    Example:
        >>> rows = pd.DataFrame({"step": [10, 100], "layer_0": [0.0, 0.6], "layer_1": [0.0, 0.2]})
        >>> plot_birth_layers(rows).get_ylabel()
        'layer'
    """
    names = [name for name in table if str(name).startswith("layer_")]
    if len(table) < 2 or not names:
        raise ValueError("growth needs two steps and a column per layer, layer_0 and so on")
    ax = axes_or_new(ax)
    steps = np.log(table["step"].to_numpy(dtype=float))
    middle = (steps[1:] + steps[:-1]) / 2
    edges = np.exp(np.concatenate((steps[:1], middle, steps[-1:])))
    mesh = ax.pcolormesh(
        edges,
        np.arange(len(names) + 1) - 0.5,
        table[names].to_numpy(dtype=float).T,
        cmap=attention_map(ax),
        norm=attention_norm(),
    )
    _step_axis(ax, table)
    bare(ax)
    ax.set_ylabel("layer")
    ax.set_ylim(len(names) - 0.5, -0.5)
    count_ticks(ax.yaxis, len(names))
    bar = ax.figure.colorbar(mesh, cax=bar_beside(ax))
    bar_ticks(bar, (0, 0.05, 0.2, 0.5, 1))
    title(ax, f"attention on the first token, mean of each layer ({ATTENTION_SCALE})")
    return ax


def grid_birth(table: pd.DataFrame) -> Figure:
    """Draw sink rate, loss and learning rate against training step in a figure of its own.

    With one model there is a map of its layers, too.

    Args:
        table: rows of ``sink_birth``.

    Returns:
        The figure.

    Raises:
        ValueError: there is no row, or a column is missing.
    """
    table = _checked(table, "loss", "learning_rate", "phase_start", "weight_decay")
    alone = table["model"].nunique() == 1 and table["step"].nunique() > 1
    heights = {"sink_rate": 2.4, **({"layers": 1.2} if alone else {}), "loss": 2.4}
    heights["learning_rate"] = 1.5
    figure, axes = plt.subplots(
        len(heights),
        1,
        sharex=True,
        figsize=(9.0, 0.8 + sum(heights.values())),
        height_ratios=list(heights.values()),
        layout="constrained",
    )
    for ax, name in zip(axes, heights, strict=True):
        if name == "layers":
            plot_birth_layers(table, ax=ax)
        else:
            plot_birth(table, name, names=name == "sink_rate", ax=ax)
        ax.label_outer()
    if alone:
        plain(figure.suptitle(str(table["model"].iloc[0]), fontsize=points("axes.titlesize")))
    return figure
