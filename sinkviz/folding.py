"""Attention over a band at a cost that follows the window: neighbouring queries in folds.

Short folds on a processor by torch's fused kernel, all others in plain products of matrices. Knows
nothing about models or caches: tensors in, tensors out.
"""

from __future__ import annotations

import itertools
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from sinkviz.bands import Band, turned

# Scores that a GPU holds at once: 64 MB.
MOST_SCORES = 2**24
# Behind ``scaled_dot_product_attention``, which keeps the logarithms of its sums to itself.
_fused_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
# Multiplications per fold and head up to which that kernel is the faster way on a processor: its
# threads get in each other's way in larger products.
MOST_FUSED = 5 * 2**15


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

    On a processor the stretches are read where they lie, overlapping: short ones by torch's fused
    kernel, others a head at a time, so that its scores stay nearby. A GPU gets copies of them and
    few large products.

    Args:
        query: see ``sinkviz.attention.banded_attention``.
        key: likewise.
        value: likewise.
        band: what each query sees; it has a window.
        scaling: factor of the dot products.
        s_aux: one null logit per head.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.
    """
    if softcap is not None or not _fuses(key, value, band):
        return _in_products(query, key, value, band, scaling, s_aux, softcap)
    far = turned(query, band) if band.n_sink else query
    parts = zip(*(x.split(1) for x in (query, far, key, value)), strict=True)
    rows = [_by_kernel(*part, band, row, scaling, s_aux) for row, part in enumerate(parts)]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _fuses(key: Tensor, value: Tensor, band: Band) -> bool:
    """Whether the fused kernel takes such keys, and is the faster way."""
    small = band.folds.size * band.folds.width * key.shape[-1] <= MOST_FUSED
    return small and key.device.type == "cpu" and key.shape == value.shape


def _by_kernel(
    query: Tensor,
    far: Tensor,
    key: Tensor,
    value: Tensor,
    band: Band,
    row: int,
    scaling: float,
    s_aux: Tensor | None,
) -> Tensor:
    """Return what ``folded_attention`` does, for one row of the batch."""
    folds, n_sink, n_query = band.folds, band.n_sink, query.shape[2]
    outside = folds.mask.to(query.dtype, copy=True)
    outside[:, :n_sink] = -torch.inf
    outside, hidden = outside.expand(1, 1, -1, -1), None
    if folds.missing or not band.all_filled:
        places = folds.hidden[min(row, len(folds.hidden) - 1)]
        outside = outside.masked_fill(places[:, None], -torch.inf)
        hidden = places[..., :n_sink].flatten(0, 1)[:n_query].mT
    near = _folded(query, band, key.shape[1])[0].transpose(0, 1)
    keys, values = (_stretches(x, band)[0].permute(1, 0, 3, 2) for x in (key, value))
    outside = outside.repeat(1, 1, near.shape[2] // folds.size, 1)
    output, log_sum = _fused_kernel(near, keys, values, attn_mask=outside, scale=scaling)
    if hidden is not None:  # the kernel says 0 of a query that sees nothing
        log_sum = log_sum.masked_fill(outside.isneginf().all(-1), -torch.inf)

    def unfolded(x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, folds.size)).movedim(0, 2).flatten(0, 1).flatten(1, 2)
        return x[:, :n_query]

    sinks = (x[0, :, :n_sink] for x in (key, value))
    output, log_sum = unfolded(output), unfolded(log_sum)
    output = with_sinks(output, log_sum, far[0], *sinks, hidden, scaling, s_aux)
    return output.transpose(0, 1)[None]


@no_type_check  # checks, where there are some, cannot be compiled
def with_sinks(
    output: Tensor,
    log_sum: Tensor,
    far: Tensor,
    sinks: Tensor,
    sink_values: Tensor,
    hidden: Tensor | None,
    scaling: float,
    s_aux: Tensor | None,
    softcap: float | None = None,
) -> Tensor:
    """Return the output of attention over a band, the sinks and the null logit, from the band's.

    The logarithm of the band's sum makes the band one more key: a small softmax over it, the sinks
    and the null logit says what share each has. Overwrites ``output``; no gradients.

    Args:
        output: of the band alone, (head, query, dimension).
        log_sum: logarithm of the band's sum of exponentials, (head, query).
        far: the queries as the sinks meet them, (head, query, dimension).
        sinks: their keys, (kv_head, sink, dimension); there may be none.
        sink_values: likewise.
        hidden: which sinks a query must not see, (sink, query); None for none.
        scaling: factor of the dot products.
        s_aux: one null logit per head, or None.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.

    Source: Milakov and Gimelshein 2018, arXiv 1805.02867 (a softmax of parts).
    """
    n_sink, wide = sinks.shape[1], log_sum.dtype
    logits = [log_sum[:, None]]
    if n_sink:
        shared = len(far) // len(sinks)
        sinks, sink_values = (
            x.repeat_interleave(shared, 0) if shared > 1 else x for x in (sinks, sink_values)
        )
        to_sinks = capped(torch.bmm(sinks.to(wide), far.to(wide).mT) * scaling, softcap)
        if hidden is not None:
            to_sinks = to_sinks.masked_fill(hidden, -torch.inf)
        logits.append(to_sinks)
    if s_aux is not None:
        logits.append(s_aux.to(wide).view(-1, 1, 1).expand(-1, 1, log_sum.shape[1]))
    if len(logits) == 1:
        return output
    shares = torch.cat(logits, 1).softmax(1).to(output.dtype)
    # In the order of the output's memory, where heads come last.
    output.mul_(shares[:, 0].T.contiguous().T[..., None])
    return output.baddbmm_(shares[:, 1 : 1 + n_sink].mT, sink_values) if n_sink else output


def _in_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Band,
    scaling: float,
    s_aux: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """Return what ``folded_attention`` does, in plain products of matrices."""
    batch, heads, n_query, size = query.shape
    kv_heads, n_sink, folds = key.shape[1], band.n_sink, band.folds
    shared, width = heads // kv_heads, folds.width
    mask = folds.mask.to(query.dtype)
    mask = mask.repeat(shared, 1) if shared > 1 else mask
    hidden = None
    if softcap is not None or folds.missing or not band.all_filled:
        hidden = folds.hidden.repeat(1, 1, shared, 1).expand(batch, -1, -1, -1)
    near = _folded(query, band, kv_heads)
    far = _folded(turned(query, band), band, kv_heads) if n_sink else near
    keys = _stretches(key, band)
    values = _stretches(value, band)[..., n_sink:].transpose(-1, -2)
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
        wide = torch.promote_types(torch.float32, scores.dtype)
        in_place = scores if scores.dtype == wide else None
        attention = torch.softmax(scores, -1, dtype=wide, out=in_place)
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


def _folded(
    x: Float[Tensor, "batch head query dimension"], band: Band, kv_heads: int
) -> Float[Tensor, "batch kv_head fold shared_query dimension"]:
    """Return queries by fold, those of heads that share keys one after another."""
    folds = band.folds
    x = pad(x, (0, 0, 0, folds.spare)) if folds.spare else x
    x = x.unflatten(1, (kv_heads, -1)).unflatten(3, (folds.count, folds.size))
    return x.transpose(2, 3).flatten(3, 4)


def _stretches(
    x: Float[Tensor, "batch kv_head key dimension"], band: Band
) -> Float[Tensor, "batch kv_head fold dimension place"]:
    """Return the keys of each fold, as a view of overlapping stretches.

    In front of a stretch lie as many more as there are sinks: their places, in sums over both.
    """
    folds = band.folds
    if folds.missing or folds.spare:
        rest = pad(x[:, :, band.n_sink :], (0, 0, folds.missing, folds.spare))
        x = torch.cat((x[:, :, : band.n_sink], rest), 2)
    return x.unfold(2, folds.width, folds.size)


def _heads_at_once(device: torch.device, scores: int) -> int:
    """Return how many heads of so many scores each go into one product."""
    return 1 if device.type == "cpu" else max(1, MOST_SCORES // scores)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Return scores squeezed into (-softcap, softcap) with a tanh, or as they are."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)
