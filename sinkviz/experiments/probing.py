"""Texts that begin as a model's training texts do, and what is read off them.

What an experiment does to the texts, or to the model meanwhile, is its own affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sinkviz.experiments.running import Setting
from sinkviz.experiments.stretches import n_front
from sinkviz.models import LM, untouched
from sinkviz.records import Trace

LONGEST = 256  # whole maps of so many tokens take 256 KB per head


def probes(setting: Setting, lm: LM, n_texts: int, *, room: int = 0) -> list[Tensor]:
    """Return stretches of the setting's text, one after the other, with the usual first tokens.

    Args:
        setting: says which text.
        lm: the language model.
        n_texts: how many.
        room: tokens by which each is shorter than the model's training texts, so that it can be
            made longer.

    Raises:
        ValueError: the text is too short.
    """
    length = min(lm.train_length or LONGEST, LONGEST) - room
    ids = setting.ids(lm, n_texts * length)
    front = n_front(lm, ids)
    size = length - front
    starts = range(front, front + n_texts * size, size)
    return [torch.cat((ids[:front], ids[start : start + size])) for start in starts]


def nll_of_ends(lm: LM, texts: Sequence[Tensor], n_last: int) -> Float[np.ndarray, " text"]:
    """Return the mean nll of the last tokens of each text, nats per token.

    Texts that end alike are comparable, however they begin.

    Args:
        lm: the language model, with whatever is being done to it.
        texts: ids.
        n_last: tokens at the end that count.
    """
    means = []
    for ids in texts:
        with untouched(lm.model):
            output = lm.model(ids[None], use_cache=False, logits_to_keep=n_last + 1)
        logits = output.logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        means.append(float(torch.nn.functional.cross_entropy(logits, ids[-n_last:])))
    return np.array(means)


def shares_of(
    trace: Trace, places: Mapping[str, Sequence[int]], n_last: int
) -> dict[str, Float[np.ndarray, "layer head"]]:
    """Return where the attention of the last queries goes, by place of the key.

    Args:
        trace: with whole maps.
        places: text positions per place; no position twice. What is in none of them is ``rest``.
        n_last: queries at the end that count.

    Returns:
        Mean shares in [0, 1] for each place, ``rest``, and ``null`` for what goes nowhere; they sum
        to one.
    """
    received = np.asarray(trace.attention[:, :, -n_last:], dtype=float).mean(2)
    shares = {name: received[..., list(keys)].sum(-1) for name, keys in places.items()}
    total = received.sum(-1)
    shares["rest"] = total - sum(shares.values())
    shares["null"] = 1 - total
    # What rounding leaves below zero is nothing.
    return {name: share.clip(0, 1) for name, share in shares.items()}


def change_and_error(
    after: Float[np.ndarray, " text"], before: Float[np.ndarray, " text"]
) -> tuple[float, float]:
    """Return the mean change over the same texts, and its standard error.

    Example:
        >>> change_and_error(np.array([2.0, 4.0]), np.array([1.0, 1.0]))
        (2.0, 1.0)
    """
    change = after - before
    error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else float("nan")
    return float(change.mean()), float(error)
