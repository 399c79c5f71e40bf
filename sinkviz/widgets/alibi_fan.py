"""ALiBi: what distance costs in each head, and what its bias would do to a model's real scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from sinkviz.attention import null_softmax
from sinkviz.plots._parts import colour_bar, count_ticks, draw_cells, title, token_ticks
from sinkviz.plots.alibi import plot_alibi
from sinkviz.positions import alibi_bias, alibi_slopes
from sinkviz.records import Trace
from sinkviz.style import (
    ATTENTION_SCALE,
    ATTENTION_TICKS,
    COLOURS,
    attention_map,
    attention_norm,
    ink,
    paper,
)
from sinkviz.widgets.common import as_bytes
from sinkviz.widgets.teaching import TeachingWidget, as_labels, teaching_module

MOST_HEADS = 32
MOST_TOKENS = 48
MOST_BYTES = 40_000  # of scores that a saved notebook holds
STEPS = 65_535  # of a score between the least and the largest of its map


def scores_of(trace: Trace, n_tokens: int) -> Float[np.ndarray, "map query key"]:
    """Return what a trace knows of the scores of its first tokens, one map after the other.

    Where it kept maps only, the logarithm of the attention takes the scores' place: it differs by
    a number per query, which a softmax does not see.

    Args:
        trace: with scores or maps.
        n_tokens: first tokens to take; causal attention of these knows nothing of the rest.

    Raises:
        ValueError: the trace has neither.
    """
    if trace.scores is not None:
        found = np.asarray(trace.scores, dtype=np.float64)
    elif trace.attention is not None:
        with np.errstate(divide="ignore"):
            found = np.log(np.asarray(trace.attention, dtype=np.float64))
    else:
        raise ValueError(
            "AlibiFan needs a trace with maps or scores, this one has statistics; "
            "use capture(lm, text, keep='maps')"
        )
    found = found[..., :n_tokens, :n_tokens].reshape(-1, n_tokens, n_tokens)
    # A weight that float32 rounds to zero is as good as one that is barely above.
    found = np.where(np.isneginf(found), -100.0, found)
    past = np.tril(np.ones((n_tokens, n_tokens), dtype=bool))
    return np.where(past & np.isfinite(found), found, -np.inf)


def null_logits(
    trace: Trace, scores: Float[np.ndarray, "map query key"]
) -> Float[np.ndarray, "map query"] | None:
    """Return the logit per query that takes mass to nowhere, or None where nothing goes there."""
    if trace.attention is None:
        return None
    n_tokens = scores.shape[-1]
    maps = np.asarray(trace.attention, dtype=np.float64)[..., :n_tokens, :n_tokens]
    rest = 1 - maps.reshape(scores.shape).sum(-1)
    if (rest < 1e-3).all():
        return None
    rest = rest.clip(1e-12, 1 - 1e-12)
    total = torch.from_numpy(scores).logsumexp(-1).numpy()
    return total + np.log(rest / (1 - rest))


def biased(
    scores: Float[np.ndarray, "query key"],
    slope: float,
    null: Float[np.ndarray, " query"] | None = None,
) -> Float[np.ndarray, "query key"]:
    """Return the attention of scores once ALiBi's bias is added to them; slope 0 adds nothing.

    Args:
        scores: minus infinity where a query does not see a key.
        slope: nats per token of distance.
        null: a logit per query that takes mass to nowhere.

    Example:
        >>> even = np.array([[0.0, -np.inf], [0.0, 0.0]])
        >>> biased(even, 1.0).round(2).tolist()
        [[1.0, 0.0], [0.27, 0.73]]
    """
    position = torch.arange(len(scores))
    distance = position[:, None] - position
    bias = alibi_bias(torch.tensor([slope], dtype=torch.float64), distance)
    logits = torch.from_numpy(np.array(scores, dtype=np.float64)) + bias[0]
    if null is None:
        return null_softmax(logits[None])[0].numpy()
    # Each query has a null logit of its own: as if it were the only query of its head.
    return null_softmax(logits[:, None], torch.from_numpy(null))[:, 0].numpy()


class AlibiFan(TeachingWidget):
    """Heads, slopes and distance in ALiBi; with a trace, its bias on real scores.

    The fan shows the bias of every head. Below it are two maps: scores as they are, and with the
    bias of the chosen head. Without a trace all scores are equal, so that the second map is what
    the bias does by itself.

    Args:
        n_heads: heads of the fan, 1 to 32.
        trace: with scores or maps of at least two tokens; the first 48 tokens are shown. Where not
            all of its maps fit into a notebook, those of one layer are shown.
        layer: the layer to show; where not given, all if they fit, else the one whose heads give
            the first token most.

    Raises:
        ValueError: ``n_heads`` is out of its range, or the trace has no maps or too few tokens.
        IndexError: there is no such layer.

    Example:
        >>> fan = AlibiFan(8)
        >>> fan.head = 2
        >>> fan.slope, fan.bias(16)
        (0.125, -2.0)
    """

    _esm = teaching_module("alibi_fan")

    n_heads = traitlets.Int().tag(sync=True)
    head = traitlets.Int(0, help="of the fan").tag(sync=True)
    distance = traitlets.Int(16).tag(sync=True)
    longest = traitlets.Int(64, help="distance of the fan").tag(sync=True)
    biasing = traitlets.Bool(True, help="the bias is added").tag(sync=True)
    pair = traitlets.Int(0, help="which of the maps").tag(sync=True)
    pairs = traitlets.List(help="layer and head of each map; empty without a trace").tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    model_name = traitlets.Unicode().tag(sync=True)
    scores = traitlets.Bytes(help="uint16, lower triangles row by row").tag(sync=True)
    scales = traitlets.Bytes(help="least score and step of each map, float32").tag(sync=True)
    nulls = traitlets.Bytes(help="null logits, float32; empty without").tag(sync=True)

    def __init__(
        self, n_heads: int = 8, trace: Trace | None = None, *, layer: int | None = None
    ) -> None:
        if trace is None:
            scores, null, pairs, tokens = np.zeros((1, 32, 32)), None, [], [""] * 32
            scores[:, ~np.tri(32, dtype=bool)] = -np.inf
        else:
            scores, null, pairs, tokens = _shown(trace, layer)
        self._maps, self._null = scores, null
        super().__init__(
            n_heads=n_heads,
            pairs=pairs,
            tokens=as_labels(tokens),
            model_name="" if trace is None else str(trace.provenance.get("model", "")),
            **_quantised(scores),
            nulls=b"" if null is None else as_bytes(null),
        )
        # What the page shows, to the last bit.
        self._maps = _restored(self.scores, self.scales, len(tokens))

    @traitlets.validate("n_heads", "head", "pair", "distance")
    def _within(self, proposal: traitlets.Bunch) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        least, most = {
            "n_heads": (1, MOST_HEADS),
            "head": (0, self.n_heads - 1),
            "pair": (0, max(0, len(self.pairs) - 1)),
            "distance": (0, self.longest),
        }[name]
        if not least <= value <= most:
            raise ValueError(f"{name} must be in {least}..{most}, got {value}")
        return value

    @traitlets.observe("n_heads")
    def _fewer_heads(self, change: traitlets.Bunch) -> None:
        self.head = min(self.head, self.n_heads - 1)

    @property
    def slope(self) -> float:
        """Slope of the chosen head, nats per token."""
        return float(alibi_slopes(self.n_heads)[self.head])

    def bias(self, distance: int) -> float:
        """Return the bias of the chosen head at a distance, nats."""
        return -self.slope * distance

    @property
    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """The chosen map as it is and with the bias, if that is switched on; (query, key)."""
        null = None if self._null is None else self._null[self.pair]
        scores, slope = self._maps[self.pair], self.slope if self.biasing else 0.0
        return biased(scores, 0.0, null), biased(scores, slope, null)

    def draw(self, figure: Figure) -> None:
        """Draw the fan and the two maps into an empty figure."""
        fan, before, after = figure.subplots(1, 3, width_ratios=[1, 1.5, 1.5])
        plot_alibi(self.n_heads, self.longest + 1, ax=fan)
        title(fan, "bias of each head")
        fan.lines[self.head].set(color=COLOURS["sink"], linewidth=3)
        titles = ["equal scores" if not self.pairs else "layer {}, head {}".format(*self._pair)]
        titles += ["with the bias" if self.biasing else "no bias added"]
        for ax, weights, text in zip((before, after), self.maps, titles, strict=True):
            image = self._draw_map(ax, weights, text)
        after.set(ylabel="", yticks=[])
        colour_bar(after, image, f"attention (share, {ATTENTION_SCALE})", ATTENTION_TICKS)

    @property
    def _pair(self) -> list[int]:
        return self.pairs[self.pair]

    def _draw_map(self, ax: Axes, weights: np.ndarray, text: str) -> AxesImage:
        cells = np.ma.masked_array(weights, mask=~np.tri(len(weights), dtype=bool))
        image = draw_cells(ax, cells, cmap=attention_map(ax), norm=attention_norm())
        for axis, what in ((ax.xaxis, "key"), (ax.yaxis, "query")):
            if any(self.tokens):
                token_ticks(axis, self.tokens, what=what)
            else:
                count_ticks(axis, len(weights))
                axis.set_label_text(f"{what} (text position)")
        title(ax, text)
        # Where no query sees a key is room; beside the other map's, a longer title would have none.
        said = f"first token {weights[1:, 0].mean():.0%}"
        corner = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": "small"}
        back = {"facecolor": paper(ax), "edgecolor": "none", "pad": 1.5}
        ax.text(0.97, 0.97, said, color=ink(ax), bbox=back, **corner)
        return image

    def __repr__(self) -> str:
        name = self.model_name or "a trace"
        text = f", {name}: {len(self.tokens)} tokens" if self.pairs else ""
        return f"AlibiFan({self.n_heads} heads{text})"


def _shown(trace: Trace, layer: int | None) -> tuple[Any, ...]:
    """Return scores, null logits, (layer, head) pairs and tokens of the maps that are shown."""
    n_tokens = min(len(trace.tokens), MOST_TOKENS)
    if n_tokens < 2:
        raise ValueError("AlibiFan needs a trace of at least two tokens; one sees only itself")
    scores = scores_of(trace, n_tokens)
    if trace.heads is not None and trace.scores is None:
        pairs = [tuple(pair) for pair in trace.heads]
    else:
        pairs = [(one, head) for one in range(trace.n_layers) for head in range(trace.n_heads)]
    null = null_logits(trace, scores) if len(pairs) == len(scores) else None
    size = n_tokens * (n_tokens + 1)  # bytes of a triangle
    if layer is None and len(pairs) * size > MOST_BYTES:
        layer = max(
            {one for one, _ in pairs}, key=lambda one: float(trace.received[one, :, 0].mean())
        )
    if layer is not None and not -trace.n_layers <= layer < trace.n_layers:
        raise IndexError(f"layer must be in 0..{trace.n_layers - 1}, got {layer}")
    chosen = [i for i, (one, _) in enumerate(pairs) if layer in (None, one, one - trace.n_layers)]
    if not chosen:
        raise ValueError(f"this trace kept the maps of {pairs}, none of layer {layer}")
    # Of very many heads the first tokens alone.
    while len(chosen) * size > MOST_BYTES:
        n_tokens -= 4
        size = n_tokens * (n_tokens + 1)
    scores = scores[chosen, :n_tokens, :n_tokens]
    null = None if null is None else null[chosen, :n_tokens]
    return scores, null, [list(pairs[i]) for i in chosen], list(trace.tokens[:n_tokens])


def _quantised(scores: Float[np.ndarray, "map query key"]) -> dict[str, bytes]:
    """Return scores as 16 bits each; a step is a thousandth of a nat, or so."""
    rows, columns = np.tril_indices(scores.shape[-1])
    flat = scores[:, rows, columns]
    seen = np.isfinite(flat)
    least = np.where(seen, flat, np.inf).min(1)
    step = np.maximum(np.where(seen, flat, -np.inf).max(1) - least, 1e-6) / (STEPS - 1)
    # 0 is a key that is not seen.
    levels = np.where(seen, 1 + np.round((flat - least[:, None]) / step[:, None]), 0)
    return {"scores": levels.astype("<u2").tobytes(), "scales": as_bytes(np.stack((least, step)))}


def _restored(scores: bytes, scales: bytes, n_tokens: int) -> Float[np.ndarray, "map query key"]:
    least, step = np.frombuffer(scales, "<f4").reshape(2, -1, 1).astype(float)
    rows, columns = np.tril_indices(n_tokens)
    levels = np.frombuffer(scores, "<u2").reshape(len(least), -1).astype(float)
    maps = np.full((len(least), n_tokens, n_tokens), -np.inf)
    maps[:, rows, columns] = np.where(levels > 0, least + (levels - 1) * step, -np.inf)
    return maps
