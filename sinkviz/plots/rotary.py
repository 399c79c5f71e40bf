"""Rotary positions: how far each pair of coordinates turns with distance, and what they sum to.

Knows nothing about models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from sinkviz.plots._parts import (
    axes_or_new,
    bar_ticks,
    bare,
    check_width,
    narrow,
    number,
    points,
    title,
)
from sinkviz.positions import rotary_frequencies
from sinkviz.style import COLOURS, DASHED, bias_map, bias_norm, faint, ink, line_scale

MOST_WHEELS = 8
MOST_COLUMNS = 1024


def _frequencies(dimension: int, theta: float, length: int) -> Float[np.ndarray, " pair"]:
    if dimension < 2:
        raise ValueError(f"dimension must be at least 2 coordinates, got {dimension}")
    if theta <= 1:
        raise ValueError(f"theta must be above 1, got {theta:g}")
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    return rotary_frequencies(dimension, theta).double().numpy()


def _mark_training(ax: Axes, train_length: int | None, length: int) -> None:
    if train_length is None or not 0 < train_length < length:
        return
    ax.axvline(train_length, color=ink(ax), linewidth=1.0, linestyle=":")
    late = train_length > 0.6 * length
    ax.annotate(
        f"training length ({train_length})",
        (train_length, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if late else 3, -2),
        textcoords="offset points",
        ha="right" if late else "left",
        va="top",
        fontsize=0.85 * points("legend.fontsize"),
    )


def plot_rotary(
    dimension: int = 32,
    length: int = 256,
    *,
    theta: float = 10_000.0,
    train_length: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw in one Axes what rotary positions do to the score of an equal query and key.

    Each pair of coordinates adds the cosine of its phase; the line is their mean, 1 at distance 0.

    Args:
        dimension: rotated coordinates of a head, even.
        length: distances 0 to ``length - 1``, tokens; at least 2.
        theta: base of the frequencies.
        train_length: training length of a model, marked by a thin line, tokens.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: ``dimension`` is odd or below 2, ``length`` below 2, or ``theta`` not above 1.

    Source: Su et al. 2021, arXiv 2104.09864, section 3.4.3.

    Example:
        >>> line = plot_rotary(dimension=2, length=3).lines[0]
        >>> line.get_ydata().round(3).tolist()  # cos 0, cos 1, cos 2
        [1.0, 0.54, -0.416]
    """
    frequencies = _frequencies(dimension, theta, length)
    distance = np.arange(length)
    total = np.cos(distance[:, None] * frequencies).mean(1)
    ax = axes_or_new(ax)
    ax.plot(distance, total, color=COLOURS["recent"], linewidth=1.8 * line_scale(ax))
    ax.axhline(0, color=ink(ax), linestyle=DASHED, linewidth=1.0 * line_scale(ax), zorder=1.5)
    ax.set(xlim=(0, length - 1), ylim=(min(-0.15, 1.1 * total.min()), 1.05))
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.set_xlabel("distance to the key (tokens)")
    ax.set_ylabel("mean of the cosines" if narrow(ax) else "score of equal vectors (of 1)")
    ax.spines[["top", "right"]].set_visible(False)
    _mark_training(ax, train_length, length)
    title(ax, f"rotary: {len(frequencies)} pairs, theta {theta:,.0f}")
    return ax


def grid_rotary(
    dimension: int = 32,
    length: int = 256,
    *,
    theta: float = 10_000.0,
    distance: int = 16,
    train_length: int | None = None,
    width: float | None = None,
) -> Figure:
    """Draw rotary positions in a figure of its own: wheels, phases and their sum.

    Above, a wheel for each of some pairs: a dot for every distance up to ``distance``, a hand at
    the last. In the middle the cosine of every pair's phase at every distance; pairs below the
    dashed line do not turn once within ``length``. Below, the mean over the pairs.

    Args:
        dimension: rotated coordinates of a head, even.
        length: distances 0 to ``length - 1``, tokens; at least 2.
        theta: base of the frequencies.
        distance: where the hands of the wheels stand, tokens.
        train_length: training length of a model, marked by a thin line, tokens.
        width: of the figure, inches; 9 where not given.

    Returns:
        The figure.

    Raises:
        ValueError: ``dimension`` is odd or below 2, ``length`` below 2, ``theta`` not above 1, or
            ``distance`` below 1.

    Source: Su et al. 2021, arXiv 2104.09864, section 3.2.2.

    Example:
        >>> figure = grid_rotary(dimension=4, length=8)
        >>> [ax.get_title() for ax in figure.axes[:2]]
        ['6.28', '628']
    """
    frequencies = _frequencies(dimension, theta, length)
    if distance < 1:
        raise ValueError(f"distance must be at least 1 token, got {distance}")
    width = 9.0 if width is None else check_width(width)
    most = MOST_WHEELS if width > 5 else MOST_WHEELS // 2
    chosen = np.unique(np.linspace(0, len(frequencies) - 1, min(most, len(frequencies))).round())
    shares = (
        0.9 * (width - 0.8) / max(len(chosen), 4) + 0.4,
        0.2 * width + 0.5,
        0.17 * width + 0.6,
    )
    figure = plt.figure(figsize=(width, sum(shares) + 0.4), layout="constrained")
    above, below = figure.add_gridspec(2, 1, height_ratios=(shares[0], sum(shares[1:])))
    wheels = above.subgridspec(1, len(chosen))
    for spot, pair in zip(wheels, chosen.astype(int).tolist(), strict=True):
        _wheel(figure.add_subplot(spot), float(frequencies[pair]), pair, distance)
    heading = f"rotary, theta {theta:,.0f}: tokens per turn; hands at distance {distance}"
    figure.suptitle(heading, fontsize=points("axes.titlesize") * min(1.0, 0.75 + width / 40))
    rows = below.subgridspec(2, 1, height_ratios=shares[1:])
    phases, total = figure.add_subplot(rows[0]), figure.add_subplot(rows[1])
    _phases(phases, frequencies, length)
    plot_rotary(dimension, length, theta=theta, train_length=train_length, ax=total)
    title(total, "their mean: the score of equal vectors")
    total.set_ylabel("mean cosine")
    for ax in (phases, total):
        ax.set_xlim(-0.5, length - 0.5)
    phases.set_xticks(total.get_xticks()[(total.get_xticks() >= 0) & (total.get_xticks() < length)])
    phases.tick_params(labelbottom=False)
    bar = figure.colorbar(phases.images[0], ax=[phases, total], fraction=0.03, aspect=25)
    bar.set_label("cosine of the phase")
    bar_ticks(bar, [-1, -0.5, 0, 0.5, 1])
    return figure


def _wheel(ax: Axes, frequency: float, pair: int, distance: int) -> None:
    """Draw one pair's phase at every distance up to the last, clockwise from above."""
    phase = frequency * np.arange(distance + 1)
    x, y = np.sin(phase), np.cos(phase)
    ax.add_patch(Circle((0, 0), 1, facecolor="none", edgecolor=faint(ax, 0.35), linewidth=1.0))
    ax.plot([0, 0], [0, 1], color=faint(ax, 0.5), linewidth=1.0, linestyle=DASHED)
    dots = {"marker": "o", "linestyle": "", "markersize": 3.0, "markeredgewidth": 0}
    ax.plot(x, y, color=COLOURS["evicted"], **dots)
    ax.plot([0, x[-1]], [0, y[-1]], color=COLOURS["recent"], linewidth=2.0, solid_capstyle="round")
    ax.plot(x[-1:], y[-1:], **{**dots, "markersize": 6.0}, color=COLOURS["recent"])
    ax.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[], yticks=[])
    bare(ax)
    ax.set_xlabel(f"pair {pair}")
    ax.set_title(number(2 * np.pi / frequency), fontsize=points("axes.labelsize"))


def _phases(ax: Axes, frequencies: Float[np.ndarray, " pair"], length: int) -> None:
    """Draw the cosine of every pair's phase at every distance."""
    distance = np.unique(np.linspace(0, length - 1, min(length, MOST_COLUMNS)).round())
    ax.imshow(
        np.cos(frequencies[:, None] * distance),
        aspect="auto",
        interpolation="nearest",
        cmap=bias_map(ax),
        norm=bias_norm(1.0),
        extent=(-0.5, length - 0.5, len(frequencies) - 0.5, -0.5),
    )
    bare(ax)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_ylabel("pair")
    turning = int((2 * np.pi / frequencies < length).sum())
    if turning < len(frequencies):
        ax.axhline(turning - 0.5, color=ink(ax), linestyle=DASHED, linewidth=1.2)
    title(ax, f"{turning} of {len(frequencies)} pairs turn within {length} tokens")
