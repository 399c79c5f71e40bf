"""Attention maps: one head, the heads of a layer, the whole model.

Knows nothing about models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from sinkviz.plots._parts import (
    axes_or_new,
    bar_ticks,
    bare,
    colour_bar,
    draw_cells,
    map_grid_labels,
    panels,
    title,
    token_ticks,
)
from sinkviz.records import Trace
from sinkviz.style import ATTENTION_SCALE, ATTENTION_TICKS, attention_map, attention_norm, paper

MOST_CELLS = 160
MOST_THUMBNAIL_CELLS = 48


def _head_map(trace: Trace, layer: int, head: int, hide: int = 0) -> np.ma.MaskedArray:
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


def _shrunk(weights: np.ma.MaskedArray, most: int) -> tuple[np.ma.MaskedArray, int]:
    """Return a map of at most ``most`` cells a side, each the largest weight of its block.

    A sink is one column wide: averaged with its neighbours, or skipped, it would be lost.
    """
    size = -(-len(weights) // most)
    blocks = -(-len(weights) // size)
    padded = np.full((blocks * size, blocks * size), -1.0)
    padded[: len(weights), : len(weights)] = weights.filled(-1.0)
    largest = padded.reshape(blocks, size, blocks, size).max((1, 3))
    return np.ma.masked_less(largest, 0), size


def _share(trace: Trace, layer: int, head: int, n: int = 1) -> float:
    """Return the mean attention that the first ``n`` keys together get from later queries."""
    if n == 1:
        return float(trace.received[layer, head, 0])
    weights = np.asarray(trace.map(layer, head), dtype=float)
    return float(weights[n:, :n].sum(-1).mean())


def _draw(ax: Axes, cells: np.ma.MaskedArray, extent: tuple[float, ...]) -> AxesImage:
    return draw_cells(ax, cells, cmap=attention_map(ax), norm=attention_norm(), extent=extent)


def plot_attention(
    trace: Trace, *, layer: int = 0, head: int = 0, hide: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw the attention map of one head in one Axes: rows are queries, columns are keys.

    The future is hatched. All maps share one colour scale, the square root of the share from 0
    to 1. A map of more than 160 tokens is drawn in square blocks, each with its largest weight.

    Args:
        trace: holds the map of that head.
        layer: 0-based; negative counts from the end.
        head: 0-based; negative counts from the end.
        hide: first tokens to leave out, tokens; the rest of each row is rescaled to one.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        IndexError: there is no such layer or head.
        ValueError: the trace kept no such map, the map does not fit the tokens, or ``hide``
            leaves nothing.

    Example:
        >>> attention = np.array([[[[1.0, 0.0], [0.9, 0.1]]]])
        >>> trace = Trace(
        ...     ("<|begin|>", "Once"), np.array([0, 7]), attention=attention,
        ...     received=np.array([[[0.95, 0.1]]]), entropy=np.zeros((1, 1, 2)),
        ...     mass=np.zeros((1, 1, 2, 5)),
        ... )
        >>> plot_attention(trace, layer=0, head=0).get_title(loc="left")
        'layer 0, head 0: the first token takes 95 %'
    """
    weights = _head_map(trace, layer, head, hide)
    cells, block = _shrunk(weights, MOST_CELLS)
    layer, head = layer % trace.n_layers, head % trace.n_heads
    taken = _share(trace, layer, head, max(1, hide))
    first = "first token" if hide < 2 else f"first {hide} tokens"
    ax = axes_or_new(ax)
    edge = hide - 0.5 + block * len(cells)
    image = _draw(ax, cells, (hide - 0.5, edge, edge, hide - 0.5))
    label = f"attention (share, {ATTENTION_SCALE})"
    if hide:
        title(ax, f"layer {layer}, head {head} without the {first}: {(1 - taken) * 100:.0f} % left")
        label = f"share of the rest ({ATTENTION_SCALE})"
    else:
        title(ax, f"layer {layer}, head {head}: the {first} takes {taken * 100:.0f} %")
    if block > 1:
        label = f"largest in {block} x {block} tokens ({ATTENTION_SCALE})"
    colour_bar(ax, image, label, ATTENTION_TICKS)
    token_ticks(ax.xaxis, trace.tokens[hide:], what="key", first=hide)
    token_ticks(ax.yaxis, trace.tokens[hide:], what="query", first=hide)
    return ax


def grid_attention(trace: Trace, layer: int | None = None) -> Figure:
    """Draw small attention maps side by side in a figure of its own, on one colour scale.

    With ``layer`` (or a trace that kept chosen heads) each head has a panel and its share for the
    first token; otherwise the figure is one mosaic, layers down and heads across.

    Args:
        trace: holds maps.
        layer: 0-based; all layers where not given.

    Returns:
        The figure.

    Raises:
        IndexError: there is no such layer.
        ValueError: the trace kept no maps (of that layer).

    Example:
        >>> attention = np.array([[[[1.0, 0.0], [0.9, 0.1]]]])
        >>> trace = Trace(
        ...     ("<|begin|>", "Once"), np.array([0, 7]), attention=attention,
        ...     received=np.array([[[0.95, 0.1]]]), entropy=np.zeros((1, 1, 2)),
        ...     mass=np.zeros((1, 1, 2, 5)),
        ... )
        >>> grid_attention(trace, layer=0).axes[0].get_title(loc="left")
        'head 0: 95 %'
    """
    if layer is not None and not -trace.n_layers <= layer < trace.n_layers:
        raise IndexError(f"layer must be in 0..{trace.n_layers - 1}, got {layer}")
    if trace.heads is None:
        if layer is None:
            return _mosaic(trace)
        pairs = [(layer % trace.n_layers, head) for head in range(trace.n_heads)]
    else:
        kept = [tuple(pair) for pair in trace.heads]
        pairs = kept if layer is None else [p for p in kept if p[0] == layer % trace.n_layers]
        if not pairs:
            raise ValueError(f"this trace kept the maps of {kept}, none of layer {layer}")
    figure, axes = panels(len(pairs))
    length = len(trace.tokens)
    for ax, (one, head) in zip(axes, pairs, strict=True):
        cells, block = _shrunk(_head_map(trace, one, head), MOST_CELLS)
        edge = block * len(cells) - 0.5
        image = _draw(ax, cells, (-0.5, edge, edge, -0.5))
        name = f"head {head}" if layer is not None else f"layer {one}, head {head}"
        title(ax, f"{name}: {_share(trace, one, head) * 100:.0f} %")
        ax.set(xticks=[0, length - 1], yticks=[0, length - 1])
    where = "" if layer is None else f"layer {layer % trace.n_layers}: "
    heading = f"{where}share that the first token takes"
    bar = map_grid_labels(figure, heading, image, f"attention (share, {ATTENTION_SCALE})")
    bar_ticks(bar, ATTENTION_TICKS)
    return figure


def _mosaic(trace: Trace) -> Figure:
    """Draw all maps of a model as one image: a thousand Axes would take a minute to lay out."""
    layers, heads = trace.n_layers, trace.n_heads
    tiles = [
        [_shrunk(_head_map(trace, layer, head), MOST_THUMBNAIL_CELLS)[0] for head in range(heads)]
        for layer in range(layers)
    ]
    size = len(tiles[0][0])
    street = 1 + size // 16
    pitch = size + street
    shape = (layers * pitch - street, heads * pitch - street)
    mosaic = np.ma.masked_array(np.zeros(shape), mask=True)
    for layer, row in enumerate(tiles):
        for head, tile in enumerate(row):
            top, left = layer * pitch, head * pitch
            mosaic[top : top + size, left : left + size] = tile
    wide = float(np.clip(heads, 4.0, 11.0))
    figure, ax = plt.subplots(
        figsize=(wide + 1.2, wide * layers / heads + 0.9), layout="constrained"
    )
    height, width = mosaic.shape
    image = _draw(ax, mosaic, (0.0, float(width), float(height), 0.0))
    # Streets in the colour of the paper keep the tiles apart; they cover no data.
    for n, span in ((layers, ax.axhspan), (heads, ax.axvspan)):
        for one in range(1, n):
            span(one * pitch - street, one * pitch, facecolor=paper(ax), linewidth=0)
    bare(ax)
    for axis, n in ((ax.xaxis, heads), (ax.yaxis, layers)):
        shown = range(0, n, 1 + n // 24)
        axis.set_ticks([one * pitch + size / 2 for one in shown], [str(one) for one in shown])
    ax.set(xlabel="head (columns of a tile: keys)", ylabel="layer (rows of a tile: queries)")
    title(ax, f"attention maps of {layers} x {heads} heads, {len(trace.tokens)} tokens")
    colour_bar(ax, image, f"attention (share, {ATTENTION_SCALE})", ATTENTION_TICKS)
    return figure
