"""Where attention goes in total: the sink of every head, the mass of every role.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
import seaborn
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch

from sinkviz.metrics import ROLES, SINK_EPSILON
from sinkviz.plots._labels import legend
from sinkviz.plots._parts import (
    MOST_TOKEN_TICKS,
    axes_or_new,
    bar_axes,
    bar_label,
    bar_ticks,
    bare,
    count_ticks,
    short,
    size_in_points,
    title,
    token_ticks,
)
from sinkviz.records import Trace
from sinkviz.style import (
    ATTENTION_SCALE,
    ATTENTION_TICKS,
    STACK,
    attention_map,
    attention_norm,
    role_style,
)


def plot_sink_map(
    trace: Trace, *, key: int = 0, epsilon: float = SINK_EPSILON, ax: Axes | None = None
) -> Axes:
    """Draw in one Axes how much attention each head gives to one key: layers down, heads across.

    Heads above ``epsilon`` are framed, and the title counts them. With 12 heads or fewer per
    layer, and as few layers, cells hold their share in per cent.

    Args:
        trace: maps or statistics.
        key: text position of the candidate sink, tokens.
        epsilon: threshold of a sink, share in [0, 1].
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        IndexError: the text has no such key.
        ValueError: the received attention is not (layer, head, key).

    Source: Gu et al. 2024, arXiv 2410.10781, equation 7 (sink rate).

    Example:
        >>> trace = Trace(
        ...     ("<|begin|>", "Once"), np.array([0, 7]), entropy=np.zeros((1, 2, 2)),
        ...     received=np.array([[[0.9, 0.1], [0.2, 0.8]]]), mass=np.zeros((1, 2, 2, 5)),
        ... )
        >>> plot_sink_map(trace).get_title(loc="left")
        'sink rate 50 %: 1 of 2 heads above 0.3'
    """
    if trace.received.ndim != 3:
        raise ValueError(f"received must be (layer, head, key), got shape {trace.received.shape}")
    length = trace.received.shape[-1]
    if not -length <= key < length:
        raise IndexError(f"key must be a text position in 0..{length - 1}, got {key}")
    shares = np.asarray(trace.received[..., key], dtype=float)
    layers, heads = shares.shape
    above = shares > epsilon
    ax = axes_or_new(ax)
    room = min(size / n for size, n in zip(size_in_points(ax), (heads, layers), strict=True))
    seaborn.heatmap(
        shares,
        ax=ax,
        cmap=attention_map(ax),
        norm=attention_norm(),
        annot=np.round(100 * shares) if max(layers, heads) <= 12 and room > 12 else None,
        fmt=".0f",
        annot_kws={"size": min(10.0, 0.42 * room)},
        xticklabels=False,
        yticklabels=False,
        linewidths=0.5 if room > 8 else 0,
        linecolor=ax.get_facecolor(),
        cbar_ax=bar_axes(ax),
    )
    bar = ax.collections[0].colorbar
    bar_ticks(bar, ATTENTION_TICKS)
    bar_label(bar, f"received attention (mean share, {ATTENTION_SCALE})", size_in_points(ax)[1])
    _frame(ax, above, room)
    bar.ax.axhline(epsilon, color="black", linewidth=1.6)
    bar.ax.axhline(epsilon, color="white", linewidth=0.6)
    ax.set(xlabel="head", ylabel="layer")
    bare(ax)
    count_ticks(ax.xaxis, heads, offset=0.5)
    count_ticks(ax.yaxis, layers, offset=0.5)
    whom = "" if key == 0 else f" for token {key % length} ({short(trace.tokens[key])})"
    title(
        ax,
        f"sink rate {above.mean() * 100:.0f} %{whom}: "
        f"{above.sum()} of {above.size} heads above {epsilon:g}",
    )
    return ax


def _frame(ax: Axes, marked: Bool[np.ndarray, "layer head"], room: float) -> None:
    """Draw a line around the marked cells, dark in light so that it shows on every colour."""
    padded = np.pad(marked, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    lines = [[(x, y), (x + 1, y)] for y, x in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    lines += [[(x, y), (x, y + 1)] for y, x in zip(rows, columns, strict=True)]
    width = float(np.clip(room / 12, 0.7, 2.2))
    for colour, extra in (("white", min(1.6, width)), ("black", 0.0)):
        ax.add_collection(
            LineCollection(
                lines,
                colors=colour,
                linewidths=width + extra,
                capstyle="projecting",
                clip_on=False,
                zorder=3,
            ),
            autolim=False,
        )


def plot_mass(trace: Trace, *, over: str = "layers", ax: Axes | None = None) -> Axes:
    """Draw in one Axes how attention divides among the roles of the keys, stacked to one.

    Shares are means over heads, and over the queries of a layer or the layers of a query. The
    stack follows the text from bottom to top; what goes nowhere (``null``) ends it, hatched.

    Args:
        trace: maps or statistics.
        over: ``layers``, one bar per layer; or ``tokens``, one bar per query, an area where there
            are more than 40.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: ``over`` is something else, or the mass has not one share per role.

    Example:
        >>> trace = Trace(
        ...     ("<|begin|>", "Once"), np.array([0, 7]), entropy=np.zeros((1, 1, 2)),
        ...     received=np.zeros((1, 1, 2)), n_sink=1,
        ...     mass=np.array([[[[0.0, 0.0, 0.0, 1.0, 0.0], [0.8, 0.0, 0.0, 0.2, 0.0]]]]),
        ... )
        >>> plot_mass(trace).get_title(loc="left")
        'the first token takes 40 % of the attention'
    """
    if over not in ("layers", "tokens"):
        raise ValueError(f"over must be 'layers' or 'tokens', got {over!r}")
    if trace.mass.ndim != 4 or trace.mass.shape[-1] != len(ROLES):
        raise ValueError(
            f"mass must be (layer, head, query, role) with the roles {', '.join(ROLES)}, "
            f"got shape {trace.mass.shape}"
        )
    axis = (1, 2) if over == "layers" else (0, 1)
    shares = trace.mass.mean(axis, dtype=float)
    ax = axes_or_new(ax)
    places = np.arange(len(shares))
    bars = over == "layers" or len(shares) <= MOST_TOKEN_TICKS
    bottom = np.zeros(len(shares))
    handles = []
    for role in STACK:
        height = shares[:, ROLES.index(role)]
        if not (height > 5e-4).any():
            continue
        look = role_style(role, ax)
        label = _role_label(role, trace)
        if bars:
            ax.bar(places, height, width=0.86, bottom=bottom, label=label, **look)
        else:
            ax.fill_between(places, bottom, bottom + height, label=label, **look)
        handles.append(Patch(label=label, **look))
        bottom = bottom + height
    above = legend(ax, handles[::-1])  # in the order of the stack
    ax.set(ylim=(0, 1), yticks=np.linspace(0, 1, 6), ylabel="mean share of attention")
    ax.spines[["top", "right"]].set_visible(False)
    if over == "layers":
        ax.set_xlabel("layer")
        count_ticks(ax.xaxis, len(shares))
    else:
        token_ticks(ax.xaxis, trace.tokens, what="query")
    ax.set_xlim(*((-0.6, len(shares) - 0.4) if bars else (0, len(shares) - 1)))
    taken = shares[:, ROLES.index("sink")].mean() * 100
    first = "first token takes" if trace.n_sink == 1 else f"first {trace.n_sink} tokens take"
    title(ax, f"the {first} {taken:.0f} % of the attention", above)
    return ax


def _role_label(role: str, trace: Trace) -> str:
    sizes = {
        "sink": "sink (first token)" if trace.n_sink == 1 else f"sink (first {trace.n_sink})",
        "recent": f"recent (last {trace.n_recent})",
        "null": "null (nowhere)",
    }
    return sizes.get(role, role)
