"""Where attention goes in total: the sink of every head, the mass of every role.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from sinkviz.metrics import ROLES, SINK_EPSILON
from sinkviz.plots._heads import draw_shares
from sinkviz.plots._labels import legend
from sinkviz.plots._parts import (
    MOST_TOKEN_TICKS,
    axes_or_new,
    count_ticks,
    short,
    title,
    token_ticks,
)
from sinkviz.plots._stack import draw_stack, role_labels
from sinkviz.records import Trace
from sinkviz.style import ATTENTION_SCALE


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
    above = shares > epsilon
    ax = axes_or_new(ax)
    bar = draw_shares(ax, shares, epsilon, f"received attention (mean share, {ATTENTION_SCALE})")
    bar.ax.axhline(epsilon, color="black", linewidth=1.6)
    bar.ax.axhline(epsilon, color="white", linewidth=0.6)
    whom = "" if key == 0 else f" for token {key % length} ({short(trace.tokens[key])})"
    title(
        ax,
        f"sink rate {above.mean() * 100:.0f} %{whom}: "
        f"{above.sum()} of {above.size} heads above {epsilon:g}",
    )
    return ax


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
    bars = over == "layers" or len(shares) <= MOST_TOKEN_TICKS
    labels = role_labels(trace.n_sink, trace.n_recent)
    above = legend(ax, draw_stack(ax, np.arange(len(shares)), shares, labels, bars=bars))
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
