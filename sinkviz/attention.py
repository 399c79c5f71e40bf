"""Attention itself: softmax and its variants, and attention over a band with moving sinks.

Knows nothing about models, caches or policies: tensors in, tensors out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sinkviz.positions import rotate


def null_softmax(
    scores: Float[Tensor, "*batch head query key"],
    null_logit: Float[Tensor, " head"] | None = None,
) -> Float[Tensor, "*batch head query key"]:
    """Softmax over keys, with one further logit per head that takes mass to nowhere.

    Rows sum to one without a null logit, and to less than one with it: the rest is null mass.

    Args:
        scores: pre-softmax attention logits.
        null_logit: zero for off-by-one softmax, a learned number for gpt-oss's sinks, None for
            the standard softmax.

    Returns:
        Attention in [0, 1], in float32 or the wider dtype of ``scores``.

    Source: Miller 2023, "Attention is off by one"; OpenAI 2025, gpt-oss model card.

    Example:
        >>> null_softmax(torch.zeros(1, 1, 3), torch.zeros(1))
        tensor([[[0.2500, 0.2500, 0.2500]]])
    """
    dtype = torch.promote_types(torch.float32, scores.dtype)
    if null_logit is None:
        return scores.softmax(-1, dtype=dtype)
    null = null_logit.view(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, null.to(scores)), -1).softmax(-1, dtype=dtype)[..., :-1]


@dataclass(frozen=True)
class Band:
    """What attention must know to let a block of queries see what a cache policy lets them see.

    The first ``n_sink`` keys are sinks; all others form a band: one key per token, in text order,
    and the last belongs to the last query. A query that has left the sinks behind sees them as
    near as in the cache: it is rotated back (``turn``) for their scores.

    Attributes:
        query_position: text position of each query; negative for padding. One row, or one per
            stream of the batch.
        key_position: text position of each key; negative where there is none.
        n_sink: leading keys that are sinks.
        n_recent: most recent tokens that a query sees, itself included; None for all.
        turn: cosine and sine of each query's rotation towards the sinks; None where no query needs
            it, or positions are not rotary.
        interleaved: how rotary coordinates are paired.
    """

    query_position: Int[Tensor, "row query"]
    key_position: Int[Tensor, "row key"]
    n_sink: int = 0
    n_recent: int | None = None
    turn: tuple[Float[Tensor, "row query pair"], Float[Tensor, "row query pair"]] | None = None
    interleaved: bool = False

    def to(self, device: torch.device) -> Band:
        """Return the band with its tensors on a device."""
        if self.key_position.device == device:
            return self
        turn = None if self.turn is None else tuple(part.to(device) for part in self.turn)
        query, key = self.query_position.to(device), self.key_position.to(device)
        return replace(self, query_position=query, key_position=key, turn=turn)

    @cached_property
    def visible(self) -> Bool[Tensor, "row query key"]:
        """Which query sees which key; padding sees everything, so that its softmax is finite."""
        query, key = self.query_position[..., None], self.key_position[:, None]
        visible = (key >= 0) & (key <= query)
        if self.n_recent is not None:
            visible &= (key < self.n_sink) | (key > query - self.n_recent)
        return visible | (query < 0)

    @cached_property
    def hides(self) -> bool:
        """Whether some query must not see some key."""
        return not bool(self.visible.all())

    @cached_property
    def all_filled(self) -> bool:
        """Whether every key is there for every query that its place in the band lets see it."""
        reached = self.query_position[:, :1] >= self.n_sink - 1
        return bool((self.key_position >= 0).all() and reached.all())


def banded_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query dimension"],
    key: Float[Tensor, "batch kv_head key dimension"],
    value: Float[Tensor, "batch kv_head key dimension"],
    attention_mask: Tensor | None,
    *,
    bands: dict[int, Band],
    scaling: float,
    s_aux: Float[Tensor, " head"] | None = None,
    softcap: float | None = None,
    maps: bool = False,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head dimension"], Tensor | None]:
    """Attend over a band of recent keys and the sinks; a transformers attention function.

    Args:
        module: the attention module; its ``layer_idx`` picks the band.
        query: rotated at text positions where positions are rotary.
        key: sinks first, then the band, oldest first; rotated like the queries.
        value: in the order of the keys.
        attention_mask: a bias to add to the scores (ALiBi, T5), or None.
        bands: per layer, what each query sees, and how it turns to the sinks.
        scaling: factor of the dot products.
        s_aux: one null logit per head, see ``null_softmax``.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.
        maps: return the attention too; slower.
        kwargs: whatever else transformers passes on; not used.

    Returns:
        The output, and the attention (batch, head, query, key) where asked for.

    Source: Xiao et al. 2023, arXiv 2309.17453, section 3.2 (positions within the cache). That
        only queries need turning follows from rotary scores depending on distance alone.
    """
    band = bands[module.layer_idx].to(query.device)
    if not maps and band.n_recent is not None and attention_mask is None:
        return folded_attention(query, key, value, band, scaling, s_aux, softcap), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    keys, n_sink = key.transpose(-1, -2), band.n_sink
    scores = query @ keys
    if band.turn is not None:
        scores[..., :n_sink] = turned(query, band) @ keys[..., :n_sink]
    scores = _cap(scores * scaling, softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    if band.hides:
        scores = scores.masked_fill(~band.visible[:, None], -torch.inf)
    attention = null_softmax(scores, s_aux)
    output = attention.to(value.dtype) @ value
    return output.transpose(1, 2).contiguous(), attention


def turned(
    query: Float[Tensor, "batch head query dimension"], band: Band
) -> Float[Tensor, "batch head query dimension"]:
    """Return the queries as the sinks meet them: rotated to their position within the cache."""
    if band.turn is None:
        return query
    cos, sin = (part[:, None] for part in band.turn)
    return rotate(query, cos, sin, interleaved=band.interleaved)


def _cap(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def folded_attention(
    query: Float[Tensor, "batch head query dimension"],
    key: Float[Tensor, "batch kv_head key dimension"],
    value: Float[Tensor, "batch kv_head key dimension"],
    band: Band,
    scaling: float,
    s_aux: Float[Tensor, " head"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch query head dimension"]:
    """Attend over a band at a cost that follows the window, not the block.

    The block is folded into groups of neighbouring queries, and each group attends over the
    stretch of keys that its queries can see: at most a window and a group long, wherever it lies.

    Args:
        query: see ``banded_attention``.
        key: likewise.
        value: likewise.
        band: what each query sees.
        scaling: factor of the dot products.
        s_aux: one null logit per head.
        softcap: see ``banded_attention``.
    """
    batch, heads, n_query, size = query.shape
    kv_heads, n_sink, reach = key.shape[1], band.n_sink, band.n_recent - 1
    shared = heads // kv_heads
    # About a window wide, and a power of two, which blocks are too: then nothing is left over.
    fold = min(n_query, 2 ** min(7, max(5, round(math.log2(band.n_recent)))))
    n_folds = -(-n_query // fold)
    spare = n_folds * fold - n_query
    # Keys before the first query that are not there, such as at the beginning of a text.
    missing = reach - (key.shape[2] - n_sink - n_query)

    row = torch.arange(fold, device=query.device)[:, None]
    column = torch.arange(-n_sink, reach + fold, device=query.device)
    outside = (column >= 0) & ((column < row) | (column > row + reach))
    mask = query.new_zeros(outside.shape).masked_fill(outside, -torch.inf).repeat(shared, 1)
    hidden = None
    if softcap is not None or missing or not band.all_filled:
        hidden = ~_folded_visibility(band, n_folds, fold, missing, spare)
        hidden = hidden.repeat(1, 1, shared, 1).expand(batch, -1, -1, -1)

    apart = n_sink > 0 and band.turn is not None
    queries = torch.cat((query, turned(query, band)), -1) if apart else query
    if spare:
        queries = nn.functional.pad(queries, (0, 0, 0, spare))
    queries = queries.view(batch, kv_heads, shared, n_folds, fold, -1).transpose(2, 3)

    def stretched(x: Tensor, apart: bool) -> Tensor:
        """The sinks and each fold's stretch of keys; in coordinates of their own if ``apart``."""
        stretch = x[:, :, n_sink:]
        if missing or spare:
            stretch = nn.functional.pad(stretch, (0, 0, missing, spare))
        width = (1 + apart) * size
        found = x.new_zeros if apart else x.new_empty
        found = found(batch, x.shape[1], n_folds, width, n_sink + reach + fold)
        found[..., :size, n_sink:] = stretch.unfold(2, reach + fold, fold)
        found[..., width - size :, :n_sink] = x[:, :, None, :n_sink].transpose(-1, -2)
        return found.flatten(0, 2)

    def attend(heads: slice) -> Tensor:
        folded = queries[:, heads].reshape(-1, shared * fold, queries.shape[-1])
        scores = torch.baddbmm(mask, folded, stretched(key[:, heads], apart), alpha=scaling)
        if softcap is not None:
            scores = _cap(scores, softcap)
        if hidden is not None:
            alike = scores.view(batch, -1, *hidden.shape[1:])
            scores = alike.masked_fill(hidden[:, None], -torch.inf).flatten(0, 2)
        if s_aux is not None:
            null = s_aux.view(kv_heads, 1, shared, 1)[heads].to(scores)
            null = null.expand(batch, -1, n_folds, shared, fold).reshape(*scores.shape[:2], 1)
            scores = torch.cat((scores, null), -1)
        attention = scores.softmax(-1, dtype=torch.promote_types(torch.float32, scores.dtype))
        attention = attention[..., : n_sink + reach + fold].to(value.dtype)
        output = attention @ stretched(value[:, heads], apart=False).transpose(1, 2)
        return output.view(batch, -1, n_folds, shared, fold, size)

    # As many heads at once as 64 MB of scores allow.
    step = max(1, 2**24 // (batch * n_folds * shared * fold * len(column)))
    parts = [attend(slice(head, head + step)) for head in range(0, kv_heads, step)]
    output = torch.cat(parts, 1).permute(0, 2, 4, 1, 3, 5)
    return output.reshape(batch, n_folds * fold, heads, size)[:, :n_query]


def _folded_visibility(
    band: Band, n_folds: int, fold: int, missing: int, spare: int
) -> Bool[Tensor, "row fold query key"]:
    """Return ``band.visible`` in folds: the sinks, then the stretch of keys of each fold."""
    pad = nn.functional.pad
    query = pad(band.query_position, (0, spare), value=-1).unflatten(1, (n_folds, fold))
    key = pad(band.key_position[:, band.n_sink :], (missing, spare), value=-1)
    key = key.unfold(1, band.n_recent - 1 + fold, fold)
    front = band.key_position[:, None, : band.n_sink].expand(-1, n_folds, -1)
    folded = Band(
        query.flatten(0, 1), torch.cat((front, key), -1).flatten(0, 1), band.n_sink, band.n_recent
    )
    return folded.visible.unflatten(0, (-1, n_folds))
