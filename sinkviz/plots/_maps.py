"""Attention maps as arrays: one head, without its first keys, made small. Draws one, too.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from sinkviz.plots._parts import draw_cells
from sinkviz.records import Trace
from sinkviz.style import attention_map, attention_norm

MOST_CELLS = 160


def head_map(trace: Trace, layer: int, head: int, hide: int = 0) -> np.ma.MaskedArray:
    """Return one map, its future masked; without the first ``hide`` keys, rows rescaled to one."""
    weights = np.asarray(trace.map(layer, head), dtype=float)
    length = len(trace.tokens)
    if weights.shape != (length, length):
        raise ValueError(
            f"a map must be (query, key) = ({length}, {length}), as many as tokens, "
            f"got shape {weights.shape}"
        )
    if not 0 <= hide < length:
        raise ValueError(f"hide must leave a token: 0..{length - 1}, got {hide}")
    weights = weights[hide:, hide:]
    if hide:
        rest = weights.sum(-1, keepdims=True)
        weights = np.divide(weights, rest, out=np.zeros_like(weights), where=rest > 0)
    return np.ma.masked_array(weights, mask=np.triu(np.ones_like(weights, dtype=bool), 1))


def shrunk(weights: np.ma.MaskedArray, most: int = MOST_CELLS) -> tuple[np.ma.MaskedArray, int]:
    """Return a map of at most ``most`` cells a side, each the largest weight of its block.

    A sink is one column wide: averaged with its neighbours, or skipped, it would be lost.
    """
    size = -(-len(weights) // most)
    blocks = -(-len(weights) // size)
    padded = np.full((blocks * size, blocks * size), -1.0)
    padded[: len(weights), : len(weights)] = weights.filled(-1.0)
    largest = padded.reshape(blocks, size, blocks, size).max((1, 3))
    return np.ma.masked_less(largest, 0), size


def first_share(trace: Trace, layer: int, head: int, n: int = 1) -> float:
    """Return the mean attention that the first ``n`` keys together get from later queries."""
    if n == 1:
        return float(trace.received[layer, head, 0])
    weights = np.asarray(trace.map(layer, head), dtype=float)
    return float(weights[n:, :n].sum(-1).mean())


def draw_map(ax: Axes, cells: np.ma.MaskedArray, extent: tuple[float, ...]) -> AxesImage:
    """Draw attention cell by cell, in the colours and on the scale that all attention shares."""
    return draw_cells(ax, cells, cmap=attention_map(ax), norm=attention_norm(), extent=extent)
