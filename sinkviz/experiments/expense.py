"""What a call costs: its peak memory; and what to time: training steps, forward passes.

Knows nothing about what is compared with what.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sinkviz.models import FEW_PARAMETERS, LM, untouched
from sinkviz.recipes import Recipe


def peak_bytes_of(call: Callable[[], Any], device: torch.device) -> int:
    """Return the most memory that a call holds at a time, beyond what was there before it.

    Counted in tensors as they are allocated and freed, so on a CPU the number is the same on every
    machine and does not depend on what the process has kept from earlier calls.

    Args:
        call: what to run, once; whatever it compiles or keeps should be there already.
        device: where it allocates.

    Example:
        >>> peak_bytes_of(lambda: torch.zeros(1000).exp(), torch.device("cpu"))
        8000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _hushed(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        call()
    events = watched.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep the profiler's own two lines, written past Python, off the terminal."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def can_train(lm: LM) -> bool:
    """Whether a training step is measured: the model is small, or on a CUDA device."""
    return lm.device.type == "cuda" or lm.model.num_parameters() < FEW_PARAMETERS


def training_step(lm: LM, ids: Int[Tensor, "row token"], recipe: Recipe) -> Callable[[], None]:
    """Return a call that trains a copy of a model for one step, as ``sinkviz.training`` does.

    Forward in bfloat16 where the device is fast at it, backward, clipping, AdamW; eager attention,
    not compiled. The model itself stays as it is.

    Args:
        lm: the language model.
        ids: the batch; every token but a row's first is predicted.
        recipe: says how the optimiser is set.
    """
    model = copy.deepcopy(lm.model).float().train().requires_grad_(True)
    model.config._attn_implementation = "eager"
    kind = lm.device.type
    bfloat16 = kind == "cuda" or torch.cpu._is_amx_tile_supported()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True
    )

    def step() -> None:
        with torch.enable_grad():
            with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
                logits = model(ids[:, :-1], use_cache=False).logits
            wanted = ids[:, 1:].flatten()
            torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(
    lm: LM, ids: Int[Tensor, "row token"], attention: str | None
) -> Callable[[], None]:
    """Return a call that runs one forward pass and keeps nothing.

    Args:
        lm: the language model.
        ids: the batch.
        attention: name of the attention implementation; the model's own where not given.
    """

    def step() -> None:
        with untouched(lm.model, attention):
            lm.model(ids[:, :-1], use_cache=False)

    return step


def words_per_token(lm: LM, ids: Int[Tensor, " token"]) -> float:
    """Return how many words, things between spaces, a token of a text is; 1 without tokenizer."""
    return 1.0 if lm.tokenizer is None else len(lm.decode(ids).split()) / len(ids)
