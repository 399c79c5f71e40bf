"""What a decoded token costs: the cache's own work, and whole steps of a model.

Knows nothing about texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import Cache

from sinkviz.bench.baselines import (
    RotateAllLayer,
    bare_cache,
    rotate_all_cache,
    rotate_all_step,
)
from sinkviz.bench.measure import (
    LLAMA_7B,
    MEDIUM,
    SIZES,
    SMALL,
    Row,
    Shape,
    alternate,
    copy_bandwidth,
    milliseconds,
    random_lm,
    ratio,
    steps,
    weight_bytes,
)
from sinkviz.caches import REBASE_AT, SinkCache
from sinkviz.lanes import Lane
from sinkviz.memory import free_memory
from sinkviz.models import FEW_PARAMETERS, LM, load, pick_device, untouched
from sinkviz.policies import Recompute, SinkWindow
from sinkviz.terminal import say

N_SINK = 4
# Weights of Llama-2-7B in bfloat16, and caches, and windows that are run afresh.
LLAMA_7B_NEEDS = 20 * 10**9
# Which models are compiled as well: those of few parameters, since compiling takes minutes.
COMPILED = ("small", "all", "none")
TURNS = {True: 15, False: 9}  # of small models, whose steps vary more, and of larger ones


def bench_cache(
    *, sizes: Sequence[int] = SIZES, n_layers: int = 8, n_heads: int = 32, repeat: int = 7
) -> Iterator[Row]:
    """The cache's own work per layer and step against rotating all keys, 32 heads x 128.

    ``layer_ms`` is a whole step through all layers, divided by their number; ``step_ms`` is what
    of it is done at once for all layers, the rotation of their sinks included; ``rebase_ms`` is the
    rare rotation of the whole ring, spread over the tokens between two of them, per layer.
    """
    device = pick_device().type
    # Two heads of 128 for the model itself: the keys of more heads are fed by hand.
    lm = random_lm(Shape("cache", 256, n_layers, 2, 64), device)
    for size in sizes:
        fill = torch.randn(1, n_heads, size, 128, device=device)
        yield _cache_work(lm, fill, n_layers, repeat)


def _cache_work(lm: LM, fill: Tensor, n_layers: int, repeat: int) -> Row:
    size, one = fill.shape[2], fill[:, :, :1].clone()
    cache = SinkCache(lm.model, N_SINK, size - N_SINK)
    frequencies = cache.rings[0].frequencies
    older = [RotateAllLayer(N_SINK, size - N_SINK, frequencies) for _ in range(n_layers)]
    _pass(cache, fill)
    for layer in older:
        layer.update(fill, fill)

    def once() -> None:
        cache.begin(1, 1, None)
        cache.commit()

    def rebase() -> None:
        cache.clock.base -= REBASE_AT + cache.longest
        cache.begin(1, 1, None)

    times = alternate(
        repeat,
        ours=steps(lambda: _pass(cache, one), 50),
        once=steps(once, 50),
        older=steps(lambda: [layer.update(one, one) for layer in older]),
    )
    rebasing = alternate(2, rebase=steps(rebase))["rebase"]
    return {
        "cache": size,
        "layer_ms": milliseconds(times["ours"]) / n_layers,
        "step_ms": milliseconds(times["once"]),
        "rebase_ms": milliseconds(rebasing) / n_layers / max(REBASE_AT, cache.longest),
        "rotate_all_ms": milliseconds(times["older"]) / n_layers,
        "rotate_all_to_ours": ratio(times["older"], times["ours"]),
    }


def _pass(cache: SinkCache, states: Tensor) -> None:
    cache.begin(1, states.shape[2], None)
    for layer in cache.layers:
        layer.update(states, states)
    cache.commit()


def bench_decode(
    model: str | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    shapes: Sequence[Shape] | None = None,
    compiled: str = "small",
    repeat: int | None = None,
) -> Iterator[Row]:
    """Decode steps with eviction: against none, the older recipe and Recompute, at five sizes.

    ``to_static`` and ``to_bare`` are our step as a multiple of one without eviction: on
    transformers' StaticCache, and on a cache that does nothing at all but hold. The next columns
    are what other ways cost, as multiples of our step. ``bandwidth`` is the share of the speed at
    which memory is copied that weights and cache are read with. What is being measured is said on
    standard error.

    Args:
        model: to load, instead of random ones.
        sizes: of the cache, tokens.
        shapes: of the random models.
        compiled: which models are compiled, too: ``small`` ones (below 30 M parameters), ``all``
            or ``none``.
        repeat: turns; by default 15 for small models and 9 for others.

    Raises:
        ValueError: ``compiled`` is something else.
    """
    if compiled not in COMPILED:
        raise ValueError(f"compiled must be one of {', '.join(COMPILED)}, got {compiled!r}")
    device = pick_device().type
    if model is not None:
        makers: list[Callable[[], LM]] = [lambda: load(model)]
    else:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        if shapes is None:
            large = device == "cuda" and free_memory(device) >= LLAMA_7B_NEEDS
            shapes = (SMALL, MEDIUM, LLAMA_7B) if large else (SMALL, MEDIUM)
        makers = [lambda shape=shape: random_lm(shape, device, dtype) for shape in shapes]
    bandwidth = copy_bandwidth(device)
    for make in makers:
        lm = make()
        small = lm.model.num_parameters() < FEW_PARAMETERS
        turns = repeat or TURNS[small]
        compiles = compiled == "all" or (compiled == "small" and small)
        for size in sizes:
            say(f"{lm.name}, cache of {size:,} tokens{', compiled as well' * compiles}")
            yield {"model": lm.name} | _decode(lm, size, bandwidth, compiles, turns)


def _decode(lm: LM, size: int, bandwidth: float, compiles: bool, repeat: int) -> Row:
    ids = torch.arange(size, device=lm.device) % lm.model.config.vocab_size
    one, policy = ids[1:2], SinkWindow(N_SINK, size - N_SINK)
    lane, bare = Lane(lm, policy), bare_cache(lm)
    older = rotate_all_cache(lm, N_SINK, size - N_SINK)
    lane.feed(ids)
    _call(lm, bare, ids)
    rotate_all_step(lm, older, ids)
    fast: dict[str, Any] = {
        "ours": steps(lambda: lane.feed(one), 5),
        "bare": steps(lambda: _call(lm, bare, one), 5),
        "static": _static(lm, ids, one, 5),
        "older": steps(lambda: rotate_all_step(lm, older, one)),
    }
    if compiles and (graph := _compiled(lm, policy, ids, one)) is not None:
        fast["compiled"] = steps(lambda: graph.feed(one), 5)
    times = alternate(repeat, **fast)
    again = Lane(lm, Recompute(size, n_begin=0))
    again.feed(ids)
    slow = alternate(2, ours=fast["ours"], recompute=steps(lambda: again.feed(one)))
    ours = milliseconds(times["ours"])
    row = {
        "cache": size,
        "ms": ours,
        "to_static": ratio(times["ours"], times["static"]),
        "to_bare": ratio(times["ours"], times["bare"]),
        "rotate_all_to_ours": ratio(times["older"], times["ours"]),
        "recompute_to_ours": ratio(slow["recompute"], slow["ours"]),
        "bandwidth": bandwidth_share(lm, lane.cache_bytes, ours / 1e3, bandwidth),
        "compiled_ms": None,
        "compiled_to_static": None,
        "compiled_bandwidth": None,
    }
    if "compiled" in times:
        seconds = milliseconds(times["compiled"])
        row["compiled_ms"] = seconds
        row["compiled_to_static"] = ratio(times["compiled"], times["static"])
        row["compiled_bandwidth"] = bandwidth_share(lm, lane.cache_bytes, seconds / 1e3, bandwidth)
        torch._dynamo.reset()  # the next size is another graph
    return row


def bandwidth_share(lm: LM, kv_bytes: int, seconds: float, bandwidth: float) -> float:
    """Return how near a step comes to the least time that reading its bytes takes, in [0, 1].

    Args:
        lm: the language model, whose weights a step reads once.
        kv_bytes: keys and values that it reads.
        seconds: of the step.
        bandwidth: bytes a second.
    """
    return (weight_bytes(lm) + kv_bytes) / (seconds * bandwidth)


def _call(lm: LM, cache: Cache, ids: Tensor) -> None:
    with untouched(lm.model):
        lm.model(ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)


def _static(lm: LM, ids: Tensor, one: Tensor, n: int) -> Callable[[], int]:
    """Return a call that fills the last slots of a StaticCache, again and again."""
    cache = StaticCache(config=lm.model.config, max_cache_len=len(ids))
    _call(lm, cache, ids[:-n])

    def call() -> int:
        for layer in cache.layers:
            layer.cumulative_length.fill_(len(ids) - n)
        for _ in range(n):
            _call(lm, cache, one)
        return n

    return call


def _compiled(lm: LM, policy: SinkWindow, ids: Tensor, one: Tensor) -> Lane | None:
    """Return a lane whose graph is compiled, or None where this machine cannot."""
    lane = Lane(lm, policy, compiled=True)
    lane.feed(ids)
    try:
        lane.feed(one)
    except RuntimeError:  # no C++ compiler, or a model that does not trace
        torch._dynamo.reset()
        return None
    return lane
