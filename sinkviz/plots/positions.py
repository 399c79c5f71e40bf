"""Position schemes: what each tells a model of a position or a distance, up to a length.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from sinkviz.plots._parts import axes_or_new, title
from sinkviz.plots.alibi import plot_alibi
from sinkviz.plots.rotary import plot_rotary
from sinkviz.positions import sinusoidal_table, t5_bucket
from sinkviz.style import COLOURS, ink, role_style

SCHEMES = ("rope", "alibi", "sinusoidal", "learned", "t5", "none")
N_HEADS, DIMENSION = 4, 32  # of the pictures behind the curves
N_WAVES = 5


def plot_scheme(position: str, length: int, *, train_length: int, ax: Axes | None = None) -> Axes:
    """Draw in one Axes what a position scheme tells a model, up to a length.

    What training never showed lies beyond the dotted line.

    Args:
        position: ``rope alibi sinusoidal learned t5 none``.
        length: of the text, tokens; at least 2.
        train_length: of the training texts, tokens.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: there is no such scheme, or the length is below 2.

    Example:
        >>> ax = plot_scheme("t5", 20, train_length=8)
        >>> ax.lines[0].get_ydata()[[0, 15, 16]].tolist()
        [0, 15, 16]
    """
    if position not in SCHEMES:
        raise ValueError(f"no position scheme {position!r}; known are {', '.join(SCHEMES)}")
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    ax = axes_or_new(ax)
    if position == "rope":
        return plot_rotary(DIMENSION, length, train_length=train_length, ax=ax)
    if position == "alibi":
        plot_alibi(N_HEADS, length, ax=ax)
    else:
        place = torch.arange(length)
        _DRAW[position](ax, place, train_length)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlim(0, length - 1)
    if train_length < length:
        ax.axvline(train_length, color=ink(ax), linestyle=":", linewidth=1)
    return ax


def _sinusoidal(ax: Axes, place: torch.Tensor, train_length: int) -> None:
    table = sinusoidal_table(place, DIMENSION)[:, : DIMENSION // 2].numpy()
    pairs = np.linspace(0, DIMENSION // 2 - 1, N_WAVES).round().astype(int)
    for row, pair in enumerate(pairs):
        ax.plot(place.numpy(), 0.42 * table[:, pair] - row, color=COLOURS["recent"], linewidth=1)
    ax.set_yticks(-np.arange(N_WAVES), [f"{pair}" for pair in pairs])
    ax.set(xlabel="text position (tokens)", ylabel="sine of pair")
    title(ax, "sinusoidal: waves added to each token")


def _learned(ax: Axes, place: torch.Tensor, train_length: int) -> None:
    known = min(train_length, len(place))
    ax.add_patch(Rectangle((0, 0), known, 1, **role_style("recent", ax)))
    if known < len(place):
        ax.add_patch(Rectangle((known, 0), len(place) - known, 1, **role_style("masked", ax)))
    ax.set(yticks=[], ylim=(0, 1.6), xlabel="text position (tokens)")
    title(ax, f"learned: {known} rows were trained, none beyond")


def _t5(ax: Axes, place: torch.Tensor, train_length: int) -> None:
    ax.step(place.numpy(), t5_bucket(place).numpy(), where="post", color=COLOURS["recent"])
    ax.set(xlabel="distance to the key (tokens)", ylabel="bucket, with a learned bias")
    title(ax, "T5: far distances share a bucket")


def _none(ax: Axes, place: torch.Tensor, train_length: int) -> None:
    ax.plot(place.numpy(), place.numpy() + 1, color=COLOURS["recent"])
    ax.set(xlabel="text position (tokens)", ylabel="keys that the query sees")
    title(ax, "none: only the number of visible keys tells")


_DRAW = {"sinusoidal": _sinusoidal, "learned": _learned, "t5": _t5, "none": _none}
