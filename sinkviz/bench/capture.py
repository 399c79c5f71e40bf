"""What capturing costs beside the plain pass: time, memory, and bytes that are kept.

Of a whole text, and of every step of a stream. Knows nothing about how attention is observed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from sinkviz.bench.measure import (
    MEDIUM,
    Row,
    Shape,
    alternate,
    milliseconds,
    peak_bytes,
    random_lm,
    ratio,
    steps,
)
from sinkviz.capturing import capture
from sinkviz.models import LM, pick_device, untouched
from sinkviz.policies import SinkWindow
from sinkviz.records import Trace
from sinkviz.streaming import stream

LENGTHS = (1024, 2048, 4096, 8192)
LENGTHS_ON_CUDA = (*LENGTHS, 16384, 32768)
CACHES = (256, 1024)
SHAPE = replace(MEDIUM, name="random Llama")
LEAN = ("received", "mass")
# Whole maps of more tokens take gigabytes.
MAPS_UP_TO = 1024
CHILD = """
import json, sys
from sinkviz.bench.capture import Shape, peak_of
family, length, name, shape = json.loads(sys.argv[1])
print(json.dumps(peak_of(family, length, name, Shape(*shape))))
"""


def model_of(family: str, shape: Shape = SHAPE) -> LM:
    """Return a random model of 12 layers x 12 heads, d = 768: ``llama`` or ``gpt2``.

    In bfloat16 on a CUDA device, where there is one.
    """
    device = pick_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if family == "llama":
        return random_lm(shape, device.type, dtype)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=LENGTHS_ON_CUDA[-1],
        bos_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        model = GPT2LMHeadModel._from_config(config, dtype=dtype)
    return LM(model.eval(), None, "random GPT-2")


def calls_of(lm: LM, length: int) -> dict[str, Callable[[], Any]]:
    """Return what is compared, by name."""
    ids = _ids(lm, length)
    calls = {
        "forward": lambda: _plain(lm, ids),
        "mass": lambda: capture(lm, ids, keep="statistics", statistics=LEAN),
        "all": lambda: capture(lm, ids, keep="statistics"),
    }
    if length <= MAPS_UP_TO:
        calls["maps"] = lambda: capture(lm, ids, keep="maps")
        calls["output_attentions"] = lambda: _attentions(lm, ids)
    return calls


def bench_capture(
    *,
    tokens: int | None = None,
    lengths: Sequence[int] | None = None,
    families: Sequence[str] = ("llama", "gpt2"),
    shape: Shape = SHAPE,
    repeat: int = 3,
    memory: bool = True,
    caches: Sequence[int] = CACHES,
) -> Iterator[Row]:
    """Capture beside the forward pass with ``logits_to_keep=1``, 12 layers x 12 heads, d = 768.

    ``mass`` is received attention and mass by role, ``all`` every statistic; short texts have also
    whole ``maps``, and the same from transformers. ``ratio`` is of times. ``peak_mb`` is what a
    process of its own takes at most beyond the loaded model, or what is taken of a CUDA device,
    and ``kept_mb`` what is returned.
    Then ``step``, a token of a stream whose cache is full, alone and captured. ``tokens`` is one
    length instead of several.
    """
    if tokens is not None:
        lengths = (tokens,)
    elif lengths is None:
        lengths = LENGTHS_ON_CUDA if pick_device().type == "cuda" else LENGTHS
    for family in families:
        lm = model_of(family, shape)
        for length in lengths:
            calls = calls_of(lm, length)
            times = alternate(repeat, **{name: steps(call) for name, call in calls.items()})
            for name, call in calls.items():
                row = {
                    "model": lm.name,
                    "tokens": length,
                    "what": name,
                    "seconds": milliseconds(times[name]) / 1e3,
                    "ratio": ratio(times[name], times["forward"]),
                    "kept_mb": kept_bytes(call()) / 1e6,
                }
                if memory and lm.device.type == "cuda":
                    row["peak_mb"] = _most_allocated(call) / 1e6
                elif memory:
                    row["peak_mb"] = _peak(family, length, name, shape)
                yield row
    lm = model_of("llama", shape)
    for size in caches:
        for row in _steps_of_a_stream(lm, size, 3 * repeat):
            yield row | ({"peak_mb": None} if memory else {})


def _steps_of_a_stream(lm: LM, size: int, repeat: int, n_steps: int = 8) -> Iterator[Row]:
    """Time a token under a cache that is full, plain and captured."""
    calls = {}
    for name, captured in (("step", False), ("step captured", True)):
        policy = SinkWindow(4, size - 4)
        steps_of = stream(lm, policy, _ids(lm, size), max_new_tokens=None, capture=captured)
        next(steps_of)
        calls[name] = steps(lambda steps_of=steps_of: next(steps_of), n_steps)
    times = alternate(repeat, **calls)
    for name in calls:
        yield {
            "model": lm.name,
            "tokens": size,
            "what": name,
            "seconds": milliseconds(times[name]) / 1e3,
            "ratio": ratio(times[name], times["step"]),
            "kept_mb": None,
        }


def _ids(lm: LM, length: int) -> Tensor:
    return torch.arange(length, device=lm.device) * 7 % lm.model.config.vocab_size


def kept_bytes(result: Any) -> int:
    """Return the bytes of the arrays of a trace, or of some tensors."""
    if isinstance(result, Trace):
        arrays = [x for x in vars(result).values() if isinstance(x, np.ndarray)]
        return sum(x.nbytes for x in arrays)
    return sum(x.nbytes for x in result or ())


def peak_of(family: str, length: int, name: str, shape: Shape = SHAPE) -> int | None:
    """Return how many bytes this process takes at most, beyond the loaded model."""
    lm = model_of(family, shape)
    for call in calls_of(lm, 16).values():
        call()
    before = peak_bytes()
    calls_of(lm, length)[name]()
    after = peak_bytes()
    return None if after is None else after - before


def _most_allocated(call: Callable[[], Any]) -> int:
    """Return how many bytes of a CUDA device a call takes at most, beyond those that are taken."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def _peak(family: str, length: int, name: str, shape: Shape = SHAPE) -> float | None:
    # Large tensors are given back at once, so that the peak is of what is needed and not of what
    # the allocator has kept.
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([family, length, name, astuple(shape)])],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peak = json.loads(done.stdout.splitlines()[-1])
    return None if peak is None else peak / 1e6


def _plain(lm: LM, ids: Tensor) -> None:
    with untouched(lm.model):
        lm.model(ids[None], use_cache=False, logits_to_keep=1)


def _attentions(lm: LM, ids: Tensor) -> tuple[Tensor, ...]:
    with untouched(lm.model, "eager"):
        return lm.model(
            ids[None], use_cache=False, logits_to_keep=1, output_attentions=True
        ).attentions
