"""One forward pass over a block of tokens, under any cache; and hooks that watch its attention.

Knows nothing about policies, text or figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from sinkviz.attention import Band, banded_attention
from sinkviz.caches import SinkCache
from sinkviz.families import attention_modules, check_sliding_window
from sinkviz.models import LM, untouched

BANDED = "sinkviz_banded"
AttentionInterface.register(BANDED, banded_attention)
# The band replaces the causal mask, so none is made; without this line transformers would pass
# None as well, but only by accident of an unknown name.
AttentionMaskInterface.register(BANDED, lambda *args, **kwargs: None)


def forward(
    lm: LM,
    cache: Any,
    ids: Int[Tensor, " token"],
    *,
    last_only: bool = False,
    maps: bool = False,
) -> Float[Tensor, "predicted vocabulary"]:
    """Feed a block of tokens to the model and its cache; return the logits after each.

    A block may be longer than the cache: every token still sees exactly what the policy lets it
    see, because the block attends over a band (``sinkviz.attention.Band``).

    Args:
        lm: the language model.
        cache: a ``SinkCache``, or any transformers cache for full attention.
        ids: the tokens.
        last_only: return the logits after the last token alone.
        maps: compute attention maps, for ``watch``.
    """
    n_new, options = len(ids), {}
    keep = 1 if last_only else 0
    ring = isinstance(cache, SinkCache)
    if ring:
        options["position_ids"] = cache.next_positions(n_new).to(lm.device)
    banded = maps or (ring and n_new > 1 and cache.seen + n_new > cache.cache_size)
    if banded:
        options["band"] = cache.band(n_new) if ring else _causal_band(lm, cache, n_new)
    with untouched(lm.model, BANDED if banded else None):
        if ring:
            cache.banded = banded
        try:
            output = lm.model(
                ids[None], past_key_values=cache, use_cache=True, logits_to_keep=keep, **options
            )
        finally:
            if ring:
                cache.banded = False
    return output.logits[0]


def _causal_band(lm: LM, cache: Any, n_new: int) -> Band:
    seen = cache.get_seq_length()
    check_sliding_window(lm.model, seen + n_new, "a text")
    key = torch.arange(seen + n_new, device=lm.device)
    return Band(visible=key <= key[seen:, None])


@contextlib.contextmanager
def watch(lm: LM, observe: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Hook every attention module, and call ``observe(layer, attention)`` as its layer is done.

    ``attention`` is (batch, head, query, key), on the layer's device, and is freed before the next
    layer runs unless the observer keeps it. The hooks are gone afterwards, whatever happened.

    Args:
        lm: the language model; run it with ``forward(..., maps=True)``.
        observe: reduces one layer's attention.
    """
    handles = []
    try:
        for layer, module in enumerate(attention_modules(lm.model, lm.family)):
            handles.append(
                module.register_forward_hook(
                    lambda module, args, output, layer=layer: observe(layer, output[1])
                )
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
