"""Attention before the softmax: how high each key scores, in one head and in all.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkviz.plots._heads import draw_heads
from sinkviz.plots._parts import (
    axes_or_new,
    bar_label,
    bar_ticks,
    colour_bar,
    draw_cells,
    map_grid_labels,
    panels,
    size_in_points,
    title,
)
from sinkviz.style import bias_map, bias_norm

MOST_PANELS = 32
LEAST_PANEL = 0.6  # inches: 16 x 16 cells can be told apart

Scores = Float[np.ndarray, "layer head query key"]


def _checked(scores: np.ndarray) -> np.ndarray:
    if scores.ndim != 4 or scores.shape[2] != scores.shape[3] or scores.shape[3] < 2:
        raise ValueError(
            "scores must be (layer, head, query, key) of at least 2 tokens, as capture_scores "
            f"returns them, got shape {scores.shape}"
        )
    if not np.isfinite(scores).any():
        raise ValueError("scores hold no number; capture(lm, text, scores=True) records them")
    return np.asarray(scores, dtype=float)


def score_lead(scores: Scores, key: int = 0) -> Float[np.ndarray, "layer head"]:
    """Return by how much a key's score passes the mean score of the other keys.

    The mean is over the keys that a query sees, then over the queries after the key. A softmax
    knows only differences of scores: ``exp`` of this is how many times an ordinary key's
    attention the key gets.

    Args:
        scores: before the softmax, nats; NaN where a query sees no key.
        key: text position, tokens; not the last.

    Returns:
        Lead of the key in each head, nats.

    Raises:
        IndexError: no query comes after such a key.
        ValueError: the scores are not (layer, head, query, key).

    Example:
        >>> rows = [[0.0, np.nan, np.nan], [3.0, 1.0, np.nan], [5.0, 0.0, 2.0]]
        >>> score_lead(np.array([[rows]])).tolist()
        [[3.0]]
    """
    scores = _checked(scores)
    length = scores.shape[-1]
    if not 0 <= key < length - 1:
        raise IndexError(f"key must be in 0..{length - 2}, before the last query, got {key}")
    later = scores[..., key + 1 :, :]
    others = np.delete(later, key, axis=-1)
    known = np.isfinite(others)
    ordinary = np.where(known, others, 0).sum(-1) / known.sum(-1)  # a query sees itself
    lead = later[..., key] - ordinary
    seen = np.isfinite(lead)
    total, count = np.where(seen, lead, 0).sum(-1), seen.sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _ticks(largest: float) -> list[float]:
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 1e9) if largest / s < 5)
    whole = np.arange(step, largest + 1e-9, step)
    return [*-whole[::-1], 0.0, *whole]


def _map(scores: np.ndarray, layer: int, head: int) -> np.ma.MaskedArray:
    for name, index, size in zip(("layer", "head"), (layer, head), scores.shape, strict=False):
        if not -size <= index < size:
            raise IndexError(f"{name} must be in 0..{size - 1}, got {index}")
    return np.ma.masked_invalid(scores[layer, head])


def _draw(ax: Axes, cells: np.ma.MaskedArray, largest: float) -> None:
    draw_cells(ax, cells, cmap=bias_map(ax), norm=bias_norm(largest))
    ax.set(xticks=[0, len(cells) - 1], yticks=[0, len(cells) - 1])


def plot_scores(scores: Scores, *, layer: int = 0, head: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the scores of one head before the softmax in one Axes: queries down, keys across.

    Args:
        scores: nats, mean over texts as ``capture_scores`` returns them, or a trace's own; NaN
            where a query sees no key.
        layer: 0-based; negative counts from the end.
        head: 0-based; negative counts from the end.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        IndexError: there is no such layer or head.
        ValueError: the scores are not (layer, head, query, key), or hold no number.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 2.

    Example:
        >>> scores = np.array([[[[1.0, np.nan], [3.0, 0.5]]]])
        >>> plot_scores(scores).get_title(loc="left")
        'layer 0, head 0: the first key leads by 2.5 nats'
    """
    scores = _checked(scores)
    cells = _map(scores, layer, head)
    lead = score_lead(scores)[layer, head]
    largest = float(np.abs(cells).max()) or 1.0
    ax = axes_or_new(ax)
    _draw(ax, cells, largest)
    colour_bar(ax, ax.images[0], "score (nats)", _ticks(largest))
    ax.set(xlabel="key (text position, tokens)", ylabel="query (text position, tokens)")
    layer, head = layer % scores.shape[0], head % scores.shape[1]
    leads = f"leads by {lead:.1f} nats" if lead >= 0 else f"is {-lead:.1f} nats behind"
    title(ax, f"layer {layer}, head {head}: the first key {leads}")
    return ax


def plot_score_map(scores: Scores, *, key: int = 0, ax: Axes | None = None) -> Axes:
    """Draw in one Axes how far a key's score leads in each head: layers down, heads across.

    The twin of ``plot_sink_map`` before the softmax. Heads in which the key leads are framed.
    With 12 heads or fewer per layer, and as few layers, cells hold the lead.

    Args:
        scores: nats, mean over texts as ``capture_scores`` returns them, or a trace's own.
        key: text position of the candidate sink, tokens; not the last.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        IndexError: no query comes after such a key.
        ValueError: the scores are not (layer, head, query, key), or hold no number.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 2 (which draws the scores themselves).

    Example:
        >>> scores = np.array([[[[1.0, np.nan], [3.0, 0.5]], [[0.0, np.nan], [0.0, 1.0]]]])
        >>> plot_score_map(scores).get_title(loc="left")
        'the first key scores above the others in 1 of 2 heads'
    """
    lead = score_lead(scores, key)
    largest = float(np.nanmax(np.abs(lead))) or 1.0
    ax = axes_or_new(ax)
    bar = draw_heads(
        ax,
        lead,
        cmap=bias_map(ax),
        norm=bias_norm(largest),
        written=np.round(lead, 1),
        fmt=".1f",
        framed=lead > 0,
    )
    bar_ticks(bar, _ticks(largest))
    bar_label(bar, "score minus mean of the other keys (nats)", size_in_points(ax)[1])
    whom = "the first key" if key == 0 else f"key {key}"
    title(ax, f"{whom} scores above the others in {(lead > 0).sum()} of {lead.size} heads")
    return ax


def grid_scores(
    scores: Scores,
    heads: Sequence[tuple[int, int]] | None = None,
    *,
    width: float | None = None,
) -> Figure:
    """Draw the scores of several heads side by side in a figure of its own, on one colour scale.

    Args:
        scores: nats, mean over texts as ``capture_scores`` returns them, or a trace's own.
        heads: (layer, head) pairs, 32 at most; where not given every head if there are 16 or
            fewer, and otherwise head 0 of up to 8 layers, the first two and the last among them.
        width: of the figure, inches; as wide as its panels need where not given.

    Returns:
        The figure.

    Raises:
        IndexError: there is no such layer or head.
        ValueError: the scores are not (layer, head, query, key), or there are no or too many heads.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 2 (head 0 of seven layers of Llama-2-7B).

    Example:
        >>> scores = np.array([[[[1.0, np.nan], [3.0, 0.5]], [[0.0, np.nan], [0.0, 1.0]]]])
        >>> [ax.get_title(loc="left") for ax in grid_scores(scores).axes[:2]]
        ['layer 0, head 0: +2.5', 'layer 0, head 1: −1.0']
    """
    scores = _checked(scores)
    layers, per_layer = scores.shape[:2]
    if heads is None and layers * per_layer <= 16:
        heads = list(np.ndindex(layers, per_layer))
    elif heads is None:
        chosen = {0, 1, *np.linspace(0, layers - 1, min(7, layers)).round().astype(int).tolist()}
        heads = [(layer, 0) for layer in sorted(chosen) if layer < layers]
    if not 0 < len(heads) <= MOST_PANELS:
        raise ValueError(f"heads must be 1..{MOST_PANELS} (layer, head) pairs, got {len(heads)}")
    maps = [_map(scores, *pair) for pair in heads]
    largest = max(float(np.abs(cells).max()) for cells in maps) or 1.0
    lead = score_lead(scores)
    wide = per_layer if len(heads) == layers * per_layer and per_layer <= 8 else None
    figure, axes = panels(len(heads), columns=wide, width=width, least=LEAST_PANEL)
    small = size_in_points(axes[0])[0] < 90
    for ax, cells, (layer, head) in zip(axes, maps, heads, strict=True):
        _draw(ax, cells, largest)
        ahead = f"{lead[layer, head]:+.1f}".replace("-", "−")
        spot = (layer % layers, head % per_layer)
        title(ax, ("{}, {}: {}" if small else "layer {}, head {}: {}").format(*spot, ahead))
    what = "layer, head: lead of the first key" if small else "scores; lead of the first key"
    heading = f"{what} (nats)"
    bar_ticks(map_grid_labels(figure, heading, axes[0].images[0], "score (nats)"), _ticks(largest))
    return figure
