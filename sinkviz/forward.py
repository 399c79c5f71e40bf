"""One forward pass over a block of tokens, under any cache; and hooks that watch its attention.

Knows nothing about policies, text or figures.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sinkviz.attention import banded_attention
from sinkviz.bands import Band
from sinkviz.binding import one_at_a_time
from sinkviz.bound import BoundCache
from sinkviz.caches import SinkCache
from sinkviz.families import check_sliding_window, layer_kinds
from sinkviz.models import LM, untouched
from sinkviz.ranked import RankedCache

BANDED = "sinkviz_banded"
AttentionInterface.register(BANDED, banded_attention)
# The band replaces the causal mask, so none is made; without this line transformers would pass
# None as well, but only by accident of an unknown name.
AttentionMaskInterface.register(BANDED, lambda *args, **kwargs: None)


# How often each model is changed meanwhile by what a compiled graph would not see.
_CHANGED: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def forward(
    lm: LM,
    cache: Any,
    ids: Int[Tensor, "*batch token"],
    *,
    attention_mask: Int[Tensor, "*batch token"] | None = None,
    last_only: bool = False,
    maps: bool = False,
    attend: Callable[..., Tensor] | None = None,
) -> Float[Tensor, "*batch predicted vocabulary"]:
    """Feed a block of tokens to the model and its cache; return the logits after each.

    A block may be longer than the cache: every token still sees exactly what the policy lets it
    see. Where the model lets its attention be replaced, the block attends over a band
    (``sinkviz.bands.Band``); elsewhere the cache makes a mask and copies of the sinks.

    Args:
        lm: the language model.
        cache: a ``SinkCache``, or any transformers cache for full attention.
        ids: the tokens, of one stream or of a batch.
        attention_mask: 0 where a token is padding, on the left of a stream.
        last_only: return the logits after the last token alone.
        maps: compute attention maps, for ``watch``.
        attend: attends over bands, see ``banded_attention``.
    """
    fed = ids if ids.ndim == 2 else ids[None]
    mask = attention_mask if attention_mask is None or ids.ndim == 2 else attention_mask[None]
    ring, n_new = isinstance(cache, SinkCache), fed.shape[1]
    turning = lm.family.interface and not isinstance(cache, RankedCache)
    turning = turning and (maps or (ring and cache.bands(n_new)))
    sizes = cache.parts(n_new, turning) if isinstance(cache, BoundCache) else [n_new]
    parts = [fed] if len(sizes) == 1 else fed.split(sizes, 1)
    masks = [None] * len(sizes) if mask is None else mask.split(sizes, 1)
    logits = [
        _one_pass(lm, cache, part, mask, turning, last_only, maps, attend)
        for part, mask in zip(parts, masks, strict=True)
    ]
    whole = logits[-1] if last_only or len(logits) == 1 else torch.cat(logits, 1)
    return whole if ids.ndim == 2 else whole[0]


def _one_pass(
    lm: LM,
    cache: Any,
    ids: Tensor,
    mask: Tensor | None,
    turning: bool,
    last_only: bool,
    maps: bool,
    attend: Callable[..., Tensor] | None,
) -> Tensor:
    options: dict[str, Any] = {"logits_to_keep": 1 if last_only else 0}
    ring, bound = isinstance(cache, SinkCache), isinstance(cache, BoundCache)
    if maps and turning:
        options["maps"] = True
    if attend is not None and turning:
        options["attend"] = attend
    if turning and not ring:
        options["bands"] = _causal_bands(lm, cache, ids.shape[1])
    if mask is not None and not bound:
        mask = _whole_mask(cache, mask)
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if lm.family.alibi:
            del options["position_ids"]
    observed = maps or getattr(cache, "observes", False)
    if maps and not turning:
        check_eager(lm, bound)
    attention = BANDED if turning else "eager" if observed else None
    with untouched(lm.model, attention):
        if ring:
            cache.clock.turning = turning
        held = cache.get_seq_length()
        try:
            output = lm.model(
                ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options
            )
        except BaseException:
            if not bound:
                _cut(cache, held)
            raise
        finally:
            if ring:
                cache.clock.turning = False
    return output.logits


def check_eager(lm: LM, bound: bool = False) -> None:
    """Raise ValueError where the model's own eager attention is not what it computes otherwise.

    Args:
        lm: the language model.
        bound: a cache of ours gives the bias, which sets it right.
    """
    if lm.family.scaled_alibi and not bound:
        raise ValueError(
            "in transformers, eager attention of Falcon applies its ALiBi bias twice, so these "
            "maps would be wrong; use SinkWindow or Window, whose cache sets the bias itself"
        )


def _cut(cache: Any, held: int) -> None:
    """Take back what some layers of a plain cache have taken in of a pass that broke off."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[:, :, :held], layer.values[:, :, :held]


def compiled_step(lm: LM) -> Callable[[SinkCache, Int[Tensor, " token"]], Tensor]:
    """Return a function that feeds one token to a full cache in one compiled graph.

    A full ring is static: its memory never moves, and what changes from step to step are numbers in
    tensors. So one graph, on CUDA one CUDA graph, serves every further token. (``generate`` would
    compile from the first token on, with a mask over all slots: ``is_compileable`` stays False.)

    Args:
        lm: the language model.
    """
    mode = "reduce-overhead" if lm.device.type == "cuda" else None
    run = torch.compile(lm.model.forward, fullgraph=True, dynamic=False, mode=mode)
    marked: weakref.WeakSet[SinkCache] = weakref.WeakSet()

    def step(cache: SinkCache, ids: Int[Tensor, " token"]) -> Tensor:
        if _CHANGED.get(lm.model):
            raise ValueError("interventions do not reach into compiled steps; use compiled=False")
        if cache not in marked:
            for layer in cache.layers:
                for held in (layer.keys, layer.values, layer.sinks):
                    torch._dynamo.mark_static_address(held)
            marked.add(cache)
        with untouched(lm.model):
            cache.clock.compiled = True
            try:
                changes = cache.begin(1, 1, None)
                # The graph's own memory is overwritten by the next replay.
                logits = run(
                    ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1, **changes
                ).logits.clone()
            finally:
                cache.clock.compiled = False
            cache.commit()
        return logits[0]

    return step


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Let compiled steps of a model be refused meanwhile: they run no hooks that came later."""
    _CHANGED[model] = _CHANGED.get(model, 0) + 1
    try:
        yield
    finally:
        _CHANGED[model] -= 1


def _whole_mask(cache: Any, mask: Tensor) -> Tensor:
    """Return the mask of the whole text so far, kept with the cache; a plain cache has none."""
    before = getattr(cache, "sinkviz_mask", mask[:, :0])[:, : cache.get_seq_length()]
    cache.sinkviz_mask = torch.cat((before, mask), 1)
    return cache.sinkviz_mask


def _causal_bands(lm: LM, cache: Any, n_new: int) -> dict[int, Band]:
    seen = cache.get_seq_length()
    check_sliding_window(lm.model, seen + n_new, "a text")
    key = torch.arange(seen + n_new, device=lm.device)[None]
    return {
        layer: Band(query_position=key[:, seen:], key_position=key, n_recent=kind.window)
        for layer, kind in enumerate(layer_kinds(lm.model, lm.family))
    }


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
    with one_at_a_time(lm.model):
        try:
            for layer, module in enumerate(lm.attention_modules):
                handles.append(
                    module.register_forward_hook(
                        lambda module, args, output, layer=layer: observe(layer, output[1])
                    )
                )
            yield
        finally:
            for handle in handles:
                handle.remove()
