"""Ties a cache to its model: plain module hooks that tell the cache when a pass begins and ends.

A transformers cache sees keys and values, but neither positions nor padding, and it cannot say what
a query may see. With these hooks it can, whoever calls the model: ``sinkviz.stream``,
``model.generate`` or a user's own loop. The hooks do nothing in passes with another cache, and go
when the cache goes. Knows nothing about how a cache keeps its tokens.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sinkviz.bound import BoundCache
from sinkviz.families import Family, attention_modules
from sinkviz.positions import alibi_bias, alibi_slopes

# Hooks, and the name of the attention in a model's config, are shared by all threads.
_TURNS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_NEW_TURN = threading.Lock()


@contextlib.contextmanager
def one_at_a_time(model: nn.Module) -> Iterator[None]:
    """Let other threads wait while this one hooks, renames or runs a model."""
    with _NEW_TURN:
        turn = _TURNS.setdefault(model, threading.RLock())
    with turn:
        yield


def bind(cache: BoundCache, model: nn.Module, family: Family) -> None:
    """Let a cache follow the passes of a model, as long as the cache lives."""
    own = weakref.ref(cache)
    cache.bound_to = weakref.ref(model)

    def ours(kwargs: dict[str, Any]) -> BoundCache | None:
        cache = own()
        return cache if cache is not None and any(x is cache for x in kwargs.values()) else None

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        if (cache := ours(kwargs)) is None:
            return None
        if kwargs.get("use_cache") is False:
            raise ValueError(
                f"{family.name} is told not to use the cache that it is given, and would get the "
                "whole text again with every token; pass use_cache=True (to generate, too)"
            )
        _check_new(cache, _fed(args, kwargs).shape[1], kwargs)
        if kwargs.get("logits_to_keep") == 1 and kwargs.get("input_ids") is not None:
            kwargs = _last_part(cache, module, kwargs)
        ids = _fed(args, kwargs)
        changes = cache.begin(*ids.shape[:2], kwargs.get("attention_mask"))
        return args, {**kwargs, **changes}

    def leave(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if (cache := ours(kwargs)) is not None:
            cache.commit()

    with one_at_a_time(model):
        handles = [
            model.register_forward_pre_hook(enter, with_kwargs=True),
            model.register_forward_hook(leave, with_kwargs=True),
        ]
        if family.alibi or cache.observes:
            slopes = alibi_slopes(model.config.get_text_config().num_attention_heads)
            for module in attention_modules(model, family):
                if family.alibi:
                    hook = _alibi_hook(ours, family, slopes)
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                if cache.observes:
                    handles.append(module.register_forward_hook(_observer(ours), with_kwargs=True))
    weakref.finalize(cache, _remove, cache.bound_to, handles)


def _fed(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return what a model is given to read: ids or embeddings, (batch, token, ...)."""
    given = [args[0] if args else None, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
    return next(x for x in given if x is not None)


def _check_new(cache: BoundCache, n_new: int, kwargs: dict[str, Any]) -> None:
    """Raise ValueError where a text does not go on where the cache stands, but begins anew.

    ``generate`` leaves out as many tokens as the cache has read, whatever they were. A mask is of
    the new tokens, or of the whole text. Where there is none, what is left of a text that the cache
    is past stands at positions that it is past.
    """
    seen = cache.get_seq_length()
    mask, position = kwargs.get("attention_mask"), kwargs.get("position_ids")
    length = mask.shape[1] if mask is not None and mask.ndim == 2 else seen + n_new
    past = n_new and mask is None and position is not None and int(position.max()) < seen
    if not n_new or past or length not in (n_new, seen + n_new):
        raise ValueError(
            f"this cache has read {seen} tokens already, and the text that it is given does not go "
            "on from there; give the whole text so far and more, or make a new cache"
        )


def _last_part(cache: BoundCache, model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Feed a prompt that is too long for one pass, its last part aside; return what is left.

    Only where nothing but the last token's logits is asked for, as ``generate`` does.
    """
    ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
    sizes = cache.parts(ids.shape[1], getattr(cache, "turning", False))
    if len(sizes) < 2:
        return kwargs
    parts = ids.split(sizes, 1)
    masks = [None] * len(sizes)
    if mask is not None:
        masks = mask[:, -ids.shape[1] :].split(sizes, 1)
    same = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    for part, part_mask in zip(parts[:-1], masks[:-1], strict=True):
        model(input_ids=part, attention_mask=part_mask, **same)
    return {**kwargs, "input_ids": parts[-1], "attention_mask": masks[-1]}


def _remove(bound_to: weakref.ref[nn.Module], handles: list[Any]) -> None:
    if (model := bound_to()) is None:
        return
    with one_at_a_time(model):
        for handle in handles:
            handle.remove()


def _observer(ours: Any) -> Any:
    def observe(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if (cache := ours(kwargs)) is None:
            return
        if not isinstance(output[1], Tensor) or output[1].ndim != 4:
            raise ValueError(
                "this policy chooses by attention, which "
                f"{module.config._attn_implementation!r} does not return; load the model with "
                "attn_implementation='eager', or use sinkviz.stream, which does so itself"
            )
        cache.observe(module.layer_idx, output[1])

    return observe


def _alibi_hook(ours: Any, family: Family, slopes: Tensor) -> Any:
    """Return a hook that gives an attention module the bias of the distances within the cache.

    The model has built its own from the number of keys, which is right only for keys in text order.
    """

    def rewrite(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        if (cache := ours(kwargs)) is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        distance, visible = (
            x.to(hidden.device, non_blocking=True) for x in cache.layout_of(module.layer_idx)
        )
        bias = alibi_bias(slopes.to(hidden.device, hidden.dtype), distance).transpose(0, 1)
        if family.scaled_alibi:
            bias = bias / math.sqrt(module.head_dim)
        bias = additive(visible, hidden.dtype) + bias
        own = torch.zeros_like(kwargs[family.alibi][..., :1])
        if family.alibi == "position_bias":
            own, bias = None, AddingMask(bias)
        return args, {**kwargs, "attention_mask": bias, family.alibi: own}

    return rewrite


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to scores, (row, 1, query, key): 0 where visible, very low elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


class AddingMask(Tensor):
    """A mask for a model that fills with ``masked_fill``: scores get the mask added instead.

    MPT has one bias for all streams of a batch and a mask for each; a bias for each fits nowhere
    else.
    """

    def __new__(cls, bias: Tensor) -> AddingMask:
        """Wrap a bias."""
        return bias.as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Add where ``masked_fill`` is called; anything else as a plain tensor."""
        plain = [x.as_subclass(Tensor) if isinstance(x, cls) else x for x in args]
        if func is Tensor.masked_fill:
            return plain[0] + plain[1]
        return func(*plain, **(kwargs or {}))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until a short stretch that must not break off is over."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is None:  # not Python's to defer
        yield
        return
    pressed: list[tuple] = []
    before = signal.signal(signal.SIGINT, lambda *args: pressed.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed and callable(before):
            before(*pressed[0])
