"""Capture where a model's attention goes, layer by layer.

Each layer's attention is reduced as soon as the layer is done, a block of queries at a time, so
that memory grows with the length of the text and not with its square. Knows nothing about
figures, nor how attention is observed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sinkviz.capturing.asking import (
    MAPS_BY_DEFAULT,
    POOLED,
    Asked,
    ask,
    check_memory,
    ran_out,
    shape_of,
    texts_of,
    what_it_takes,
)
from sinkviz.capturing.observing import engine_of, observe
from sinkviz.capturing.statistics import STATISTICS, distance_edges
from sinkviz.metrics import ROLES
from sinkviz.models import LM, Text
from sinkviz.records import Trace, provenance


def capture(
    lm: LM,
    text: Text | Sequence[Text],
    *,
    attention_mask: Int[Tensor, "text token"] | None = None,
    keep: str | Sequence[tuple[int, int]] | None = None,
    statistics: Sequence[str] = STATISTICS,
    n_sink: int = 4,
    n_recent: int = 64,
    queries: Sequence[int] = (),
    top_k: int = 8,
    pooled: int = POOLED,
    scores: bool = False,
    block: int | None = None,
    batch: int | None = None,
    progress: bool = False,
) -> Trace | list[Trace]:
    """Run a model over a text and record where its attention goes.

    The model computes what it computes without us, bit for bit where its attention goes through
    transformers' interface and is fused. Statistics are exact at any length.

    Args:
        lm: the language model; it is left exactly as it was.
        text: text or ids; or several texts (a tensor of ids has one in each row), for a trace of
            each.
        attention_mask: of a padded batch, as tokenizers make it: 0 for padding, on either side. A
            trace is of the text alone, without its padding.
        keep: ``maps`` (every whole map), ``statistics``, or the (layer, head) pairs whose maps to
            keep beside the statistics. By default maps as long as they fit into 64 MB.
        statistics: which ones, of ``received``, ``mass``, ``entropy``, ``distance``, ``pooled`` and
            ``norms``; the first two cost the least. Pooled maps are left out beside all whole maps.
        n_sink: first tokens that count as sinks in the mass by role.
        n_recent: tokens that count as recent, the query's own included.
        queries: text positions whose ``top_k`` strongest keys to record; negative from the end.
        top_k: how many.
        pooled: cells along a side of the pooled maps, at most 256.
        scores: record what comes before the softmax, too: as large as whole maps. For the average
            over many texts see ``capture_scores``.
        block: tokens per forward pass; by default the whole text where memory stays linear then,
            and otherwise as many as 64 MB of weights allow. Results do not change.
        batch: texts per forward pass, padded at the end, where a causal model never looks; by
            default the rows of a tensor all at once, and the texts of a list one by one. Results
            change by rounding alone.
        progress: show a progress bar.

    Returns:
        The trace: received attention, mass by role, entropy and more of every head, and maps.

    Raises:
        ValueError: the text is empty or longer than the model's table of positions, a name or a
            number is unknown, the model looks ahead, or what is asked for would need more than 4 GB
            for maps or more than the memory that is free.
        MemoryError: there was not enough memory after all; says what is needed, and has freed it.
    """
    texts, several = texts_of(lm, text, attention_mask)
    for name, number in (("block", block), ("batch", batch)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    options = {
        "keep": keep,
        "statistics": statistics,
        "n_sink": n_sink,
        "n_recent": n_recent,
        "queries": queries,
        "top_k": top_k,
        "pooled": pooled,
        "scores": scores,
    }
    asked = [ask(lm, ids, **options) for ids in texts]
    check_memory(lm, asked)
    batch = batch or (len(texts) if isinstance(text, Tensor) or attention_mask is not None else 1)
    n_layers = shape_of(lm)[0]
    traces: list[Trace] = []
    with tqdm(total=sum(map(len, texts)) * n_layers, unit="token", disable=not progress) as bar:
        for start in range(0, len(asked), batch):
            traces += _captured(lm, asked[start : start + batch], block, bar.update)
    return traces if several else traces[0]


def _captured(
    lm: LM, asked: list[Asked], block: int | None, done: Callable[[int], Any]
) -> list[Trace]:
    """Capture some texts at once; should memory run out, free what there is and say what it takes.

    Raises:
        MemoryError: there was not enough.
    """
    try:
        return _capture_at_once(lm, asked, block, done)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
    # The error is gone by now, and with it all that its frames have held.
    if lm.device.type == "cuda":
        torch.cuda.empty_cache()
    raise MemoryError(what_it_takes(lm, asked))


def _capture_at_once(
    lm: LM, asked: list[Asked], block: int | None, done: Callable[[int], Any]
) -> list[Trace]:
    precision = torch.promote_types(lm.model.dtype, torch.float32)
    maps = [
        torch.zeros(len(one.heads or ()), len(one.ids), len(one.ids), dtype=precision)
        for one in asked
    ]
    kept = [
        [(*pair, one) for pair, one in zip(one.heads or (), own, strict=True)]
        for one, own in zip(asked, maps, strict=True)
    ]
    plans = [one.plan for one in asked]
    found = observe(lm, [one.ids for one in asked], plans, kept=kept, block=block, done=done)
    return [_trace(lm, *one) for one in zip(asked, found, maps, strict=True)]


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
    encoded = (lm.encode(text) for text in texts)
    ids = [one[:length] for one in encoded if len(one) >= length]
    if not ids:
        raise ValueError(f"none of the texts has {length} tokens; give longer ones or less length")
    n_layers, n_heads = shape_of(lm)
    batch = max(1, min(64, MAPS_BY_DEFAULT // (4 * n_layers * n_heads * length**2)))
    total = np.zeros((n_layers, n_heads, length, length))
    with tqdm(total=len(ids), unit="text", disable=not progress) as bar:
        for start in range(0, len(ids), batch):
            some = torch.stack(ids[start : start + batch])
            alone = {"keep": "statistics", "statistics": (), "scores": True}
            for trace in capture(lm, list(some), batch=batch, **alone):
                total += trace.scores
            bar.update(len(some))
    return (total / len(ids)).astype(np.float32)


def _trace(
    lm: LM, asked: Asked, found: list[dict[str, Tensor]], maps: Float[Tensor, "head query key"]
) -> Trace:
    """Put the layers together; each is freed as soon as it is copied."""
    plan, ids = asked.plan, asked.ids
    n_layers, n_heads = shape_of(lm)
    n_tokens = plan.n_tokens

    def stacked(name: str) -> np.ndarray | None:
        parts = [layer.pop(name, None) for layer in found]
        if any(x is None or x.shape != parts[0].shape for x in parts):
            return None
        return np.stack([x.numpy() for x in parts])

    def unknown(*shape: int) -> np.ndarray:
        return np.full((len(found), n_heads, n_tokens, *shape), np.nan, dtype=np.float32)

    attention = None
    if asked.heads:
        whole = maps.view(n_layers if asked.whole else 1, -1, n_tokens, n_tokens)
        attention = whole.numpy()
    given, host_ids = {name: stacked(name) for name in list(found[0])}, ids.cpu().numpy()
    return Trace(
        tokens=lm.tokens(ids),
        token_ids=host_ids,
        received=unknown() if (x := given.pop("received", None)) is None else x,
        mass=unknown(len(ROLES)) if (x := given.pop("mass", None)) is None else x,
        entropy=unknown() if (x := given.pop("entropy", None)) is None else x,
        attention=attention,
        heads=None if asked.whole else asked.heads,
        n_sink=plan.n_sink,
        n_recent=plan.n_recent,
        provenance=provenance(
            lm.name,
            host_ids,
            device=str(lm.device),
            engine=engine_of(lm),
            attention=lm.attention,
            interventions=lm.changes,
        ),
        distance_edges=distance_edges(n_tokens) if "distance" in plan.statistics else None,
        cell=plan.cell,
        queries=plan.queries or None,
        **given,
    )
