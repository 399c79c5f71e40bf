"""What all benchmarks share: taking turns, random models, texts, bytes.

Knows nothing about what is measured.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sinkviz.models import LM
from sinkviz.text import story_text

Row = dict[str, Any]
SIZES = (256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Shape:
    """Sizes of a random model, a Llama."""

    name: str
    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 1000


SMALL = Shape("random", 512, 4, 8, 2048)
MEDIUM = Shape("random 12 x 12", 768, 12, 12, 2048)
LLAMA_7B = Shape("random Llama-2-7B", 4096, 32, 32, 11008, 32000)


def setting() -> str:
    """Return what numbers depend on: the device, the threads and the version of torch."""
    device = "CPU"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def random_lm(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LM:
    """Return a random Llama, made where it will stay."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    return LM(model.eval(), None, shape.name)


def story_ids(lm: LM, n_tokens: int) -> Int[Tensor, " token"]:
    """Return the first tokens of an endless story."""
    ids, n_characters = lm.encode("Once"), 4 * n_tokens
    while len(ids) < n_tokens:
        n_characters *= 2
        ids = lm.encode(story_text(n_characters))
    return ids[:n_tokens]


def alternate(repeat: int, **calls: Callable[[], int]) -> dict[str, np.ndarray]:
    """Let calls take turns; return the seconds per step of each, a number per turn.

    Each turn begins with another call, because what runs before leaves its traces in the caches of
    the processor.

    Args:
        repeat: turns, after one that warms up.
        calls: what to time; a call returns how many steps it ran.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        order = list(calls)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            finish()
            started = time.perf_counter()
            n_steps = calls[name]()
            finish()
            if turn:
                seconds[name].append((time.perf_counter() - started) / n_steps)
    return {name: np.array(times) for name, times in seconds.items()}


def finish() -> None:
    """Wait for what a CUDA device has still to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def steps(step: Callable[[], Any], n: int = 1) -> Callable[[], int]:
    """Return a call for ``alternate`` that runs a step ``n`` times."""

    def call() -> int:
        for _ in range(n):
            step()
        return n

    return call


def milliseconds(times: np.ndarray) -> float:
    """Return the median of some seconds, in milliseconds."""
    return 1e3 * float(np.median(times))


def ratio(times: np.ndarray, baseline: np.ndarray) -> float:
    """Return the median ratio of times that were taken in the same turns."""
    return float(np.median(times / baseline))


def weight_bytes(lm: LM) -> int:
    """Return the bytes of weights that a decode step reads: of a table of tokens only a row."""
    size = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    table, head = lm.model.get_input_embeddings(), lm.model.get_output_embeddings()
    if head is None or table.weight is not head.weight:
        size -= table.weight.numel() * table.weight.element_size()
    return size


def copy_bandwidth(device: str, n_bytes: int = 2**29) -> float:
    """Return how many bytes a second the fastest of some copies reads and writes, together."""
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    times = alternate(5, copy=steps(lambda: target.copy_(source)))["copy"]
    return 2 * n_bytes / float(times.min())


def resident_bytes() -> int | None:
    """Return the memory that this process takes now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int | None:
    """Return the most memory that this program ever took; None where the system does not tell."""
    # Linux's getrusage would also count the program that started this one.
    with contextlib.suppress(OSError, TypeError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # no Unix
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
