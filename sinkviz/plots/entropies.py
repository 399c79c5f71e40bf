"""How widely heads look: the entropy of attention.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
import seaborn
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sinkviz.metrics import SINK_EPSILON
from sinkviz.plots._labels import legend
from sinkviz.plots._parts import axes_or_new, count_ticks, size_in_points, title, token_ticks
from sinkviz.records import Trace
from sinkviz.style import COLOURS, DASHED, ink, line_scale

MOST_POINTS = 64  # of a line; further queries are put together
SINK_NAME, OTHER_NAME = "sink heads", "other heads"


def _checked(trace: Trace) -> Float[np.ndarray, "layer head query"]:
    entropy = np.asarray(trace.entropy, dtype=float)
    if entropy.ndim != 3 or not np.isfinite(entropy).any():
        raise ValueError(
            "the trace holds no entropy (layer, head, query); capture with "
            "statistics=('received', 'entropy') or more"
        )
    return entropy


def plot_entropy(trace: Trace, *, over: str = "layers", ax: Axes | None = None) -> Axes:
    """Draw in one Axes how widely heads look: the entropy of their attention, nats.

    Zero looks at one key. A dashed line is even attention to all that a query sees. Heads whose
    first key receives more than 0.3 are sink heads: orange and round, the others grey and square.

    Args:
        trace: maps or statistics.
        over: ``layers``, one mark per head, its mean over queries; or ``tokens``, one line per
            group of heads, with the middle half as a band, in blocks where there are more than 64.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: ``over`` is something else, or the trace holds no entropy.

    Example:
        >>> trace = Trace(
        ...     ("<|begin|>", "Once"), np.array([0, 7]), received=np.array([[[0.9, 0.1]]]),
        ...     entropy=np.array([[[0.0, 0.5]]]), mass=np.zeros((1, 1, 2, 5)),
        ... )
        >>> plot_entropy(trace).get_title(loc="left")
        'entropy (nats): 0.25 in sink heads'
    """
    if over not in ("layers", "tokens"):
        raise ValueError(f"over must be 'layers' or 'tokens', got {over!r}")
    entropy = _checked(trace)
    layers, heads, length = entropy.shape
    sinks = np.asarray(trace.received)[..., 0] > SINK_EPSILON
    even = np.log(np.arange(1, length + 1))
    ax = axes_or_new(ax)
    looks = {
        SINK_NAME: {"color": COLOURS["sink"], "marker": "o"},
        OTHER_NAME: {"color": COLOURS["evicted"], "marker": "s"},
    }
    groups = {name: mask for name, mask in zip(looks, (sinks, ~sinks), strict=True) if mask.any()}
    reference = {"color": ink(ax), "linestyle": DASHED, "linewidth": 1.4 * line_scale(ax)}
    draw = _over_layers if over == "layers" else _over_tokens
    handles = [draw(ax, entropy, mask, name, looks[name]) for name, mask in groups.items()]
    if over == "layers":
        ax.axhline(even.mean(), **reference)
        ax.set_xlim(-0.6, layers - 0.4)
        ax.set_xlabel("layer")
        count_ticks(ax.xaxis, layers)
    else:
        ax.plot(np.arange(length), even, **reference)
        ax.set_xlim(0, length - 1)
        token_ticks(ax.xaxis, trace.tokens, what="query")
    ax.set_ylim(0, None)
    ax.set_ylabel("entropy (nats)")
    ax.spines[["top", "right"]].set_visible(False)
    above = legend(ax, [Line2D([], [], label="even attention", **reference), *handles], above=True)
    said = [f"{np.nanmean(entropy[mask]):.2f} in {name}" for name, mask in groups.items()]
    title(ax, f"entropy (nats): {', '.join(said)}", above)
    return ax


def _over_layers(
    ax: Axes, entropy: np.ndarray, mask: np.ndarray, name: str, look: dict[str, str]
) -> Line2D:
    """Draw a mark per head of a group, spread a little so that none hides another."""
    layer, head = np.nonzero(mask)
    n_heads = mask.shape[1]
    # Heads stand in their order: the same head is in the same place of every layer.
    across = layer + 0.6 * ((head + 0.5) / n_heads - 0.5)
    wide, _ = size_in_points(ax)
    size = float(np.clip(0.5 * wide / mask.size, 3.0, 9.0)) * line_scale(ax) ** 0.5
    mark = {**look, "markersize": size, "markeredgecolor": ink(ax), "markeredgewidth": 0.5}
    ax.plot(across, np.nanmean(entropy[layer, head], -1), linestyle="", **mark)
    return Line2D([], [], linestyle="", label=f"{name} ({mask.sum()})", **mark)


def _over_tokens(
    ax: Axes, entropy: np.ndarray, mask: np.ndarray, name: str, look: dict[str, str]
) -> Line2D:
    """Draw the mean of a group of heads at every query, and where the middle half of them is."""
    rows = entropy[mask]
    length = rows.shape[1]
    block = -(-length // MOST_POINTS)
    at = np.arange(length) // block * block + (block - 1) / 2
    every = max(1, length // block // 8)
    line = {**look, "linewidth": 1.8 * line_scale(ax), "markersize": 5 * line_scale(ax)}
    seaborn.lineplot(
        x=np.tile(at, len(rows)),
        y=rows.ravel(),
        errorbar=("pi", 50),
        err_kws={"alpha": 0.25, "linewidth": 0},
        markevery=(every // 2, every),
        markeredgewidth=0,
        ax=ax,
        **line,
    )
    return Line2D([], [], label=f"{name} ({len(rows)})", **line)
