"""How much attention each key receives, against what even attention would give it.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from sinkviz.plots._labels import legend, spread
from sinkviz.plots._maps import MOST_CELLS
from sinkviz.plots._parts import (
    MOST_TOKEN_TICKS,
    axes_or_new,
    bare,
    colour_bar,
    label_values,
    plain,
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
    attention_map,
    attention_norm,
    ink,
    is_dark,
    line_scale,
    paper,
)

LEAST_VIEWERS = 16  # queries that must see a key before it is named
LEAST_RECEIVED = 1e-5  # share below which a logarithmic axis would only show noise


def even_share(length: int) -> Float[np.ndarray, " key"]:
    """Return what each key receives where every query attends evenly to all it sees.

    Args:
        length: tokens of the text.

    Returns:
        Shares in (0, 1]: key k is seen by the queries q from k on, and gets 1 / (q + 1) of each.

    Example:
        >>> even_share(2).tolist()
        [0.75, 0.5]
    """
    each = 1 / np.arange(1, length + 1)
    viewers = np.arange(length, 0, -1)
    return each[::-1].cumsum()[::-1] / viewers


def _checked(trace: Trace, layer: int | None) -> Float[np.ndarray, "row head key"]:
    """Return the received attention of the layers asked for."""
    received = trace.received
    if received.ndim != 3 or not np.isfinite(received).any():
        raise ValueError(
            "the trace holds no received attention (layer, head, key); capture with "
            "statistics=('received',) or more"
        )
    if layer is None:
        return np.asarray(received, dtype=float)
    if not -len(received) <= layer < len(received):
        raise IndexError(f"layer must be in 0..{len(received) - 1}, got {layer}")
    return np.asarray(received[layer][None], dtype=float)


def top_keys(received: Float[np.ndarray, " key"], count: int) -> Int[np.ndarray, " rank"]:
    """Return the keys that receive most beyond their even share, the most first.

    The last keys are left out: they are seen by few queries, each of which looks at what is near.

    Example:
        >>> top_keys(np.array([0.9, 0.05, 0.3]), 1).tolist()
        [0]
    """
    length = len(received)
    judged = length - min(LEAST_VIEWERS, length // 4)
    return np.argsort(-(received / even_share(length))[:judged], kind="stable")[:count]


def plot_received(
    trace: Trace, *, layer: int | None = None, top: int = 4, ax: Axes | None = None
) -> Axes:
    """Draw in one Axes how much attention each key receives: mean and range over heads.

    The axis is logarithmic. A dashed line is what even attention would give, and the keys that
    are furthest above it carry their token.

    Args:
        trace: maps or statistics.
        layer: 0-based, negative from the end; all heads of the model where not given.
        top: keys to name.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        IndexError: there is no such layer.
        ValueError: the trace holds no received attention.

    Source: Gu et al. 2024, arXiv 2410.10781, section 3.1.

    Example:
        >>> trace = Trace(
        ...     ("<|begin|>", "Once"), np.array([0, 7]), entropy=np.zeros((1, 2, 2)),
        ...     received=np.array([[[0.9, 0.1], [0.8, 0.4]]]), mass=np.zeros((1, 2, 2, 5)),
        ... )
        >>> plot_received(trace).get_title(loc="left")
        'received attention: 85 % for the first token'
    """
    heads = _checked(trace, layer).reshape(-1, trace.received.shape[-1]).clip(LEAST_RECEIVED)
    length = heads.shape[-1]
    even, mean = even_share(length), heads.mean(0)
    ax = axes_or_new(ax)
    scale = line_scale(ax)
    key = np.arange(length)
    few = length <= MOST_TOKEN_TICKS
    seaborn.lineplot(
        x=np.tile(key, len(heads)),
        y=heads.ravel(),
        errorbar=("pi", 100),
        color=COLOURS["recent"],
        linewidth=(1.6 if few else 1.1) * scale,
        err_kws={"alpha": 0.45 if is_dark(ax) else 0.25, "linewidth": 0},
        ax=ax,
    )
    reference = {"color": ink(ax), "linestyle": DASHED, "linewidth": 1.4 * scale}
    ax.plot(key, even, **reference)
    ax.set_yscale("log")
    low = float(np.percentile(heads, 1))
    ax.set_ylim(0.7 * min(low, even.min()), 1.5)
    ax.set_xlim(-0.5 if few else -0.01 * length, length - 0.5)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    label_values(ax.yaxis, "received attention (mean share)")
    ax.spines[["top", "right"]].set_visible(False)
    token_ticks(ax.xaxis, trace.tokens, what="key")
    _name(ax, top_keys(mean, top), mean, trace.tokens)
    whose = "" if layer is None else f", layer {layer % trace.n_layers}"
    line = {"color": COLOURS["recent"], "linewidth": 1.6 * scale}
    handles = [
        Line2D([], [], label=f"mean and range of {len(heads)} heads", **line),
        Line2D([], [], label="even attention", **reference),
    ]
    above = legend(ax, handles, above=True)
    title(ax, f"received attention{whose}: {mean[0] * 100:.0f} % for the first token", above)
    return ax


def _name(
    ax: Axes, keys: Int[np.ndarray, " rank"], mean: np.ndarray, tokens: Sequence[str]
) -> None:
    """Write the tokens of some keys beside their points, one below the other."""
    if not len(keys):
        return
    size = 0.9 * points("legend.fontsize")
    high = size_in_points(ax)[1]
    to_axes = ax.transData + ax.transAxes.inverted()
    spots = to_axes.transform(np.stack((keys, mean[keys]), 1))
    places = spread(spots[:, 1].clip(0, 0.97), 1.5 * size / (0.8 * high))
    for key, (across, _), place in zip(keys, spots, places, strict=True):
        first = key == 0
        dot = {"color": COLOURS["sink" if first else "recent"], "zorder": 4}
        ax.plot([key], [mean[key]], "o" if first else "s", markersize=5 * line_scale(ax), **dot)
        late = across > 0.6
        text = ax.annotate(
            f"{short(tokens[key].strip() or tokens[key])} {mean[key] * 100:.2g} %",
            (key, mean[key]),
            xytext=(across + (-0.03 if late else 0.03), place),
            textcoords="axes fraction",
            ha="right" if late else "left",
            va="center",
            fontsize=size,
            color=ink(ax),
            bbox={"facecolor": paper(ax), "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": ink(ax), "linewidth": 0.6, "shrinkB": 2},
            zorder=5,
        )
        plain(text)


def plot_received_map(trace: Trace, *, layer: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw in one Axes how much attention each key receives in each layer, or in each head of one.

    Colours share the scale of all attention, the square root of the share from 0 to 1. More than
    160 keys are drawn in blocks, each with its largest share.

    Args:
        trace: maps or statistics.
        layer: 0-based, negative from the end: its heads, one row each; where not given, a row is
            the mean over the heads of a layer.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        IndexError: there is no such layer.
        ValueError: the trace holds no received attention.

    Example:
        >>> trace = Trace(
        ...     ("<|begin|>", "Once"), np.array([0, 7]), entropy=np.zeros((1, 2, 2)),
        ...     received=np.array([[[0.9, 0.1], [0.8, 0.4]]]), mass=np.zeros((1, 2, 2, 5)),
        ... )
        >>> plot_received_map(trace, layer=0).images[0].get_array().tolist()
        [[0.9, 0.1], [0.8, 0.4]]
    """
    chosen = _checked(trace, layer)
    rows = chosen.mean(1) if layer is None else chosen[0]
    length = rows.shape[1]
    block = -(-length // MOST_CELLS)
    padded = np.zeros((len(rows), -(-length // block) * block))
    padded[:, :length] = rows
    cells = padded.reshape(len(rows), -1, block).max(-1)
    ax = axes_or_new(ax)
    image = ax.imshow(
        cells,
        aspect="auto",
        interpolation="nearest",
        cmap=attention_map(ax),
        norm=attention_norm(),
        extent=(-0.5, padded.shape[1] - 0.5, len(rows) - 0.5, -0.5),
    )
    ax.set_xlim(-0.5, length - 0.5)
    bare(ax)
    token_ticks(ax.xaxis, trace.tokens, what="key")
    shown = range(0, len(rows), 1 + len(rows) // 24)
    ax.set_yticks(list(shown), [str(one) for one in shown])
    ax.set_ylabel("layer (mean over heads)" if layer is None else "head")
    most = "largest of" if block > 1 else "mean share,"
    label = f"received ({most} {block} keys, " if block > 1 else "received attention (mean share, "
    colour_bar(ax, image, f"{label}{ATTENTION_SCALE})", ATTENTION_TICKS)
    where = "by layer" if layer is None else f"in layer {layer % trace.n_layers}, by head"
    clear = points("ytick.labelsize") / 3
    title(ax, f"received attention {where}: {rows[:, 0].mean() * 100:.0f} % at the first", clear)
    return ax
