"""How well a model predicts a given text under a cache policy, a block of queries at a time.

Knows nothing about sampling, figures or widgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from sinkviz.caches import SinkCache
from sinkviz.forward import forward, watch
from sinkviz.metrics import ROLES
from sinkviz.metrics import mass as mass_by_role
from sinkviz.models import LM, Text, untouched
from sinkviz.policies import Policy
from sinkviz.records import StreamRun, provenance
from sinkviz.streaming import Lane


def score(
    lm: LM,
    text: Text,
    policy: Policy,
    *,
    engine: str = "parallel",
    block: int = 256,
    mass: bool = False,
    progress: bool = False,
) -> StreamRun:
    """Measure how well a model predicts every token of a text under a policy.

    Args:
        lm: the language model.
        text: text or ids; two tokens at least, and it may be of any length.
        policy: what stays in the cache.
        engine: ``parallel`` (a block of queries per forward pass, exact) or ``stepwise`` (a token
            per pass: its slow reference).
        block: queries per forward pass; memory grows with it, results do not change.
        mass: also record where the attention went, by role of the key (parallel engine, not for
            Recompute).
        progress: show a progress bar.

    Returns:
        The run: nll per token, in nats.

    Raises:
        ValueError: the text is too short, or an option is out of range.
    """
    if engine not in ("parallel", "stepwise"):
        raise ValueError(f"no engine {engine!r}; known are parallel, stepwise")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if mass and (engine == "stepwise" or policy.recompute):
        raise ValueError("mass is recorded by the parallel engine, and not for Recompute")
    ids = lm.encode(text)
    if len(ids) < 2:
        raise ValueError("a text to score needs at least two tokens; the first predicts the next")
    lane = Lane(lm, policy)
    shares = None
    if mass:
        shares = np.zeros((len(ids), len(ROLES)), dtype=np.float32)
        shares[-1] = np.nan  # the last token predicts nothing and is not fed
    if engine == "stepwise":
        blocks = _score_stepwise(lane, ids)
    elif policy.recompute:
        blocks = _score_windows(lane, ids, max(1, block * 16 // policy.cache_size))
    else:
        blocks = _score_blocks(lane, ids, block, shares)
    started = time.perf_counter()
    parts = []
    with tqdm(total=len(ids), desc=str(policy), unit="token", disable=not progress) as bar:
        for logits, start in blocks:
            targets = ids[start + 1 : start + 1 + len(logits)]
            logits = logits[: len(targets)]
            wide = logits.double() if logits.dtype == torch.float64 else logits.float()
            parts.append(torch.nn.functional.cross_entropy(wide, targets, reduction="none").cpu())
            bar.update(len(logits))
    nll = torch.cat([torch.full((1,), torch.nan, dtype=parts[0].dtype), *parts])
    return StreamRun(
        policy=policy,
        token_ids=ids.cpu().numpy(),
        nll=nll.numpy(),
        mass=shares,
        seconds=time.perf_counter() - started,
        cache_bytes=lane.cache_bytes,
        provenance=provenance(
            lm.name, ids.cpu().numpy(), policy=str(policy), engine=engine, device=str(lm.device)
        ),
    )


def _score_stepwise(lane: Lane, ids: Int[Tensor, " token"]) -> Iterator[tuple[Tensor, int]]:
    for start in range(len(ids) - 1):
        yield lane.feed(ids[start : start + 1])[None], start


def _score_blocks(
    lane: Lane, ids: Int[Tensor, " token"], block: int, shares: np.ndarray | None
) -> Iterator[tuple[Tensor, int]]:
    for start in range(0, len(ids) - 1, block):
        part = ids[start : min(start + block, len(ids) - 1)]
        if shares is None:
            yield forward(lane.lm, lane.cache, part), start
            continue
        with watch(lane.lm, _mass_observer(lane, start, len(part), shares)):
            logits = forward(lane.lm, lane.cache, part, maps=True)
        yield logits, start


def _mass_observer(
    lane: Lane, start: int, n_new: int, shares: np.ndarray
) -> Callable[[int, Tensor], None]:
    """Return an observer that adds each layer's mass by role to rows ``start ..`` of ``shares``."""
    policy, n_layers = lane.policy, lane.lm.model.config.num_hidden_layers
    key = torch.arange(start + n_new)
    if isinstance(lane.cache, SinkCache):
        key = lane.cache.key_positions(n_new)
    # The first token counts as a sink also where nothing protects it, until it is evicted.
    n_sink, n_recent = policy.n_sink or 1, policy.n_recent or lane.lm.train_length or 1024
    query = torch.arange(start, start + n_new)

    def observe(layer: int, attention: Tensor) -> None:
        mean = attention[0].float().mean(0)
        by_role = mass_by_role(mean, n_sink, n_recent, query=query, key=key)
        rows = torch.stack([by_role[role] for role in ROLES], dim=-1) / n_layers
        shares[start : start + n_new] += rows.cpu().numpy()

    return observe


def _score_windows(
    lane: Lane, ids: Int[Tensor, " token"], batch: int
) -> Iterator[tuple[Tensor, int]]:
    """Score Recompute: one pass over the first window, then a batch of windows at a time."""
    policy, model = lane.policy, lane.lm.model
    size = policy.cache_size
    with untouched(model):
        yield model(ids[None, :size], use_cache=False).logits[0], 0
    if len(ids) <= size + 1:
        return
    begin = ids[: policy.n_begin].expand(batch, -1)
    for start in range(size, len(ids) - 1, batch):
        ends = range(start + 1, min(start + batch, len(ids) - 1) + 1)
        recent = torch.stack([ids[end - policy.n_recent : end] for end in ends])
        windows = torch.cat((begin[: len(recent)], recent), dim=1)
        with untouched(model):
            yield model(windows, use_cache=False, logits_to_keep=1).logits[:, -1], start
