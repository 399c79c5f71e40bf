"""What may be asked of a capture: names, numbers and sizes, refused before anything is allocated.

Knows nothing about how attention is observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sinkviz.capturing.statistics import STATISTICS, Plan, layer_bytes
from sinkviz.memory import free_memory, size
from sinkviz.metrics import ROLES
from sinkviz.models import LM, Text

MAPS_BY_DEFAULT = 64 * 2**20
MAPS_AT_MOST = 4 * 2**30
POOLED = 128
POOLED_AT_MOST = 256

Heads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Asked:
    """What is asked about one text.

    Attributes:
        ids: the text.
        plan: which statistics.
        heads: whose whole maps to keep; None for none.
        whole: these are all heads of the model.
    """

    ids: Int[Tensor, " token"]
    plan: Plan
    heads: Heads | None
    whole: bool

    def map_bytes(self, n_layers: int, n_heads: int) -> int:
        """Return how many bytes whole maps and scores take."""
        n_maps = len(self.heads or ()) + n_layers * n_heads * self.plan.scores
        return 4 * n_maps * self.plan.n_tokens**2

    def trace_bytes(self, n_layers: int, n_heads: int) -> int:
        """Return about how many bytes the trace takes until it is put together."""
        n_tokens, side = self.plan.n_tokens, -(-self.plan.n_tokens // self.plan.cell)
        # Roles, entropy, and two sums in double precision; two pooled maps, of which one waits.
        per_head = n_tokens * (4 * len(ROLES) + 4 + 16)
        per_head += 12 * side**2 * ("pooled" in self.plan.statistics)
        return n_layers * n_heads * per_head + self.map_bytes(n_layers, n_heads)


def shape_of(lm: LM) -> tuple[int, int]:
    """Return how many layers a model has, and how many heads each."""
    config = lm.model.config.get_text_config()
    return config.num_hidden_layers, config.num_attention_heads


def texts_of(
    lm: LM, text: Text | Sequence[Text], attention_mask: Tensor | None
) -> tuple[list[Int[Tensor, " _"]], bool]:
    """Return the ids of each text, and whether it is a list of texts that was given.

    Raises:
        ValueError: a text is empty, or the mask does not fit or hides more than padding.
    """
    if attention_mask is not None:
        ids, mask = torch.as_tensor(text), torch.as_tensor(attention_mask).bool()
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise ValueError(
                "attention_mask must mark the padding of a tensor of ids, (text, token) both; got "
                f"ids {tuple(ids.shape)} and a mask {tuple(mask.shape)}"
            )
        for row, seen in enumerate(mask.int()):
            if not seen.any() or (seen.diff().abs().sum() + seen[0] + seen[-1]) > 2:
                raise ValueError(
                    f"attention_mask must be 0 for padding alone, at the ends; text {row} is "
                    f"{'all padding' if not seen.any() else 'hidden in between'}"
                )
        rows = [lm.encode(one[seen]) for one, seen in zip(ids, mask.to(ids.device), strict=True)]
        return rows, True
    if isinstance(text, Tensor) and text.ndim == 2 and len(text) > 1:
        return [lm.encode(row) for row in text], True
    several = isinstance(text, Sequence) and not isinstance(text, str)
    if several and any(isinstance(one, str | Sequence | Tensor) for one in text):
        return [lm.encode(one) for one in text], True
    return [lm.encode(text)], False


def ask(
    lm: LM,
    ids: Int[Tensor, " token"],
    *,
    keep: str | Sequence[tuple[int, int]] | None,
    statistics: Sequence[str],
    n_sink: int,
    n_recent: int,
    queries: Sequence[int],
    top_k: int,
    pooled: int,
    scores: bool,
) -> Asked:
    """Return what is asked about a text; the arguments are those of ``capturing.capture``.

    Raises:
        ValueError: the text is longer than the model's table of positions, a name or a number is
            unknown, or whole maps would need more than 4 GB.
    """
    n_tokens, (n_layers, n_heads) = len(ids), shape_of(lm)
    _check_length(lm, n_tokens)
    _check_numbers(n_sink=(n_sink, 0), n_recent=(n_recent, 1), top_k=(top_k, 1))
    if not 1 <= pooled <= POOLED_AT_MOST:
        raise ValueError(f"pooled must be in 1..{POOLED_AT_MOST} cells, got {pooled}")
    if keep is None:
        small = 4 * n_layers * n_heads * n_tokens**2 <= MAPS_BY_DEFAULT
        keep = "maps" if small else "statistics"
    plan = Plan(
        n_tokens,
        _statistics(statistics, without_pooled=keep == "maps"),
        n_sink,
        n_recent,
        _queries(queries, n_tokens),
        top_k,
        -(-n_tokens // pooled),
        scores,
    )
    asked = Asked(ids, plan, _heads(lm, keep), keep == "maps")
    if (needed := asked.map_bytes(n_layers, n_heads)) > MAPS_AT_MOST:
        n_maps = needed // (4 * n_tokens**2)
        raise ValueError(
            f"{n_maps} whole maps of {n_tokens} x {n_tokens} tokens would need "
            f"{needed / 1e9:.0f} GB; use keep='statistics' or name a few heads"
            + (", and scores=False" if scores else "")
        )
    return asked


def check_memory(lm: LM, asked: Sequence[Asked]) -> None:
    """Raise ValueError, before anything is allocated, where the traces would not fit."""
    n_layers, n_heads = shape_of(lm)
    needed, free = sum(one.trace_bytes(n_layers, n_heads) for one in asked), free_memory()
    if needed > free:
        n_tokens = sum(one.plan.n_tokens for one in asked)
        raise ValueError(
            f"the trace of {n_tokens} tokens, {n_layers} layers and {n_heads} heads would need "
            f"{size(needed)}, and {size(free)} are free; use keep='statistics', fewer statistics "
            "or a shorter text"
        )


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(x in str(error).lower() for x in said)


def what_it_takes(lm: LM, asked: Sequence[Asked]) -> str:
    """Return a sentence about the memory that a capture takes, for when there was not enough."""
    n_layers, n_heads = shape_of(lm)
    trace = sum(one.trace_bytes(n_layers, n_heads) for one in asked)
    layer = sum(layer_bytes(one.plan, n_heads, lm.device) for one in asked)
    device = str(lm.device)
    n_tokens = sum(one.plan.n_tokens for one in asked)
    several = f" in {len(asked)} texts" if len(asked) > 1 else ""
    return (
        f"{lm.name} ran out of memory on {n_tokens} tokens{several}: "
        f"the trace takes about {size(trace)} of the CPU's, and one layer's statistics "
        f"{size(layer)} on {device}, where {size(free_memory(device))} are free now; the rest is "
        "the model's own pass. Give a smaller block (tokens per pass) or batch, fewer statistics, "
        "or a shorter text"
    )


def _check_numbers(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")


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
    n_layers, n_heads = shape_of(lm)
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
