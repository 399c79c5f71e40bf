"""Capture where a model's attention goes, layer by layer.

Each layer's attention is reduced as soon as the layer is done, a block of queries at a time, so
that memory grows with the length of the text and not with its square. Knows nothing about
figures, nor how attention is observed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sinkviz.memory import free_memory, size
from sinkviz.metrics import ROLES
from sinkviz.models import LM, Text
from sinkviz.observing import engine_of, observe
from sinkviz.records import Trace, provenance
from sinkviz.statistics import STATISTICS, Plan, distance_edges

MAPS_BY_DEFAULT = 64 * 2**20
MAPS_AT_MOST = 4 * 2**30
POOLED = 128
POOLED_AT_MOST = 256

Heads = tuple[tuple[int, int], ...]


def capture(
    lm: LM,
    text: Text | Sequence[Text],
    *,
    keep: str | Sequence[tuple[int, int]] | None = None,
    statistics: Sequence[str] = STATISTICS,
    n_sink: int = 4,
    n_recent: int = 64,
    queries: Sequence[int] = (),
    top_k: int = 8,
    pooled: int = POOLED,
    scores: bool = False,
    block: int | None = None,
    progress: bool = False,
) -> Trace | list[Trace]:
    """Run a model over a text and record where its attention goes.

    The model computes what it computes without us, bit for bit where its attention goes through
    transformers' interface and is fused. Statistics are exact at any length.

    Args:
        lm: the language model; it is left exactly as it was.
        text: text or ids; or several texts, for a trace of each.
        keep: ``maps`` (every whole map), ``statistics``, or the (layer, head) pairs whose maps to
            keep beside the statistics. By default maps as long as they fit into 64 MB.
        statistics: which ones, of ``received``, ``mass``, ``entropy``, ``distance``, ``pooled`` and
            ``norms``; the first two cost the least. Pooled maps are left out beside all whole maps.
        n_sink: first tokens that count as sinks in the mass by role.
        n_recent: tokens that count as recent, the query's own included.
        queries: text positions whose ``top_k`` strongest keys to record; negative from the end.
        top_k: how many.
        pooled: cells along a side of the pooled maps, at most 256.
        scores: record what comes before the softmax, too: as large as whole maps.
        block: tokens per forward pass; by default the whole text where memory stays linear then,
            and otherwise as many as 64 MB of weights allow. Results do not change.
        progress: show a progress bar.

    Returns:
        The trace: received attention, mass by role, entropy and more of every head, and maps.

    Raises:
        ValueError: the text is empty or longer than the model's table of positions, a name or a
            number is unknown, or what is asked for would need more than 4 GB for maps or more than
            the memory that is free.
    """
    if isinstance(text, Sequence) and any(isinstance(x, str | Sequence | Tensor) for x in text):
        if not isinstance(text, str):
            given = {k: v for k, v in locals().items() if k not in ("lm", "text")}
            return [capture(lm, one, **given) for one in text]
    ids = lm.encode(text)
    n_tokens, (n_layers, n_heads) = len(ids), _shape(lm)
    _check_length(lm, n_tokens)
    map_bytes = 4 * n_tokens**2
    if keep is None:
        keep = "maps" if n_layers * n_heads * map_bytes <= MAPS_BY_DEFAULT else "statistics"
    heads = _heads(lm, keep)
    n_maps = len(heads or ()) + (n_layers * n_heads if scores else 0)
    if n_maps * map_bytes > MAPS_AT_MOST:
        raise ValueError(
            f"{n_maps} whole maps of {n_tokens} x {n_tokens} tokens would need "
            f"{n_maps * map_bytes / 1e9:.0f} GB; use keep='statistics' or name a few heads"
            + (", and scores=False" if scores else "")
        )
    plan = Plan(
        n_tokens,
        _statistics(statistics, without_pooled=keep == "maps"),
        n_sink,
        n_recent,
        _queries(queries, n_tokens),
        top_k,
        -(-n_tokens // _side(pooled)),
        scores,
    )
    _check_memory(plan, n_layers, n_heads, n_maps * map_bytes)
    precision = torch.promote_types(lm.model.dtype, torch.float32)
    maps = torch.zeros(len(heads or ()), n_tokens, n_tokens, dtype=precision)
    kept = [(*pair, one) for pair, one in zip(heads or (), maps, strict=True)]
    with tqdm(total=n_tokens * n_layers, unit="token", disable=not progress) as bar:
        found = observe(lm, ids, plan, kept=kept, block=block, done=bar.update)
    whole = keep == "maps"
    maps = maps.view(n_layers if whole else 1, -1, n_tokens, n_tokens) if heads else None
    return _trace(lm, ids, plan, found, maps, None if whole else heads)


def capture_scores(
    lm: LM, texts: Sequence[Text], *, length: int = 16, progress: bool = False
) -> Float[np.ndarray, "layer head query key"]:
    """Return the attention scores of every head before the softmax, averaged over texts.

    Scores include what is added to them (ALiBi, T5) and soft caps. Texts shorter than ``length``
    are left out, longer ones are cut.

    Args:
        lm: the language model; it is left exactly as it was.
        texts: texts or ids.
        length: tokens of each.
        progress: show a progress bar.

    Returns:
        Mean scores, NaN above the diagonal and where no query sees the key.

    Raises:
        ValueError: no text is that long, or what ``capture`` raises.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 2 (256 sentences of 16 tokens).
    """
    total, n_texts = 0, 0
    for text in tqdm(texts, unit="text", disable=not progress):
        ids = lm.encode(text)
        if len(ids) >= length:
            trace = capture(lm, ids[:length], keep="statistics", statistics=(), scores=True)
            total, n_texts = total + trace.scores.astype(np.float64), n_texts + 1
    if not n_texts:
        raise ValueError(f"none of the texts has {length} tokens; give longer ones or less length")
    return (total / n_texts).astype(np.float32)


def _shape(lm: LM) -> tuple[int, int]:
    config = lm.model.config.get_text_config()
    return config.num_hidden_layers, config.num_attention_heads


def _check_length(lm: LM, n_tokens: int) -> None:
    """Raise ValueError where the model's table of positions ends before the text."""
    config, family = lm.model.config.get_text_config(), lm.family
    if not family.ends or config.model_type == "sinkviz_classroom":
        return
    names = ("max_seq_len", "max_position_embeddings")
    end = next((size for name in names if (size := getattr(config, name, None))), None)
    if end is not None and n_tokens > end:
        raise ValueError(
            f"{lm.name} can tell {end} positions apart, the text has {n_tokens} tokens; "
            "capture a part of it"
        )


def _heads(lm: LM, keep: str | Sequence[tuple[int, int]]) -> Heads | None:
    """Return the (layer, head) pairs whose maps to keep; None for statistics alone."""
    n_layers, n_heads = _shape(lm)
    if isinstance(keep, str):
        if keep not in ("maps", "statistics"):
            raise ValueError(f"keep={keep!r} is none of 'maps', 'statistics', [(layer, head), ...]")
        every = tuple((layer, head) for layer in range(n_layers) for head in range(n_heads))
        return every if keep == "maps" else None
    heads = tuple((int(layer), int(head)) for layer, head in keep)
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(
                f"no head {(layer, head)}: {lm.name} has layers 0..{n_layers - 1} and heads "
                f"0..{n_heads - 1}"
            )
    return heads


def _statistics(wanted: Sequence[str], without_pooled: bool) -> tuple[str, ...]:
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    if unknown := set(wanted) - set(STATISTICS):
        raise ValueError(f"no statistics {sorted(unknown)}; known are {', '.join(STATISTICS)}")
    return tuple(x for x in STATISTICS if x in wanted and not (x == "pooled" and without_pooled))


def _queries(queries: Sequence[int], n_tokens: int) -> tuple[int, ...]:
    for query in queries:
        if not -n_tokens <= query < n_tokens:
            raise ValueError(f"no query {query}: the text has tokens 0..{n_tokens - 1}")
    return tuple(sorted({int(query) % n_tokens for query in queries}))


def _side(pooled: int) -> int:
    if not 1 <= pooled <= POOLED_AT_MOST:
        raise ValueError(f"pooled must be in 1..{POOLED_AT_MOST} cells, got {pooled}")
    return pooled


def _check_memory(plan: Plan, n_layers: int, n_heads: int, more: int) -> None:
    """Raise ValueError, before anything is allocated, where it would not fit."""
    n_tokens, side = plan.n_tokens, -(-plan.n_tokens // plan.cell)
    # Roles, entropy, and two sums in double precision; two pooled maps, of which one waits.
    per_head = n_tokens * (4 * len(ROLES) + 4 + 16) + 12 * side**2 * ("pooled" in plan.statistics)
    needed, free = n_layers * n_heads * per_head + more, free_memory()
    if needed > free:
        raise ValueError(
            f"the trace of {n_tokens} tokens, {n_layers} layers and {n_heads} heads would need "
            f"{size(needed)}, and {size(free)} are free; use keep='statistics', fewer statistics "
            "or a shorter text"
        )


def _trace(
    lm: LM,
    ids: Tensor,
    plan: Plan,
    found: list[dict[str, Tensor]],
    maps: Tensor | None,
    heads: Heads | None,
) -> Trace:
    """Put the layers together; each is freed as soon as it is copied."""
    n_heads, n_tokens = _shape(lm)[1], plan.n_tokens

    def stacked(name: str) -> np.ndarray | None:
        parts = [layer.pop(name, None) for layer in found]
        if any(x is None or x.shape != parts[0].shape for x in parts):
            return None
        return np.stack([x.numpy() for x in parts])

    def unknown(*shape: int) -> np.ndarray:
        return np.full((len(found), n_heads, n_tokens, *shape), np.nan, dtype=np.float32)

    given, host_ids = {name: stacked(name) for name in list(found[0])}, ids.cpu().numpy()
    return Trace(
        tokens=lm.tokens(ids),
        token_ids=host_ids,
        received=unknown() if (x := given.pop("received", None)) is None else x,
        mass=unknown(len(ROLES)) if (x := given.pop("mass", None)) is None else x,
        entropy=unknown() if (x := given.pop("entropy", None)) is None else x,
        attention=None if maps is None else maps.numpy(),
        heads=heads,
        n_sink=plan.n_sink,
        n_recent=plan.n_recent,
        provenance=provenance(
            lm.name,
            host_ids,
            device=str(lm.device),
            engine=engine_of(lm),
            attention=lm.model.config._attn_implementation,
        ),
        distance_edges=distance_edges(n_tokens) if "distance" in plan.statistics else None,
        cell=plan.cell,
        queries=plan.queries or None,
        **given,
    )
