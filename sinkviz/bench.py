"""Measurements of our own speed, as ratios against a baseline in the same run.

Machines are shared and noisy: repetitions of both sides alternate, and rows give medians. Run them
with ``sinkviz bench NAME``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from sinkviz.caches import SinkCache
from sinkviz.capturing import capture
from sinkviz.forward import forward
from sinkviz.models import LM, load, untouched
from sinkviz.policies import Dense, SinkWindow, Window
from sinkviz.positions import rotate, rotation_by
from sinkviz.scoring import score
from sinkviz.streaming import Lane
from sinkviz.text import story_text

Row = dict[str, Any]


def _seconds(*calls: Callable[[], Any], repeat: int = 7) -> list[float]:
    """Return the median seconds of each call; the calls take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeat + 1):
        for index, call in enumerate(calls):
            started = time.perf_counter()
            call()
            if turn:  # the first turn warms up
                times[index].append(time.perf_counter() - started)
    return [statistics.median(one) for one in times]


def _random_lm(hidden: int, layers: int, heads: int) -> LM:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return LM(LlamaForCausalLM(config).eval(), None, "random")


def bench_cache() -> Iterator[Row]:
    """Cache work per layer and step against rotating all keys again, 32 heads x 128.

    The baseline keeps keys unrotated, appends by concatenation and rotates the whole window at
    each step, as the first implementations of StreamingLLM do.
    """
    lm = _random_lm(4096 // 16, 1, 2)  # head size 128; keys of 32 heads are fed by hand
    steps = 50
    for window in (256, 1024, 4096):
        cache = SinkCache(lm.model, 4, window)
        layer = cache.layers[0]
        fill, one = torch.randn(1, 32, window + 4, 128), torch.randn(1, 32, 1, 128)
        layer.update(fill, fill)
        frequencies = cache.frequencies

        def ring(cache: SinkCache = cache, layer: Any = layer, one: Tensor = one) -> None:
            for _ in range(steps):
                cache.next_positions(1)
                layer.update(one, one)

        held = [fill, fill]

        def rotate_all(
            held: list[Tensor] = held, one: Tensor = one, frequencies: Tensor = frequencies
        ) -> None:
            for _ in range(3):
                for index in range(2):
                    kept = torch.cat((held[index][:, :, :4], held[index][:, :, 5:]), 2)
                    held[index] = torch.cat((kept, one), 2)
                rotate(held[0], *rotation_by(torch.arange(held[0].shape[2]), frequencies))

        ours, theirs = _seconds(ring, rotate_all, repeat=3)
        ours, theirs = 1e3 * ours / steps, 1e3 * theirs / 3
        yield {
            "window": window,
            "ring_ms": ours,
            "rotate_all_ms": theirs,
            "ratio": theirs / ours,
        }


def bench_step() -> Iterator[Row]:
    """A decode step with eviction against one on a preallocated cache without eviction."""
    lm = _random_lm(512, 4, 8)
    token = torch.tensor([1])
    for window in (252, 1020):
        size = window + 4
        cache = SinkCache(lm.model, 4, window)
        forward(lm, cache, torch.ones(size, dtype=torch.long))
        static = StaticCache(config=lm.model.config, max_cache_len=size)
        with untouched(lm.model):
            lm.model(torch.ones(1, size - 1, dtype=torch.long), past_key_values=static)
        last = torch.tensor([[size - 1]])

        def ours(cache: SinkCache = cache) -> None:
            for _ in range(20):
                forward(lm, cache, token, last_only=True)

        def without_eviction(static: Any = static, last: Tensor = last) -> None:
            for _ in range(20):
                with untouched(lm.model):
                    lm.model(token[None], past_key_values=static, position_ids=last)
                    for layer in static.layers:  # feed the last slot again and again
                        layer.cumulative_length.fill_(int(last))

        a, b = _seconds(ours, without_eviction)
        yield {"cache": size, "evicting_ms": 50 * a, "preallocated_ms": 50 * b, "ratio": a / b}


def bench_stream() -> Iterator[Row]:
    """Time per token and bytes of a stream, early and late (classroom model)."""
    lm = load()
    text = lm.encode(story_text(900_000))
    first = None
    for policy, marks in ((SinkWindow(4, 60), (1_000, 100_000)), (Dense(), (1_000, 4_000))):
        for mark in marks:
            lane = Lane(lm, policy)
            for part in text[:mark].split(512):
                lane.feed(part)

            def step(lane: Lane = lane) -> None:
                for i in range(50):
                    lane.feed(text[i : i + 1])

            (seconds,) = _seconds(step)
            milliseconds = 1e3 * seconds / 50
            first = milliseconds if mark == 1_000 else first
            yield {
                "policy": str(policy),
                "at_token": mark,
                "ms_per_token": milliseconds,
                "to_first": milliseconds / first,
                "cache_kb": lane.cache_bytes / 1024,
            }


def bench_score() -> Iterator[Row]:
    """Parallel against stepwise scoring of the same text (classroom model)."""
    lm = load()
    ids = lm.encode(story_text(12_000))[:2000]
    for policy in (Window(64), SinkWindow(4, 60)):
        fast, slow = _seconds(
            lambda policy=policy: score(lm, ids, policy),
            lambda policy=policy: score(lm, ids, policy, engine="stepwise"),
            repeat=3,
        )
        yield {
            "policy": str(policy),
            "tokens": len(ids),
            "parallel_s": fast,
            "stepwise_s": slow,
            "ratio": slow / fast,
            "parallel_tokens_per_s": len(ids) / fast,
        }


def bench_slider() -> Iterator[Row]:
    """Seconds from a move of the sink slider to its answer, 1,000 tokens (classroom model)."""
    lm = load()
    ids = lm.encode(story_text(8_000))[:1000]
    for n_sink in (0, 1, 4):
        policy = SinkWindow(n_sink, 64 - n_sink) if n_sink else Window(64)
        (seconds,) = _seconds(lambda policy=policy: score(lm, ids, policy, mass=True), repeat=9)
        yield {"policy": str(policy), "tokens": len(ids), "seconds": seconds}


def bench_capture() -> Iterator[Row]:
    """Statistics of every head against the plain forward pass (12 layers x 12 heads, d = 768)."""
    lm = _random_lm(768, 12, 12)
    for length in (512, 1024):
        ids = torch.arange(length) % 1000

        def plain(ids: Tensor = ids) -> None:
            with untouched(lm.model):
                lm.model(ids[None], logits_to_keep=1, use_cache=False)

        a, b = _seconds(lambda ids=ids: capture(lm, ids, keep="statistics"), plain, repeat=3)
        yield {"tokens": length, "capture_s": a, "forward_s": b, "ratio": a / b}


BENCHES: dict[str, Callable[[], Iterator[Row]]] = {
    "cache": bench_cache,
    "capture": bench_capture,
    "score": bench_score,
    "slider": bench_slider,
    "step": bench_step,
    "stream": bench_stream,
}
