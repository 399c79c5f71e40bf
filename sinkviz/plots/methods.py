"""The tables of the caching experiments as figures: nll along a text, sizes, sinks and costs.

Tables in, Axes out; knows nothing about models or how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from sinkviz.plots._labels import label_ends
from sinkviz.plots._parts import axes_or_new, label_values, log_positions, number, points, title
from sinkviz.plots.runs import EVENT_SIZE, _mark, _row, _value
from sinkviz.policies import Policy, SinkWindow, Window, first_eviction, parse_policy
from sinkviz.style import paper, policy_name, policy_styles

ENDED = {
    "positions": "positions end",
    "memory": "memory ends",
    "cost": "stopped: too slow",
}
COSTS = {
    "ms_per_token": ("time per token (ms)", "time per token"),
    "cache_bytes": ("keys and values (bytes)", "memory"),
}
AGAINST = {"length": "text read (tokens)", "cache": "cache (tokens)"}


def _check(table: pd.DataFrame, *columns: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing or not len(table):
        raise ValueError(
            f"the table lacks {', '.join(missing) or 'rows'}; give one that its experiment made"
        )


def _curves(table: pd.DataFrame) -> Iterator[tuple[str, Policy, pd.DataFrame]]:
    """Yield (label, policy, rows) per model and policy, the model named where there are several."""
    several = table["model"].nunique() > 1
    for (model, text), rows in table.groupby(["model", "policy"], sort=False):
        policy = parse_policy(text)
        yield policy_name(policy) + (f", {model}" if several else ""), policy, rows


def plot_nll_bins(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the nll of stretches of a text, one curve per policy.

    Unlike ``plot_nll`` this takes a table of means, not runs with a number per token.

    Args:
        table: columns ``model``, ``policy``, ``first`` and ``stop`` (text positions, tokens) and
            ``nll`` (nats per token); ``train_length`` where it is to be marked.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    _check(table, "model", "policy", "first", "stop", "nll")
    ax = axes_or_new(ax)
    curves = [(*curve[:2], curve[2].sort_values("first")) for curve in _curves(table)]
    last = int(table["stop"].max())
    evictions = {first_eviction(policy, last) for _, policy, _ in curves} - {None}
    begin = max(4, min(evictions) // 2 if evictions else 4)
    ends, shown = [], []
    styles = policy_styles([policy for _, policy, _ in curves], ax)
    for (label, _, rows), style in zip(curves, styles, strict=True):
        middle = np.sqrt(rows["first"] * rows["stop"])
        every = max(1, len(rows) // 8)
        ax.plot(middle, rows["nll"], label=label, markevery=every, **style)
        ends.append((float(rows["nll"].iloc[-1]), label, style))
        shown += rows["nll"][rows["stop"] > begin].tolist()
    events = [(place, f"first eviction ({place:,})") for place in evictions]
    events += [one for one in _training(table) if begin < one[0] < last]
    low, high = min(shown), max(shown)
    room = max(high - low, 0.1) / (1 - _row(ax) * len(events))
    ax.set_ylim(low - 0.06 * room, high + (0.06 + _row(ax) * len(events)) * room)
    log_positions(ax, begin, last)
    _mark(ax, sorted(events))
    if "ended" in table:
        _mark_ends(ax, [rows.iloc[-1] for _, _, rows in curves if rows["stop"].max() < last])
    ax.set_xlabel("text position (tokens)")
    ax.set_ylabel("nll (nats per token)")
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, "nll along the text", label_ends(ax, ends))
    return ax


def _training(table: pd.DataFrame) -> list[tuple[int, str]]:
    """Return the training lengths of the models of a table, each with its name."""
    lengths = sorted(set(table["train_length"].dropna())) if "train_length" in table else []
    return [(int(length), f"training length ({int(length):,})") for length in lengths]


def _mark_ends(ax: Axes, lasts: Sequence[pd.Series]) -> None:
    """Say at the end of a curve that stops early why it does."""
    for row in lasts:
        ax.annotate(
            ENDED.get(row["ended"], row["ended"]),
            (np.sqrt(row["first"] * row["stop"]), row["nll"]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=EVENT_SIZE * points("legend.fontsize"),
            bbox={"facecolor": paper(ax), "edgecolor": "none", "pad": 0.5},
            zorder=3,
        )


def plot_cache_sizes(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the perplexity against the size of the cache, one curve per model.

    Caches longer than what a model was trained on are drawn hollow.

    Args:
        table: columns ``model``, ``cache`` and ``train_length`` (tokens) and ``perplexity``.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: a column is missing, or there is no row.

    Source: Xiao et al. 2023, arXiv 2309.17453, table 6.

    Example:
        >>> table = pd.DataFrame({"model": "tiny", "cache": [8, 16], "train_length": 16,
        ...                       "perplexity": [9.0, 7.0]})
        >>> plot_cache_sizes(table).lines[0].get_ydata().tolist()
        [9.0, 7.0]
    """
    _check(table, "model", "cache", "train_length", "perplexity")
    ax = axes_or_new(ax)
    models = list(dict.fromkeys(table["model"]))
    sizes = sorted(set(table["cache"]))
    ends = []
    for model, style in zip(models, policy_styles([SinkWindow()] * len(models), ax), strict=True):
        rows = table[table["model"] == model].sort_values("cache")
        ax.plot(rows["cache"], rows["perplexity"], label=model, **style)
        beyond = rows[rows["cache"] > rows["train_length"].fillna(np.inf)]
        hollow = style | {"linestyle": "none", "markerfacecolor": paper(ax)}
        ax.plot(beyond["cache"], beyond["perplexity"], **hollow)
        ends.append((float(rows["perplexity"].iloc[-1]), model, style))
        if len(models) == 1:
            for size, value in zip(rows["cache"], rows["perplexity"], strict=True):
                # A curve that breaks past the training length does so upwards.
                broken = size in set(beyond["cache"])
                ax.annotate(
                    number(value),
                    (size, value),
                    xytext=(0, 8 if broken else -8),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if broken else "top",
                    fontsize=points("legend.fontsize"),
                )
    _log_values(ax, table["perplexity"])
    ax.set_xscale("log", base=2)
    ax.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _mark(ax, [one for one in _training(table) if sizes[0] < one[0] <= sizes[-1]])
    ax.set_xlabel("cache, four sinks included (tokens)")
    label_values(ax.yaxis, "perplexity")
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, "does a larger cache help?", label_ends(ax, ends) if len(models) > 1 else 0.0)
    return ax


def plot_first_tokens(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the perplexity against how many first tokens stay, and newlines for them.

    Args:
        table: columns ``model``, ``n_sink``, ``cache`` (tokens), ``first_tokens`` (``text`` or
            ``newlines``) and ``perplexity``.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes; perplexity on a logarithmic scale.

    Raises:
        ValueError: a column is missing, or there is no row.

    Source: Xiao et al. 2023, arXiv 2309.17453, tables 1 and 2.
    """
    _check(table, "model", "n_sink", "cache", "first_tokens", "perplexity")
    ax = axes_or_new(ax)
    models = list(dict.fromkeys(table["model"]))
    text = table[table["first_tokens"] == "text"]
    counts = sorted(set(text["n_sink"]))
    lines = table[table["first_tokens"] == "newlines"]
    styles = policy_styles([SinkWindow()] * len(models), ax)
    (evicting,) = policy_styles([Window()], ax)
    ends = []
    for model, style in zip(models, styles, strict=True):
        rows = text[text["model"] == model].sort_values("n_sink")
        places = [counts.index(n) for n in rows["n_sink"]]
        ax.plot(places, rows["perplexity"], **style)
        look = evicting | {"marker": "X", "markersize": 1.8 * style["markersize"], "zorder": 3}
        ax.plot(places[:1], rows["perplexity"].iloc[:1], **look)
        ends.append((float(rows["perplexity"].iloc[-1]), model, style))
        ours = lines[lines["model"] == model]
        hollow = style | {"linestyle": "none", "markerfacecolor": paper(ax), "markersize": 7}
        ax.plot([len(counts)] * len(ours), ours["perplexity"], **hollow)
        if len(models) == 1:
            _values(ax, places, rows["perplexity"])
            _values(ax, [len(counts)] * len(ours), ours["perplexity"])
    cache = int(table["cache"].iloc[0])
    names = [f"{n}+{cache - n}" for n in counts] + ([f"4 × ↵\n+{cache - 4}"] * bool(len(lines)))
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    _log_values(ax, table["perplexity"])
    ax.set_xlabel("cache: first tokens + recent (tokens)")
    label_values(ax.yaxis, "perplexity")
    ax.spines[["top", "right"]].set_visible(False)
    above = label_ends(ax, ends) if len(models) > 1 else 0.0
    title(ax, "how many first tokens must stay", above)
    return ax


def _values(ax: Axes, places: Iterable[float], values: pd.Series) -> None:
    """Write each value of a curve above its point, on the side where the curve is lower."""
    curve = values.tolist()
    neighbours = zip([*curve[:1], *curve[:-1]], [*curve[1:], *curve[-1:]], strict=True)
    for place, value, (before, after) in zip(places, curve, neighbours, strict=True):
        _value(ax, place, value, rises=after > before)


def _log_values(ax: Axes, values: pd.Series) -> None:
    """Give the y axis a logarithmic scale with a few plain numbers."""
    low, high = float(values.min()), float(values.max())
    room = max(np.log(high / low), 0.1)
    ax.set_yscale("log")
    ax.set_ylim(low * np.exp(-0.12 * room), high * np.exp(0.2 * room))
    decade = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    fine = np.array((1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 6, 8))
    ax.yaxis.set_major_locator(FixedLocator(np.outer(decade, fine).ravel()))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def plot_method_costs(
    table: pd.DataFrame,
    *,
    cost: str = "ms_per_token",
    against: str = "length",
    named: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw in one Axes what a token costs each method, both axes logarithmic.

    Args:
        table: columns ``model``, ``policy``, ``method``, ``length`` and ``cache`` (tokens),
            ``ms_per_token`` and ``cache_bytes``.
        cost: ``ms_per_token`` or ``cache_bytes``.
        against: ``length`` of the text read before, or size of the ``cache``.
        named: name the curves at the right edge; off beside another Axes that does.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes. A method that holds nothing between tokens is left out of the bytes.

    Raises:
        ValueError: no such cost or axis, a column is missing, or there is no row.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 10.
    """
    if cost not in COSTS or against not in AGAINST:
        raise ValueError(
            f"cost must be one of {', '.join(COSTS)} and against one of {', '.join(AGAINST)}, "
            f"got {cost!r} and {against!r}"
        )
    _check(table, "model", "policy", "method", against, cost)
    ax = axes_or_new(ax)
    several = table["model"].nunique() > 1
    shown = table[table[cost] > 0]
    groups = [
        (f"{method}, {model}" if several else method, rows.sort_values(against))
        for (model, method), rows in shown.groupby(["model", "method"], sort=False)
    ]
    styles = policy_styles([parse_policy(rows["policy"].iloc[0]) for _, rows in groups], ax)
    ends = []
    for (label, rows), style in zip(groups, styles, strict=True):
        ax.plot(rows[against], rows[cost], label=label, **style)
        ends.append((float(rows[cost].iloc[-1]), label, style))
    places = sorted(set(shown[against]))
    ax.set_xscale("log", base=2)
    ax.set_xlim(places[0] / 1.2, places[-1] * 1.2)
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if cost == "cache_bytes":
        low, high = shown[cost].min(), shown[cost].max()
        ax.set_yscale("log", base=2)
        ax.set_ylim(low / 1.5, high * 1.5)
        grid = 4.0 ** np.arange(np.floor(np.log2(low) / 2), np.ceil(np.log2(high) / 2) + 1)
        ax.yaxis.set_major_locator(FixedLocator(grid))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    else:
        _log_values(ax, shown[cost])
    ax.set_xlabel(AGAINST[against])
    label_values(ax.yaxis, COSTS[cost][0])
    ax.spines[["top", "right"]].set_visible(False)
    by = " by size of cache" if against == "cache" else ""
    title(ax, COSTS[cost][1] + by, label_ends(ax, ends) if named else 0.0)
    return ax


def _short(value: float) -> str:
    return f"{value / 1000:.0f}k" if value >= 10_000 else f"{value:,.0f}"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}"
        value /= 1024
    raise AssertionError


def grid_four_methods(table: pd.DataFrame) -> Figure:
    """Draw a figure of the four methods: nll along the text above, what a token costs below.

    Args:
        table: of the experiment ``four_methods``; the column ``kind`` tells ``nll`` rows from
            costs at several lengths of text (``length``) and sizes of cache (``cache``).

    Returns:
        The figure, which it owns.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    _check(table, "kind")
    figure = plt.figure(figsize=(10, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.25, 1))
    plot_nll_bins(table[table["kind"] == "nll"], ax=figure.add_subplot(grid[0, :]))
    panels = (("ms_per_token", "length"), ("cache_bytes", "length"), ("ms_per_token", "cache"))
    for column, (cost, against) in enumerate(panels):
        ax = figure.add_subplot(grid[1, column])
        rows = table[table["kind"] == against]
        plot_method_costs(rows, cost=cost, against=against, named=False, ax=ax)
    return figure
