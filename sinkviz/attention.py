"""Attention itself: softmax and its variants, and attention over a band with moving sinks.

Knows nothing about models, caches or policies: tensors in, tensors out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sinkviz.bands import Band, turned
from sinkviz.folding import capped, folded_attention


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
    attend: Callable[..., Tensor] = folded_attention,
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
        attend: attends over a band with a window, as ``folded_attention`` does.
        kwargs: whatever else transformers passes on; not used.

    Returns:
        The output, and the attention (batch, head, query, key) where asked for.

    Source: Xiao et al. 2023, arXiv 2309.17453, section 3.2 (positions within the cache). That
        only queries need turning follows from rotary scores depending on distance alone.
    """
    band = bands[module.layer_idx].to(query.device)
    if not maps and band.n_recent is not None and attention_mask is None:
        return attend(query, key, value, band, scaling, s_aux, softcap), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    keys, n_sink = key.transpose(-1, -2), band.n_sink
    scores = query @ keys
    if band.turn is not None:
        scores[..., :n_sink] = turned(query, band) @ keys[..., :n_sink]
    scores = capped(scores * scaling, softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    if band.hides:
        scores = scores.masked_fill(~band.visible[:, None], -torch.inf)
    attention = null_softmax(scores, s_aux)
    output = attention.to(value.dtype) @ value
    return output.transpose(1, 2).contiguous(), attention
