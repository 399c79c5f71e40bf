"""How long the vectors of each token are: keys, values and the residual stream.

The first token often has a huge residual vector (a massive activation) and short values, so that
attention to it does little. Knows nothing about models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sinkviz.plots._labels import label_ends, legend
from sinkviz.plots._parts import (
    axes_or_new,
    check_width,
    count_ticks,
    label_values,
    narrow,
    plain,
    short,
    title,
)
from sinkviz.records import Trace
from sinkviz.style import COLOURS, DASHED, DASHES, MARKERS, ink, line_scale

KINDS = ("residual", "key", "value")
MASSIVE = 4.0  # times the median of its layer: what is named beside the first token
MOST_NAMED = 3
LEAST_RECEIVED = 1e-4  # share at which smaller ones are drawn


def _norms(trace: Trace, of: str) -> Float[np.ndarray, "layer token"]:
    """Return one kind of norm, mean over key-value heads."""
    if of not in KINDS:
        raise ValueError(f"of must be one of {', '.join(KINDS)}, got {of!r}")
    norms = getattr(trace, f"{of}_norm")
    if norms is None:
        raise ValueError(
            f"the trace holds no {of} norms; capture with statistics=('norms',) or more"
        )
    norms = np.asarray(norms, dtype=float)
    return norms if of == "residual" else norms.mean(1)


def _massive(norms: Float[np.ndarray, "layer token"]) -> Int[np.ndarray, " massive"]:
    """Return further tokens that are far above the median of some layer, the furthest first."""
    ratio = (norms / np.median(norms, -1, keepdims=True)).max(0)
    ratio[0] = 0
    order = np.argsort(-ratio, kind="stable")[: MOST_NAMED - 1]
    return order[ratio[order] > MASSIVE]


def _log_axis(axis: object) -> None:
    """Tick a logarithmic axis 1, 2, 5, 10 ... in plain numbers."""
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def plot_norms(trace: Trace, *, of: str = "residual", ax: Axes | None = None) -> Axes:
    """Draw in one Axes how long the vectors of the tokens are in each layer.

    The first token is a line of its own, and so are two others at most that somewhere pass four
    times the median. The dashed line is the median token, the band holds 90 % of the tokens.

    Args:
        trace: with norms.
        of: ``residual`` (after each layer), ``key`` or ``value`` (mean over key-value heads).
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: ``of`` is something else, or the trace holds no norms.

    Source: Sun et al. 2024, arXiv 2402.17762 (massive activations), figure 2.

    Example:
        >>> trace = Trace(
        ...     ("<|begin|>", "Once", "upon"), np.arange(3), received=np.zeros((2, 1, 3)),
        ...     entropy=np.zeros((2, 1, 3)), mass=np.zeros((2, 1, 3, 5)),
        ...     residual_norm=np.array([[8.0, 2.0, 2.0], [30.0, 3.0, 3.0]]),
        ... )
        >>> plot_norms(trace).get_title(loc="left")
        'residual norms: the first token has up to 10 times the median'
    """
    norms = _norms(trace, of)
    layers, length = norms.shape
    median = np.median(norms, -1)
    ax = axes_or_new(ax)
    scale = line_scale(ax)
    seaborn.lineplot(
        x=np.repeat(np.arange(layers), length),
        y=norms.ravel(),
        estimator="median",
        errorbar=("pi", 90),
        color=ink(ax),
        linestyle=DASHED,
        linewidth=1.5 * scale,
        err_kws={"facecolor": COLOURS["evicted"], "alpha": 0.35, "linewidth": 0},
        ax=ax,
    )
    ax.set_yscale("log")
    low, high = norms.min(), norms.max()
    ax.set_ylim(low / 1.15, high * 1.15)
    ends = [(float(median[-1]), "median", {"color": ink(ax), "linestyle": DASHED})]
    for nth, token in enumerate([0, *_massive(norms)]):
        style = {
            "color": COLOURS["recent" if nth else "sink"],
            "linestyle": DASHES[nth],
            "marker": MARKERS[nth],
            "linewidth": 2.2 * scale,
            "markersize": 5.5 * scale,
        }
        ax.plot(np.arange(layers), norms[:, token], **style)
        name = short(trace.tokens[token].strip() or trace.tokens[token], 10)
        ends.append((float(norms[-1, token]), f"{name} ({token})" if token else name, style))
    ax.set_xlim(-0.15, layers - 0.85)
    ax.set_xlabel("layer")
    count_ticks(ax.xaxis, layers)
    _log_axis(ax.yaxis)
    label_values(ax.yaxis, f"{of} norm (length)")
    ax.spines[["top", "right"]].set_visible(False)
    above = label_ends(ax, ends)
    title(
        ax, f"{of} norms: the first token has {_compared(norms[:, 0] / median)} the median", above
    )
    return ax


def _compared(ratio: Float[np.ndarray, " layer"]) -> str:
    """Say how many times the median the first token has where it is furthest from it."""
    far = float(ratio[np.abs(np.log(np.maximum(ratio, 1e-9))).argmax()])
    return f"up to {far:.2g} times" if far >= 1 else f"down to {far:.2g} times"


def _share(share: float, _: int | None = None) -> str:
    """Return the name of a tick; the first one stands for all that is smaller."""
    return f"{'≤ ' if share < 1.01 * LEAST_RECEIVED else ''}{100 * share:g} %"


def grid_norms(trace: Trace, *, width: float | None = None) -> Figure:
    """Draw residual, key and value norms side by side in a figure of its own.

    Args:
        trace: with norms.
        width: of the figure, inches; 11 where not given. Below 7 the panels stand one above the
            other.

    Returns:
        The figure.

    Raises:
        ValueError: the trace holds no norms, or none of keys.

    Example:
        >>> trace = Trace(
        ...     ("<|begin|>", "Once", "upon"), np.arange(3), received=np.zeros((1, 1, 3)),
        ...     entropy=np.zeros((1, 1, 3)), mass=np.zeros((1, 1, 3, 5)),
        ...     residual_norm=np.array([[8.0, 2.0, 2.0]]), key_norm=np.array([[[4.0, 4.0, 4.0]]]),
        ...     value_norm=np.array([[[0.5, 1.0, 2.0]]]),
        ... )
        >>> [ax.get_ylabel().split(" (")[0] for ax in grid_norms(trace).axes]
        ['residual norm', 'key norm', 'value norm']
    """
    for of in KINDS:
        _norms(trace, of)
    width = 11.0 if width is None else check_width(width)
    beside = width >= 7
    figure, axes = plt.subplots(
        *((1, 3) if beside else (3, 1)),
        figsize=(width, 0.32 * width if beside else 1.7 * width),
        layout="constrained",
    )
    for ax, of in zip(axes, KINDS, strict=True):
        plot_norms(trace, of=of, ax=ax)
        norms = _norms(trace, of)
        title(ax, f"{of}: {_compared(norms[:, 0] / np.median(norms, -1))} the median")
        if not beside and ax is not axes[-1]:
            ax.set_xlabel("")
    return figure


def plot_value_norms(trace: Trace, *, layer: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw in one Axes the length of each token's value against the attention it receives.

    One mark per token and head. A sink receives much and carries little: it stands at the right,
    below the others. The first token is orange and round, the others are grey and square.

    Args:
        trace: with norms and received attention.
        layer: 0-based, negative from the end; all layers but the first where not given, because
            sinks need a layer to grow.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        IndexError: there is no such layer.
        ValueError: the trace holds no value norms.

    Source: Kobayashi et al. 2020, arXiv 2004.10102 (norms of values); Gu et al. 2024, arXiv
        2410.10781, section 3.

    Example:
        >>> trace = Trace(
        ...     ("<|begin|>", "Once", "upon"), np.arange(3), entropy=np.zeros((1, 1, 3)),
        ...     received=np.array([[[0.9, 0.1, 0.2]]]), mass=np.zeros((1, 1, 3, 5)),
        ...     value_norm=np.array([[[0.5, 1.0, 2.0]]]),
        ... )
        >>> plot_value_norms(trace, layer=0).get_title(loc="left")
        'the first token receives 90 %, its value is 0.5 of the median'
    """
    _norms(trace, "value")
    received, value = np.asarray(trace.received, float), np.asarray(trace.value_norm, float)
    layers, heads, length = received.shape
    if layer is not None and not -layers <= layer < layers:
        raise IndexError(f"layer must be in 0..{layers - 1}, got {layer}")
    chosen = slice(min(1, layers - 1), None) if layer is None else [layer]
    # Grouped heads share a value.
    value = np.repeat(value, heads // value.shape[1], axis=1)[chosen]
    received = received[chosen].clip(LEAST_RECEIVED)
    relative = value / np.median(value, -1, keepdims=True)
    ax = axes_or_new(ax)
    scale = line_scale(ax)
    alpha = float(np.clip(600 / relative.size, 0.3, 0.8))
    rest = {"color": COLOURS["evicted"], "marker": "s", "linestyle": ""}
    first = {"color": COLOURS["sink"], "marker": "o", "linestyle": ""}
    ax.plot(
        received[..., 1:].ravel(),
        relative[..., 1:].ravel(),
        markersize=2.2 + 2.2 * scale if relative.size < 5000 else 2.5 * scale,
        markeredgewidth=0,
        alpha=alpha,
        rasterized=relative.size > 2000,
        **rest,
    )
    edge = {"markeredgecolor": ink(ax), "markeredgewidth": 0.6}
    ax.plot(
        received[..., 0].ravel(), relative[..., 0].ravel(), markersize=7 * scale, **first, **edge
    )
    ax.axhline(1, color=ink(ax), linestyle=DASHED, linewidth=1.2 * scale, zorder=1.5)
    ax.set(xscale="log", yscale="log")
    _log_axis(ax.yaxis)
    ax.set_xlim(received.min() / 1.4, 1.3)
    ax.xaxis.set_major_formatter(FuncFormatter(_share))
    label_values(ax.xaxis, "received attention (mean share)")
    times = "value norm (of the median)" if narrow(ax) else "value norm (times the median)"
    label_values(ax.yaxis, times)
    ax.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], label=f"{short(trace.tokens[0])}, one per head", **first, **edge),
        Line2D([], [], label="other tokens", **rest),
        Line2D([], [], label="median", color=ink(ax), linestyle=DASHED),
    ]
    above = legend(ax, handles, above=True)
    for text in ax.get_legend().get_texts():
        plain(text)
    share, size = received[..., 0].mean() * 100, float(np.median(relative[..., 0]))
    title(
        ax,
        f"the first token receives {share:.0f} %, its value is {size:.2g} of the median",
        above,
    )
    return ax
