"""A model is asked: queries of a text as tokens, and the candidate that it finds likeliest.

The answer is the candidate whose first token is likeliest, so a model that never saw the task can
be asked too, chance is known, and so is how far its answers are from it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sinkviz.experiments.judging import Verdict
from sinkviz.experiments.queries import Query, codes_text, names_text
from sinkviz.lanes import Lane
from sinkviz.models import LM
from sinkviz.policies import Policy
from sinkviz.text import NAMES

# Standard errors of guessing within which nobody can tell; and queries that it takes to see it.
GUESSING, FEWEST = 3.0, 10


@dataclass(frozen=True)
class Asked:
    """A text as a model reads it, with its queries.

    Attributes:
        ids: of the whole text.
        positions: text position of the token before each answer, whose logits decide.
        told: text position of the token that told the answer; -1 where the text did not.
        candidates: first token of each candidate, (query, candidate).
        answers: which candidate is right, per query.
    """

    ids: Int[Tensor, " token"]
    positions: tuple[int, ...]
    told: tuple[int, ...]
    candidates: Int[Tensor, "query candidate"]
    answers: Int[Tensor, " query"]

    @property
    def distances(self) -> list[int]:
        """Return how many tokens before the query each answer was told."""
        return [p - t for p, t in zip(self.positions, self.told, strict=True) if t >= 0]

    def seen(self, policy: Policy) -> Bool[Tensor, " query"]:
        """Return for which queries the token that told the answer is still in the cache.

        Raises:
            ValueError: what the policy keeps depends on attention, so positions cannot tell.
        """
        if policy.by_attention:
            raise ValueError(
                f"what {policy} keeps depends on attention, so nobody can say from positions which "
                "lines it still has; count with choose() alone"
            )
        told, position = torch.tensor(self.told), torch.tensor(self.positions)
        if policy.cache_size is None:
            return told >= 0
        recent = told > position - policy.n_recent
        return (told >= 0) & (recent | (told < policy.n_sink if policy.n_sink else recent))


def _tokens(lm: LM, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of a text, and which characters each is made of; (0, 0) for special ones."""
    if lm.tokenizer is None or not lm.tokenizer.is_fast:
        raise ValueError(
            f"{lm.name} has no tokenizer that tells which characters a token is made of; queries "
            "are words and need one (use_fast=True)"
        )
    found = lm.tokenizer(text, return_offsets_mapping=True, verbose=False)
    sinks = list(getattr(lm.model.config, "sink_ids", ()))
    spans = [(0, 0)] * len(sinks) + [tuple(span) for span in found["offset_mapping"]]
    return [*sinks, *found["input_ids"]], spans


def _token_at(spans: Sequence[tuple[int, int]], character: int) -> int:
    """Return the index of the token that a character belongs to."""
    return bisect.bisect_right(spans, character, key=lambda span: span[1])


def prepare(lm: LM, text: str, queries: Sequence[Query]) -> Asked:
    """Return a text with queries as a model reads it.

    The first token of a candidate is found by putting it where the answer stands, so that spaces
    and neighbours are tokenised as they are in the text.

    Args:
        lm: the language model, with a tokenizer that knows its characters.
        text: the text.
        queries: in the order of the text.

    Raises:
        ValueError: there is no such tokenizer, or two candidates begin with the same token.
    """
    ids, spans = _tokens(lm, text)
    answers = [_token_at(spans, query.start) for query in queries]
    told = [-1 if query.told is None else _token_at(spans, query.told) for query in queries]
    rows = []
    for query in queries:
        begin = text.rfind("\n", 0, query.start) + 1
        rows.append([_first_token(lm, text[begin : query.start], c) for c in query.candidates])
    for query, row in zip(queries, rows, strict=True):
        if len(set(row)) < len(row):
            raise ValueError(
                f"{lm.name} begins several of {', '.join(query.candidates)} with the same token; "
                "give candidates that differ in their first token"
            )
    width = max(map(len, rows))
    # Questions may have three options or five: what is missing can never be chosen.
    padded = [row + [-1] * (width - len(row)) for row in rows]
    return Asked(
        ids=torch.tensor(ids, device=lm.device),
        positions=tuple(answer - 1 for answer in answers),
        told=tuple(told),
        candidates=torch.tensor(padded),
        answers=torch.tensor([query.answer for query in queries]),
    )


def _first_token(lm: LM, stem: str, candidate: str) -> int:
    ids, spans = _tokens(lm, stem + candidate)
    return ids[_token_at(spans, len(stem))]


def distinct_names(lm: LM, names: Sequence[str] = NAMES) -> list[str]:
    """Return names of which no two begin with the same token."""
    firsts: dict[int, str] = {}
    for name in names:
        firsts.setdefault(_first_token(lm, "The dog followed ", name), name)
    return list(firsts.values())


def choose(lm: LM, asked: Asked, policy: Policy) -> Int[Tensor, " query"]:
    """Return which candidate a model finds likeliest at each query of a stream.

    The text is fed to one lane from query to query, so the cache is what it would be in a stream.

    Args:
        lm: the language model.
        asked: the text and its queries.
        policy: what stays in the cache.
    """
    lane, chosen = Lane(lm, policy), []
    for position, row in zip(asked.positions, asked.candidates, strict=True):
        logits = lane.feed(asked.ids[lane.seen : position + 1])
        found = logits[row.clamp(min=0).to(logits.device)].float().cpu()
        chosen.append(int(found.masked_fill(row < 0, -math.inf).argmax()))
    return torch.tensor(chosen)


TASKS = ("names", "codes")


def ask_back(lm: LM, task: str, n_lines_back: int, n_queries: int, seed: int) -> Asked:
    """Return a text with queries about a line so many lines back, as a model reads it.

    Args:
        lm: the language model.
        task: ``names`` (who was mentioned) or ``codes`` (which code a numbered line has).
        n_lines_back: at least 1.
        n_queries: how many.
        seed: of the text.

    Raises:
        ValueError: no such task, or the model cannot be asked.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; known are {', '.join(TASKS)}")
    if task == "codes":
        return prepare(lm, *codes_text(n_lines_back, n_queries, seed))
    return prepare(lm, *names_text(n_lines_back, n_queries, seed, names=distinct_names(lm)))


def tokens_per_line(lm: LM, task: str) -> float:
    """Return how many tokens further away the answer is with every line."""
    near, far = (np.mean(ask_back(lm, task, n, 10, seed=0).distances) for n in (1, 11))
    return float(far - near) / 10


def answers(lm: LM, asked: Asked, policy: Policy) -> dict[str, Any]:
    """Ask a model under a policy, and count.

    Returns:
        ``queries`` and ``right``; of them ``seen`` and ``right_seen`` whose line was still in the
        cache; ``chance``, the share that guessing would get; ``distance``, the mean number of
        tokens between line and query, None where nothing told the answer.
    """
    right = choose(lm, asked, policy) == asked.answers
    seen = asked.seen(policy)
    options = (asked.candidates >= 0).sum(1)
    return {
        "queries": len(right),
        "right": int(right.sum()),
        "seen": int(seen.sum()),
        "right_seen": int((right & seen).sum()),
        "accuracy": float(right.float().mean()),
        "chance": float((1 / options).mean()),
        "distance": float(np.mean(asked.distances)) if asked.distances else None,
    }


def share_right(rows: pd.DataFrame, *, seen: bool | None = None) -> float:
    """Return the share of queries answered right, in [0, 1]; NaN where there is none.

    Args:
        rows: columns ``queries`` and ``right``, ``seen`` and ``right_seen``.
        seen: only those whose line is (True) or is no longer (False) in the cache.
    """
    right, asked = _counted(rows, seen)
    return right / asked if asked else float("nan")


def beyond_chance(rows: pd.DataFrame, *, seen: bool | None = None) -> float:
    """Return how far the share answered right is from chance, in standard errors of guessing.

    0 where there is no query.
    """
    right, asked = _counted(rows, seen)
    chance = float(rows["chance"].mean())
    if not asked or not 0 < chance < 1:
        return 0.0
    return (right / asked - chance) / (chance * (1 - chance) / asked) ** 0.5


def gone(rows: pd.DataFrame) -> Verdict:
    """Judge whether lines that have left the cache are no longer known, over all distances.

    Agreement is that the share right is within ``GUESSING`` standard errors of guessing. The
    distance that is furthest from it is named too, and not judged: queries of one text share their
    guesses, so that a single distance strays further than its standard error says.

    Args:
        rows: of one task under one policy, as for ``share_right``, with ``distance`` (tokens).
    """
    beyond = rows[rows["queries"] - rows["seen"] >= FEWEST]
    if not len(beyond):
        return None, "too few queries about lines that have left the cache"
    off = {
        (row["distance"], share_right(row.to_frame().T, seen=False)): beyond_chance(
            row.to_frame().T, seen=False
        )
        for _, row in beyond.iterrows()
    }
    (distance, share), worst = max(off.items(), key=lambda item: abs(item[1]))
    said = (
        f"{share_right(rows, seen=True):.0%} right with the line in the cache, "
        f"{share_right(rows, seen=False):.0%} after it was evicted "
        f"({beyond_chance(rows, seen=False):+.1f} standard errors from guessing), chance "
        f"{rows['chance'].mean():.0%}; furthest from it {share:.0%} at {distance:.0f} tokens "
        f"({worst:+.1f})"
    )
    return abs(beyond_chance(rows, seen=False)) <= GUESSING, said


def _counted(rows: pd.DataFrame, seen: bool | None) -> tuple[float, float]:
    every = float(rows["right"].sum()), float(rows["queries"].sum())
    near = float(rows["right_seen"].sum()), float(rows["seen"].sum())
    return every if seen is None else near if seen else (every[0] - near[0], every[1] - near[1])
