"""The attention map of one head, whole or without the sink, its roles marked.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from sinkviz.plots._maps import draw_map, first_share, head_map, shrunk
from sinkviz.plots._parts import (
    MOST_TOKEN_TICKS,
    axes_or_new,
    colour_bar,
    points,
    short,
    size_in_points,
    title,
    token_ticks,
)
from sinkviz.records import Trace
from sinkviz.style import (
    ATTENTION_SCALE,
    ATTENTION_TICKS,
    COLOURS,
    DASHED,
    ink,
    line_scale,
    paper,
    role_style,
)

STRIP = 0.045  # width of the column that stands for the hidden keys, as a share of the map


def plot_attention(
    trace: Trace,
    *,
    layer: int = 0,
    head: int = 0,
    hide: int = 0,
    roles: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the attention map of one head in one Axes: rows are queries, columns are keys.

    The future is hatched. All maps share one colour scale, the square root of the share from 0
    to 1. A map of more than 160 tokens is drawn in square blocks, each with its largest weight.

    A sink hides all else. ``hide=1`` takes it out: what it takes of each row is one column at the
    left, and the rest of each row is rescaled to one.

    Args:
        trace: holds the map of that head.
        layer: 0-based; negative counts from the end.
        head: 0-based; negative counts from the end.
        hide: first tokens to take out, tokens.
        roles: mark the sinks of the trace by a bar under their columns, and the edge of the
            recent keys by a dashed line.
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
    weights = head_map(trace, layer, head, hide)
    cells, block = shrunk(weights)
    layer, head = layer % trace.n_layers, head % trace.n_heads
    taken = first_share(trace, layer, head, max(1, hide)) * 100
    whom = "first token takes" if hide < 2 else f"first {hide} tokens take"
    ax = axes_or_new(ax)
    edge = hide - 0.5 + block * len(cells)
    image = draw_map(ax, cells, (hide - 0.5, edge, edge, hide - 0.5))
    what = "share of the rest (" if hide else "attention (share, "
    label = f"{what}{ATTENTION_SCALE})"
    if block > 1:
        label = f"largest in {block} x {block} tokens ({ATTENTION_SCALE})"
    rest = ", this is the rest" if hide else ""
    clear = points("ytick.labelsize") / 3  # of the highest number at the colour bar
    title(ax, f"layer {layer}, head {head}: the {whom} {taken:.0f} %{rest}", clear)
    colour_bar(ax, image, label, ATTENTION_TICKS)
    token_ticks(ax.xaxis, trace.tokens[hide:], what="key", first=hide)
    token_ticks(ax.yaxis, trace.tokens[hide:], what="query", first=hide)
    if hide:
        _hidden_column(ax, trace, np.asarray(trace.map(layer, head))[hide:, :hide].sum(-1), block)
    if roles:
        _mark_roles(ax, trace, hide)
    return ax


def _hidden_column(ax: Axes, trace: Trace, shares: np.ndarray, block: int) -> None:
    """Draw what the hidden keys take of each row, as a column of its own left of the map."""
    hide, length = len(trace.tokens) - len(shares), len(trace.tokens)
    padded = np.full(-(-len(shares) // block) * block, -1.0)
    padded[: len(shares)] = shares
    left, right, low, high = ax.images[0].get_extent()
    width = max(1.0, STRIP * (right - left))
    street = 0.4 * width
    start = left - street - width
    cells = np.ma.masked_array(padded.reshape(-1, block).max(1, keepdims=True))
    ax.imshow(
        cells,
        interpolation="nearest",
        cmap=ax.images[0].get_cmap(),
        norm=ax.images[0].norm,
        extent=(start, start + width, low, high),
    )
    ax.axvspan(left - street, left, facecolor=paper(ax), linewidth=0)
    ax.set(xlim=(start, right), ylim=(low, high))
    centre = start + width / 2
    name = short(trace.tokens[0]) if hide == 1 else f"first {hide}"
    if length - hide <= MOST_TOKEN_TICKS:
        old = [label.get_text() for label in ax.get_xticklabels()]
        size = ax.get_xticklabels()[0].get_fontsize()
        ax.set_xticks([centre, *ax.get_xticks()], [name, *old], fontsize=size, parse_math=False)
        return
    spots = MaxNLocator(6, integer=True).tick_values(hide, length - 1)
    spots = [int(one) for one in spots if hide + 0.06 * length <= one < length]
    ax.set_xticks([centre, *spots], ["first", *map(str, spots)])


def _mark_roles(ax: Axes, trace: Trace, hide: int) -> None:
    """Mark the columns of the sinks and the edge of the recent keys; name both in the future."""
    length = len(trace.tokens)
    handles = []
    look = role_style("sink", ax)
    if 0 < trace.n_sink < length and hide <= trace.n_sink:
        under = blended_transform_factory(ax.transData, ax.transAxes)
        point = 1 / size_in_points(ax)[1]
        for image in ax.images:  # of the hidden keys too, which are sinks
            left, right = image.get_extent()[:2]
            wide = min(right, trace.n_sink - 0.5) - left if left >= hide - 0.5 else right - left
            bar = (left, -4 * point), wide, 3 * point
            ax.add_patch(Rectangle(*bar, transform=under, clip_on=False, **look))
        ax.tick_params(axis="x", pad=5)
        name = "sink (first token)" if trace.n_sink == 1 else f"sinks (first {trace.n_sink})"
        handles.append(Patch(label=name, **look))
    first = max(hide, trace.n_sink) + trace.n_recent - 1  # the first query with a middle key
    if first < length - 1:
        query = np.arange(first, length)
        steps = np.repeat(query - trace.n_recent + 0.5, 2)
        down = np.stack((query - 0.5, query + 0.5), 1).ravel()
        line = {"color": COLOURS["recent"], "linestyle": DASHED, "linewidth": 1.6 * line_scale(ax)}
        halo = patheffects.withStroke(linewidth=line["linewidth"] + 1.2, foreground=paper(ax))
        ax.plot(steps, down, **line, path_effects=[halo], scalex=False, scaley=False)
        handles.append(Line2D([], [], label=f"recent (last {trace.n_recent})", **line))
    if not handles:
        return
    # The upper right corner is the future, which is empty in every map.
    box = ax.legend(
        handles=handles,
        loc="upper right",
        borderaxespad=0.3,
        borderpad=0.3,
        handlelength=1.6,
        fontsize=0.85 * points("legend.fontsize"),
        facecolor=paper(ax),
        edgecolor="none",
        framealpha=0.9,
        labelcolor=ink(ax),
    )
    box.set_zorder(4)
