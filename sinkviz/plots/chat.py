"""A chat without end: does the model still follow, and what does its cache cost?

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sinkviz.memory import size
from sinkviz.plots._labels import label_ends
from sinkviz.plots._parts import points, title
from sinkviz.plots.runs import running_mean
from sinkviz.policies import Policy, Window
from sinkviz.records import Turn
from sinkviz.style import ink, paper, policy_name, policy_styles

SHOWN_TURNS = 8


def grid_chat(turns: Iterable[Turn], *, window: int = SHOWN_TURNS) -> Figure:
    """Draw a new figure of a chat: nll of the questions above, bytes of the cache below.

    A faint point per question, and the running mean as a line. Every policy hears the same
    questions, so they share the axis; one that was stopped ends early, with a cross.

    Args:
        turns: as ``chat`` yields them; those still being answered are left out.
        window: questions that a point of the line is the mean of, the latest and earlier ones.

    Returns:
        The figure.

    Raises:
        ValueError: no question was read to its end, or ``window`` is below 1.

    Example:
        >>> from sinkviz.policies import Dense
        >>> pair = [Turn(Dense(), n, "?", "!", nll, 1.0, 9, 9 * n, 0.1, 800 * n)
        ...         for n, nll in ((1, 4.0), (2, 2.0))]
        >>> top, below = grid_chat(pair).axes
        >>> top.lines[0].get_ydata().tolist(), below.lines[0].get_ydata().tolist()
        ([4.0, 3.0], [800, 1600])
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 question, got {window}")
    lanes: dict[Policy, list[Turn]] = {}
    for turn in turns:
        if turn.done:
            lanes.setdefault(turn.policy, []).append(turn)
    for policy, lane in list(lanes.items()):
        if not any(np.isfinite(turn.question_nll) for turn in lane):
            del lanes[policy]
    if not lanes:
        raise ValueError("no question was read to its end; give turns as chat yields them")
    figure, (top, below) = plt.subplots(
        2, 1, sharex=True, figsize=(8.5, 5.4), height_ratios=(3, 2), layout="constrained"
    )
    # Limits come first: names at the right edge are placed by them.
    done = [turn for lane in lanes.values() for turn in lane]
    top.set_xlim(0.5, max(turn.round for turn in done) + 0.5)
    largest = max(1, *(turn.cache_bytes for turn in done))
    below.set_ylim(-0.05 * largest, 1.12 * largest)
    heard, held = [], []
    for (policy, lane), style in zip(lanes.items(), policy_styles(lanes, top), strict=True):
        name = policy_name(policy)
        asked = [turn.round for turn in lane]
        nll = np.array([turn.question_nll for turn in lane])
        n_bytes = [turn.cache_bytes for turn in lane]
        mean = running_mean(nll, window)
        line = {**style, "marker": ""}
        top.plot(asked, mean, label=name, **line)
        dots = {"color": style["color"], "marker": style["marker"], "alpha": 0.35}
        top.scatter(asked, nll, 14, zorder=1.5, linewidths=1, **dots)
        # Caches of one size lie on each other: the window is wide under the sinks.
        wide = 2.5 if isinstance(policy, Window) else 1
        below.plot(asked, n_bytes, label=name, **{**line, "linewidth": wide * line["linewidth"]})
        if lane[-1].stopped:
            _end(top, asked[-1], mean[-1], style["color"])
            _end(below, asked[-1], n_bytes[-1], style["color"], f"{policy} stopped")
        tokens = f"{lane[-1].n_seen:,} tokens"
        heard.append((float(mean[-1]), f"{name}: {np.nanmean(nll):.2f}", style))
        held.append((float(n_bytes[-1]), f"{policy}: {size(n_bytes[-1])}, {tokens}", style))
    top.set_ylim(bottom=0)
    top.set_ylabel("nll (nats per token)")
    below.set_ylabel("cache (bytes)")
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    below.set_xlabel("questions asked")
    below.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    for ax in (top, below):
        ax.spines[["top", "right"]].set_visible(False)
    title(top, f"nll of the questions (mean of the last {window})", label_ends(top, heard, "mean"))
    title(below, "memory of the cache", label_ends(below, held, "in the end"))
    return figure


def _end(ax: Axes, x: float, y: float, colour: str, text: str = "") -> None:
    """Mark where a curve ends for good, and say so."""
    across = x / ax.get_xlim()[1]
    ax.plot(x, y, "X", color=colour, markersize=9, markeredgecolor=paper(ax), zorder=4)
    ax.annotate(
        text,
        (x, y),
        xytext=(8 if across < 0.6 else -8, 0),
        textcoords="offset points",
        ha="left" if across < 0.6 else "right",
        va="center",
        color=ink(ax),
        fontsize=points("legend.fontsize"),
    )
