"""ALiBi: what distance costs in each head.

Knows nothing about models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinkviz.plots._parts import axes_or_new, hatched_ground, label_ends, points, title
from sinkviz.positions import alibi_bias, alibi_slopes
from sinkviz.style import BIAS_SCALE, COLOURS, bias_map, bias_norm

MOST_LABELS = 12


def _slope(slope: float) -> str:
    """Return a slope as students read it: 1/4 where it is one, otherwise three digits."""
    inverse = 1 / slope
    return f"1/{round(inverse)}" if abs(inverse - round(inverse)) < 1e-4 else f"{slope:.3g}"


def _checked(n_heads: int, length: int) -> np.ndarray:
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    return alibi_slopes(n_heads).numpy()


def plot_alibi(n_heads: int = 8, length: int = 32, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the ALiBi bias of every head against the distance to the key.

    Args:
        n_heads: heads, at least 1; with more than 12, every n-th line is labelled.
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
    slopes = _checked(n_heads, length)
    distance = torch.arange(length)
    bias = alibi_bias(torch.from_numpy(slopes), distance).numpy()
    ax = axes_or_new(ax)
    style = {"color": COLOURS["recent"], "linewidth": 1.8}
    for head in range(n_heads):
        ax.plot(distance.numpy(), bias[head], label=f"head {head}", **style)
    ax.set_xlim(0, length - 1)
    ax.set_ylim(bias.min() * 1.03, -bias.min() * 0.03)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.set(xlabel="distance from query back to key (tokens)", ylabel="bias on the score (nats)")
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, f"ALiBi, {n_heads} heads: bias = -slope x distance")
    named = np.unique(np.linspace(0, n_heads - 1, min(n_heads, MOST_LABELS)).round().astype(int))
    label_ends(
        ax,
        [(bias[head, -1], f"head {head}: {_slope(slopes[head])}", style) for head in named],
        header="slope",
    )
    return ax


def grid_alibi(n_heads: int = 8, length: int = 32) -> Figure:
    """Draw the ALiBi bias matrix of every head in a figure of its own, on one colour scale.

    Args:
        n_heads: heads, 1 to 32.
        length: tokens of the text, at least 2.

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
    slopes = _checked(n_heads, length)
    if n_heads > 32:
        raise ValueError(f"n_heads must be at most 32 for matrices, got {n_heads}; use plot_alibi")
    position = torch.arange(length)
    distance = position[:, None] - position
    bias = alibi_bias(torch.from_numpy(slopes), distance).numpy()
    future = distance.numpy() < 0
    columns = min(4 if n_heads <= 12 else 8, n_heads)
    rows = -(-n_heads // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=True,
        sharey=True,
        figsize=(1.2 + 1.7 * columns, 0.7 + 1.8 * rows),
        layout="constrained",
    )
    largest = float(slopes.max() * (length - 1))
    norm = bias_norm(largest, linear=min(2.0**-4, largest / 2))
    for head, ax in enumerate(grid.flat):
        if head >= n_heads:
            ax.set_visible(False)
            continue
        hatched_ground(ax)
        cells = np.ma.masked_array(bias[head], mask=future)
        image = ax.imshow(cells, cmap=bias_map(), norm=norm, interpolation="nearest")
        title(ax, f"head {head}: {_slope(slopes[head])}")
        ax.set_xticks([0, length - 1])
        ax.set_yticks([0, length - 1])
    figure.supxlabel("key (text position, tokens)", fontsize=points("axes.labelsize"))
    figure.supylabel("query (text position, tokens)", fontsize=points("axes.labelsize"))
    figure.suptitle("ALiBi: slope of each head", fontsize=points("axes.titlesize"))
    bar = figure.colorbar(
        image,
        ax=list(grid.flat),
        label=f"bias (nats, {BIAS_SCALE})",
        fraction=0.03,
        aspect=30,
    )
    bar.outline.set_visible(False)
    # The map is centred on 0, and no bias is positive: show the half that occurs.
    bar.ax.set_ylim(-largest, 0)
    return figure
