"""Attention maps side by side: the heads of a layer, or the whole model as one mosaic.

Knows nothing about models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from sinkviz.plots._maps import draw_map, first_share, head_map, shrunk
from sinkviz.plots._parts import (
    bar_ticks,
    bare,
    check_width,
    colour_bar,
    fitting,
    map_grid_labels,
    panels,
    title,
)
from sinkviz.records import Trace
from sinkviz.style import ATTENTION_SCALE, ATTENTION_TICKS, paper

MOST_THUMBNAIL_CELLS = 48


def grid_attention(trace: Trace, layer: int | None = None, *, width: float | None = None) -> Figure:
    """Draw small attention maps side by side in a figure of its own, on one colour scale.

    With ``layer`` (or a trace that kept chosen heads) each head has a panel and its share for the
    first token; otherwise the figure is one mosaic, layers down and heads across.

    Args:
        trace: holds maps.
        layer: 0-based; all layers where not given.
        width: of the figure, inches; as wide as its maps need where not given.

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
            return _mosaic(trace, width)
        pairs = [(layer % trace.n_layers, head) for head in range(trace.n_heads)]
    else:
        kept = [tuple(pair) for pair in trace.heads]
        pairs = kept if layer is None else [p for p in kept if p[0] == layer % trace.n_layers]
        if not pairs:
            raise ValueError(f"this trace kept the maps of {kept}, none of layer {layer}")
    figure, axes = panels(len(pairs), width=width)
    length = len(trace.tokens)
    for ax, (one, head) in zip(axes, pairs, strict=True):
        cells, block = shrunk(head_map(trace, one, head))
        edge = block * len(cells) - 0.5
        image = draw_map(ax, cells, (-0.5, edge, edge, -0.5))
        name = f"head {head}" if layer is not None else f"layer {one}, head {head}"
        title(ax, f"{name}: {first_share(trace, one, head) * 100:.0f} %")
        ax.set(xticks=[0, length - 1], yticks=[0, length - 1])
    where = "" if layer is None else f"layer {layer % trace.n_layers}: "
    heading = f"{where}share that the first token takes"
    bar = map_grid_labels(figure, heading, image, f"attention (share, {ATTENTION_SCALE})")
    bar_ticks(bar, ATTENTION_TICKS)
    return figure


def _mosaic(trace: Trace, width: float | None) -> Figure:
    """Draw all maps of a model as one image: a thousand Axes would take a minute to lay out."""
    layers, heads = trace.n_layers, trace.n_heads
    tiles = [
        [shrunk(head_map(trace, layer, head), MOST_THUMBNAIL_CELLS)[0] for head in range(heads)]
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
    wide = float(np.clip(heads, 4.0, 11.0)) + 1.2 if width is None else check_width(width)
    tall = (wide - 1.2) * layers / heads + 0.9
    high = tall if width is None else fitting(wide, tall)
    figure, ax = plt.subplots(figsize=(wide, high), layout="constrained")
    high, across = map(float, mosaic.shape)
    image = draw_map(ax, mosaic, (0.0, across, high, 0.0))
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
