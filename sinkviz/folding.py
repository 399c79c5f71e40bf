"""Attention over a band at a cost that follows the window, in plain products of matrices.

Knows nothing about models or caches: tensors in, tensors out.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from sinkviz.bands import Band, turned

# Scores that a GPU holds at once: 64 MB.
MOST_SCORES = 2**24


def folded_attention(
    query: Float[Tensor, "batch head query dimension"],
    key: Float[Tensor, "batch kv_head key dimension"],
    value: Float[Tensor, "batch kv_head key dimension"],
    band: Band,
    scaling: float,
    s_aux: Float[Tensor, " head"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch query head dimension"]:
    """Attend over a band in folds: each group of neighbouring queries meets its stretch of keys.

    On a processor the stretches are read where they lie, overlapping, a head at a time, and its
    scores stay nearby; a GPU gets copies of them and few large products.

    Args:
        query: see ``sinkviz.attention.banded_attention``.
        key: likewise.
        value: likewise.
        band: what each query sees; it has a window.
        scaling: factor of the dot products.
        s_aux: one null logit per head.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.
    """
    batch, heads, n_query, size = query.shape
    kv_heads, n_sink, folds = key.shape[1], band.n_sink, band.folds
    shared, width = heads // kv_heads, folds.width
    mask = folds.mask.to(query.dtype)
    mask = mask.repeat(shared, 1) if shared > 1 else mask
    hidden = None
    if softcap is not None or folds.missing or not band.all_filled:
        hidden = folds.hidden.repeat(1, 1, shared, 1).expand(batch, -1, -1, -1)

    def folded(x: Tensor) -> Tensor:
        """Queries by fold, those of heads that share keys together."""
        x = pad(x, (0, 0, 0, folds.spare)) if folds.spare else x
        x = x.unflatten(1, (kv_heads, shared)).unflatten(3, (folds.count, folds.size))
        return x.transpose(2, 3).flatten(3, 4)

    def filled(x: Tensor) -> Tensor:
        """The sinks and the band, with something in every place."""
        if not (folds.missing or folds.spare):
            return x
        rest = pad(x[:, :, n_sink:], (0, 0, folds.missing, folds.spare))
        return torch.cat((x[:, :, :n_sink], rest), 2)

    near = folded(query)
    far = folded(turned(query, band)) if n_sink else near
    # In front of a fold's stretch lie as many keys as there are sinks, which take their places.
    keys = filled(key).unfold(2, width, folds.size)
    values = filled(value)[:, :, n_sink:].unfold(2, width - n_sink, folds.size).transpose(-1, -2)
    output = query.new_empty(batch, folds.count * folds.size, heads, size)
    by_fold = output.unflatten(2, (kv_heads, shared)).unflatten(1, (folds.count, folds.size))
    by_fold = by_fold.permute(0, 3, 1, 4, 2, 5)  # row, kv_head, fold, shared, query, dimension

    def attend(
        row: int,
        null: Tensor | None,
        near: Tensor,
        far: Tensor,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor,
        sink_values: Tensor,
        target: Tensor,
    ) -> None:
        """Write into ``target`` what a few heads of a row attend to."""
        scores = torch.baddbmm(mask, near.flatten(0, 1), keys.flatten(0, 1), alpha=scaling)
        if n_sink:
            to_sinks = scores.view(len(sinks), -1, width)[..., :n_sink]
            to_sinks.baddbmm_(far.flatten(1, 2), sinks.mT, beta=0, alpha=scaling)
        if softcap is not None:
            scores = capped(scores, softcap)
        if hidden is not None:
            alike = scores.unflatten(0, (-1, folds.count))
            scores = alike.masked_fill(hidden[row], -torch.inf).flatten(0, 1)
        if null is not None:
            null = null.expand(-1, folds.count, shared, folds.size).reshape(*scores.shape[:2], 1)
            scores = torch.cat((scores, null.to(scores)), -1)
        attention = scores.softmax(-1, dtype=torch.promote_types(torch.float32, scores.dtype))
        attention = attention[..., :width].to(value.dtype)
        found = torch.bmm(attention[..., n_sink:], values.flatten(0, 1))
        if n_sink:
            of_sinks = attention[..., :n_sink].unflatten(0, (-1, folds.count)).flatten(1, 2)
            by_head = found.view(len(of_sinks), -1, size)
            by_head.baddbmm_(of_sinks, sink_values)
        target.copy_(found.view(target.shape))

    step = _heads_at_once(query.device, folds.count * shared * folds.size * width)
    nulls = itertools.repeat(None)
    if s_aux is not None:
        nulls = s_aux.view(kv_heads, 1, shared, 1).split(step)
    in_sinks = key[:, :, :n_sink], value[:, :, :n_sink]
    for row in range(batch):
        parts = (x[row].split(step) for x in (near, far, keys, values, *in_sinks, by_fold))
        for few in zip(nulls, *parts, strict=False):
            attend(row, *few)
    return output[:, :n_query]


def _heads_at_once(device: torch.device, scores: int) -> int:
    """Return how many heads of so many scores each go into one product."""
    return 1 if device.type == "cpu" else max(1, MOST_SCORES // scores)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Return scores squeezed into (-softcap, softcap) with a tanh, or as they are."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)
