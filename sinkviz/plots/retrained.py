"""Runs of one recipe and of its variants beside each other: a row of dots per model.

Knows nothing about models or recipes: which of them belong together is read from their names.
"""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sinkviz.plots._parts import label_values, plain, title
from sinkviz.plots.sink_table import LINEAR, _wide
from sinkviz.style import COLOURS, MARKERS, faint, ink

WIDTH, ROW = 12.0, 0.25  # inches: of the figure, of a row
GAP = 0.6  # between recipes, rows
SPREAD = 0.18  # of the way from the paper to the ink


def recipes(models: Iterable[str]) -> dict[str, list[str]]:
    """Return the models of each recipe: those whose names begin with its own and a hyphen.

    Example:
        >>> recipes(["rope", "alibi", "alibi-seed-1", "alibi-rate-double"])
        {'rope': ['rope'], 'alibi': ['alibi', 'alibi-seed-1', 'alibi-rate-double']}
    """
    found: dict[str, list[str]] = {}
    for model in models:
        recipe = next((name for name in found if model.startswith(f"{name}-")), model)
        found.setdefault(recipe, []).append(model)
    return found


def _row_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return where each model stands, in rows from the top, and what its row is called.

    One row per model with ``recipe``, ``row``, ``label`` and ``seeded``: whether only chance tells
    it from its recipe.
    """
    rows, top = [], 0.0
    for recipe, models in recipes(dict.fromkeys(table["model"])).items():
        for nth, model in enumerate(models):
            label = model.removeprefix(f"{recipe}-").replace("-", " ") if nth else recipe
            seeded = nth == 0 or label.startswith("seed")
            rows.append((model, recipe, top + nth, label, seeded))
        top += len(models) + GAP
    return pd.DataFrame(rows, columns=["model", "recipe", "row", "label", "seeded"]).set_index(
        "model"
    )


def _dots(ax: Axes, rows: pd.DataFrame, values: pd.DataFrame, colour: str | None = None) -> None:
    """Draw a dot per model and column, over the spread of the seeds of its recipe.

    The dots of the first column are filled, with a colour of their own where one is given.
    """
    for place in rows["row"]:
        ax.axhline(place, color=faint(ax), linewidth=0.6, zorder=1)
    for nth, name in enumerate(values):
        series = values[name].reindex(rows.index)
        for _, group in rows.groupby("recipe", sort=False):
            seeds = series[group.index[group["seeded"]]].dropna()
            if len(seeds) > 1:
                high = group["row"].min() - 0.45, group["row"].max() + 0.45
                ax.fill_betweenx(
                    high, seeds.min(), seeds.max(), color=faint(ax, SPREAD), linewidth=0, zorder=1.2
                )
        ax.plot(
            series,
            rows["row"],
            label=name,
            color=ink(ax) if nth else colour or ink(ax),
            # The first is what it is about; the others lie below it where they meet.
            markerfacecolor="none" if nth else None,
            zorder=2.5 if nth else 3,
            marker=MARKERS[nth % len(MARKERS)],
            linestyle="none",
            markersize=6,
            clip_on=False,
        )
    ax.spines[["top", "left", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _lost(ax: Axes, rows: pd.DataFrame, perplexities: pd.DataFrame) -> None:
    """Draw the nll that fewer sinks than the most cost, a dot per number of sinks."""
    nll, most = np.log(perplexities), perplexities.columns[-1]
    lost = nll.sub(nll[most], axis=0).drop(columns=most)
    lost.columns = [f"{count:.0f} sink{'' if count == 1 else 's'}" for count in lost]
    _dots(ax, rows, lost, COLOURS["sink"])
    ax.axvline(0, color=ink(ax), linewidth=0.8, zorder=1.5)
    # One sink less is worth a thousandth of a nat or a whole one: both must show.
    ax.set_xscale("symlog", linthresh=LINEAR)
    most_lost, least = max(0.05, float(lost.max(axis=None))), float(lost.min(axis=None))
    ax.set_xlim(min(-LINEAR / 4, 1.2 * least), 1.3 * most_lost)
    ax.xaxis.set_major_locator(FixedLocator([-0.02, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda nats, _: f"{nats:g}".replace("-", "−")))
    label_values(ax.xaxis, f"nll above that with {most:.0f} sinks (nats)")
    title(ax, "lost with fewer sinks")


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """Return the held-out loss of each recorded model at the end of its training."""
    return table[table["quantity"] == "loss"].groupby("model", sort=False)[["value"]].last()


def grid_retrained(table: pd.DataFrame) -> Figure:
    """Draw what runs of a few recipes have in common, and what their variants change.

    The figure is its own: a row per model, recipe by recipe, and a panel per quantity. Grey is the
    spread of a recipe's seeds: a variant whose dot lies within it may differ by chance alone.

    Args:
        table: rows of ``retrained``: ``model``, ``quantity`` and ``value``, with an ``n_sink`` or
            a ``step``. The names of seeds and variants begin with that of their recipe.

    Returns:
        The figure.

    Raises:
        ValueError: the table lacks a quantity.

    Source: after Gu et al. 2024, arXiv 2410.10781, table 3.
    """
    perplexities, rows = _wide(table, "perplexity", "n_sink"), _row_labels(table)
    most = perplexities.columns[-1]
    single = [
        ("perplexity", f"with {most:.0f} sinks", perplexities[[most]]),
        ("held-out loss", "nats per token", _ends(table)),
        *(
            (name, f"share of {what}", _wide(table, quantity, "quantity"))
            for name, what, quantity in (
                ("sink rate", "heads", "sink rate"),
                ("first token", "attention", "first token"),
                ("null", "attention", "null"),
            )
        ),
    ]
    single = [one for one in single if len(one[2])]
    figure, (lost, *others) = plt.subplots(
        1,
        1 + len(single),
        sharey=True,
        figsize=(WIDTH, 1.4 + ROW * (rows["row"].max() + 1)),
        width_ratios=(2.6, *(1 for _ in single)),
        layout="constrained",
    )
    _lost(lost, rows, perplexities)
    for ax, (name, label, values) in zip(others, single, strict=True):
        _dots(ax, rows, values)
        if label.startswith("share"):
            ax.set_xlim(0, max(0.3, 1.08 * float(values.max(axis=None))))
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.set_xlabel(label)
        title(ax, name)
    lost.set_yticks(rows["row"], rows["label"])
    lost.set_ylim(rows["row"].max() + 0.6, -0.6)
    list(map(plain, lost.get_yticklabels()))
    spread = Patch(color=faint(lost, SPREAD), label="from the lowest to the highest seed")
    dots = lost.get_legend_handles_labels()[0]
    figure.legend(handles=[*dots, spread], loc="outside lower left", frameon=False, ncols=4)
    return figure
