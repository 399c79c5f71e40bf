"""ALiBi: what distance costs in each head.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinkviz.plots._labels import label_ends, legend
from sinkviz.plots._parts import (
    axes_or_new,
    bar_ticks,
    colour_bar,
    count_ticks,
    draw_cells,
    label_values,
    map_grid_labels,
    panels,
    points,
    size_in_points,
    title,
)
from sinkviz.positions import alibi_bias, alibi_slopes
from sinkviz.style import COLOURS, LOG_SCALE, bias_map, bias_norm, line_scale

MOST_LABELS = 8


def _slope(slope: float) -> str:
    """Return a slope as students read it: 1/4 where it is one, otherwise three digits."""
    inverse = 1 / slope
    return f"1/{round(inverse)}" if abs(inverse - round(inverse)) < 1e-4 else f"{slope:.3g}"


def _checked_slopes(n_heads: int, length: int) -> Float[np.ndarray, " head"]:
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    return alibi_slopes(n_heads).numpy()


def plot_alibi(n_heads: int = 8, length: int = 32, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the ALiBi bias of every head against the distance to the key.

    Args:
        n_heads: heads, at least 1; with more than 8, every n-th line is labelled.
        length: distances 0 to ``length - 1``, tokens; at least 2.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: ``n_heads`` is below 1 or ``length`` below 2.

    Source: Press et al. 2021, arXiv 2108.12409, section 3.

    Example:
        >>> ax = plot_alibi(n_heads=2, length=3)
        >>> [line.get_ydata().tolist() for line in ax.lines]
        [[-0.0, -0.0625, -0.125], [-0.0, -0.00390625, -0.0078125]]
    """
    slopes = _checked_slopes(n_heads, length)
    distance = torch.arange(length)
    bias = alibi_bias(torch.from_numpy(slopes), distance).numpy()
    ax = axes_or_new(ax)
    style = {"color": COLOURS["recent"], "linewidth": 1.8 * line_scale(ax)}
    for head in range(n_heads):
        ax.plot(distance.numpy(), bias[head], label=f"head {head}", **style)
    ax.set_xlim(0, length - 1)
    ax.set_ylim(bias.min() * 1.03, -bias.min() * 0.03)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.set(xlabel="distance to the key (tokens)", ylabel="bias on the score (nats)")
    ax.spines[["top", "right"]].set_visible(False)
    named = np.unique(np.linspace(0, n_heads - 1, min(n_heads, MOST_LABELS)).round().astype(int))
    ends = [
        (float(bias[head, -1]), f"{head}: {_slope(float(slopes[head]))}", style) for head in named
    ]
    above = label_ends(ax, ends, header="head: slope")
    title(ax, f"ALiBi, {n_heads} heads: bias = −slope × distance", above)
    return ax


def plot_alibi_slopes(n_heads: int = 8, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the ALiBi slope of every head, and how far the head reaches.

    The axis is logarithmic. Where the slopes follow the rule for a power of two the marks are
    round; the heads that are added to it for other numbers are square.

    Args:
        n_heads: heads, at least 1; each is labelled where there are 16 or fewer.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: ``n_heads`` is below 1.

    Source: Press et al. 2021, arXiv 2108.12409, section 3.

    Example:
        >>> ax = plot_alibi_slopes(2)
        >>> ax.lines[0].get_ydata().tolist()
        [0.0625, 0.00390625]
    """
    slopes = alibi_slopes(n_heads).numpy()
    power = 2 ** int(np.log2(n_heads))
    ax = axes_or_new(ax)
    scale = line_scale(ax)
    low, high = slopes.min() / 1.6, slopes.max() * 1.6
    look = {"color": COLOURS["recent"], "markersize": 7 * scale, "linestyle": "", "zorder": 3}
    rule, added = f"slopes of {power} heads", f"every second of {2 * power}"
    parts = ((slice(0, power), "o", rule), (slice(power, n_heads), "s", added))
    for part, marker, name in parts:
        head = np.arange(n_heads)[part]
        if len(head):
            ax.plot(head, slopes[part], marker=marker, label=name, **look)
            ax.vlines(head, low, slopes[part], color=COLOURS["recent"], linewidth=1.6 * scale)
    ax.set_yscale("log", base=2)
    ax.set(xlim=(-0.6, n_heads - 0.4), ylim=(low, high))
    ax.set_xlabel("head")
    label_values(ax.yaxis, "slope (nats per token)")
    count_ticks(ax.xaxis, n_heads)
    ax.yaxis.set_major_formatter(lambda slope, _: _slope(slope).removesuffix("/1"))
    ax.spines[["top", "right"]].set_visible(False)
    size = min(points("legend.fontsize"), 0.22 * size_in_points(ax)[0] / n_heads)
    if n_heads <= 16 and size > 4:
        for head, slope in enumerate(slopes.tolist()):
            ax.annotate(
                _slope(slope),
                (head, slope),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=size,
            )
    reach = f"{1 / slopes.max():.3g} to {1 / slopes.min():.3g}"
    above = legend(ax, ax.lines, above=True) if power < n_heads else 0.0
    title(ax, f"ALiBi, {n_heads} heads: one nat is {reach} tokens away", above)
    return ax


def plot_alibi_bias(
    head: int = 0, n_heads: int = 8, length: int = 32, *, ax: Axes | None = None
) -> Axes:
    """Draw in one Axes the ALiBi bias matrix of one head: rows are queries, columns are keys.

    Args:
        head: 0-based; negative counts from the end.
        n_heads: heads, at least 1.
        length: tokens of the text, at least 2.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        IndexError: there is no such head.
        ValueError: ``n_heads`` is below 1 or ``length`` below 2.

    Source: Press et al. 2021, arXiv 2108.12409, figure 3.

    Example:
        >>> ax = plot_alibi_bias(head=0, n_heads=2, length=2)
        >>> ax.images[0].get_array().tolist()  # the future is masked
        [[-0.0, None], [-0.0625, -0.0]]
    """
    slopes = _checked_slopes(n_heads, length)
    if not -n_heads <= head < n_heads:
        raise IndexError(f"head must be in 0..{n_heads - 1}, got {head}")
    slope = float(slopes[head])
    largest = slope * (length - 1)
    ax = axes_or_new(ax)
    image = draw_cells(
        ax, _matrices(slopes, length)[head], cmap=bias_map(ax), norm=bias_norm(largest)
    )
    ax.set(xlabel="key (text position, tokens)", ylabel="query (text position, tokens)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    shown = [float(f"{one:.3g}") for one in np.linspace(-largest, 0, 5)]
    bar = colour_bar(ax, image, "bias (nats)", shown)
    bar.ax.set_ylim(-largest, 0)
    clear = points("ytick.labelsize") / 3
    title(ax, f"ALiBi, head {head % n_heads} of {n_heads}: slope {_slope(slope)}", clear)
    return ax


def _matrices(slopes: Float[np.ndarray, " head"], length: int) -> np.ma.MaskedArray:
    """Return the bias of every head, (head, query, key) in nats, the future masked."""
    position = torch.arange(length)
    distance = position[:, None] - position
    bias = alibi_bias(torch.from_numpy(slopes), distance).numpy()
    return np.ma.masked_array(bias, mask=np.broadcast_to(distance.numpy() < 0, bias.shape))


def grid_alibi(n_heads: int = 8, length: int = 32, *, width: float | None = None) -> Figure:
    """Draw the ALiBi bias matrix of every head in a figure of its own, on one colour scale.

    Args:
        n_heads: heads, 1 to 32.
        length: tokens of the text, at least 2.
        width: of the figure, inches; as wide as its panels need where not given.

    Returns:
        The figure.

    Raises:
        ValueError: ``n_heads`` is not in 1..32 or ``length`` is below 2.

    Source: Press et al. 2021, arXiv 2108.12409, figure 3.

    Example:
        >>> figure = grid_alibi(n_heads=2, length=4)
        >>> [ax.get_title(loc="left") for ax in figure.axes[:2]]
        ['head 0: 1/16', 'head 1: 1/256']
    """
    slopes = _checked_slopes(n_heads, length)
    if n_heads > 32:
        raise ValueError(f"n_heads must be at most 32 for matrices, got {n_heads}; use plot_alibi")
    figure, axes = panels(n_heads, width=width)
    largest = float(slopes.max() * (length - 1))
    linear = min(2.0**-4, largest / 2)
    norm = bias_norm(largest, linear=linear)
    for head, (ax, cells) in enumerate(zip(axes, _matrices(slopes, length), strict=True)):
        image = draw_cells(ax, cells, cmap=bias_map(ax), norm=norm)
        title(ax, f"head {head}: {_slope(float(slopes[head]))}")
        ax.set(xticks=[0, length - 1], yticks=[0, length - 1])
    heading = "ALiBi: slope of each head"
    bar = map_grid_labels(figure, heading, image, f"bias (nats, {LOG_SCALE})")
    steps = linear * 4.0 ** np.arange(np.floor(np.log2(largest / linear) / 2) + 1)
    bar_ticks(bar, [0.0, *-steps, -largest])
    # The map is centred on 0, and no bias is positive: show the half that occurs.
    bar.ax.set_ylim(-largest, 0)
    return figure
