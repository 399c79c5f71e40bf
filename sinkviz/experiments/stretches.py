"""How well a model predicts a text that it is given in stretches of a set length.

Knows nothing about caches, policies or figures: each stretch is read afresh.
"""

from __future__ import annotations

from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sinkviz.models import LM, untouched

TOKENS_AT_ONCE = 4096
LOGITS_AT_ONCE = 2**24


def n_front(lm: LM, ids: Int[Tensor, " token"]) -> int:
    """Return how many tokens stand in front of every text: learned sinks, ``<|begin|>``."""
    special = {*getattr(lm.tokenizer, "all_special_ids", ())}
    special |= {*getattr(lm.model.config, "sink_ids", ())}
    return sum(1 for _ in takewhile(lambda one: one in special, ids.tolist()))


def position_of(lm: LM) -> str:
    """Return how a model tells positions apart: ``sinusoidal``, ``rope``, ``alibi`` ..."""
    return getattr(lm.model.config, "position", lm.family.positions)


def longest_input(lm: LM) -> int | None:
    """Return how many tokens a model can read at once; None where its positions do not end."""
    own = getattr(lm.model.config, "position", None)
    ends = lm.family.ends if own is None else own == "learned"
    return lm.train_length if ends else None


def stretch_nll(
    lm: LM, ids: Int[Tensor, " token"], length: int, *, attention: str | None = None
) -> Float[Tensor, " predicted"]:
    """Return the nll of every token of a text that is read in stretches, none overlapping.

    Each stretch begins as the text does, with the tokens that the tokenizer puts in front, because
    all that the classroom models were trained on begins so; its last token predicts the first
    token of the next. So all lengths predict the same tokens: all but those in front.

    Args:
        lm: the language model.
        ids: a text as ``lm.encode`` gives it.
        length: tokens that the model reads at once, those in front included.
        attention: name of an attention implementation to use meanwhile.

    Returns:
        Nats per token, in the order of the text.

    Raises:
        ValueError: the text or the length leaves nothing to read, or the model cannot read so
            many tokens.

    Source: Press et al. 2021, arXiv 2108.12409, section 2.1 (non-overlapping inference).
    """
    front, body = _parts(lm, ids, length)
    step = length - len(front) + 1
    whole = len(body) // step * step
    rows = _rows(lm, length)
    batches = list(body[:whole].view(-1, step).split(rows)) if whole else []
    if whole < len(body):
        batches.append(body[None, whole:])
    return torch.cat([_nll(lm, front, batch, batch.shape[1], attention) for batch in batches])


def reach_nll(
    lm: LM,
    ids: Int[Tensor, " token"],
    length: int,
    *,
    longest: int,
    n_stretches: int,
    n_last: int,
) -> Float[Tensor, " predicted"]:
    """Return the nll at the end of stretches: every token counted sees almost the whole length.

    Non-overlapping stretches count tokens that see little: at each beginning. Here a window slides
    over the text, and only its last ``n_last`` predictions count, at places that are the same for
    all lengths. So only the reach differs: ``length - n_last + 1`` to ``length`` tokens.

    Args:
        lm: the language model.
        ids: a text as ``lm.encode`` gives it.
        length: tokens that the model reads at once, at most ``longest``.
        longest: the longest length to compare with; it decides the places.
        n_stretches: how many places, evenly spaced.
        n_last: predictions that count at each of them; one is exact sliding, more are cheaper.

    Returns:
        Nats per token, place by place.

    Raises:
        ValueError: the text is shorter than ``longest``, or the model cannot read so many tokens.

    Source: Press et al. 2021, arXiv 2108.12409, appendix B.1 (sliding window evaluation).
    """
    front, body = _parts(lm, ids, length)
    if not n_last <= length <= longest <= len(body):
        raise ValueError(
            f"n_last ({n_last}), length ({length}), longest ({longest}) and the text "
            f"({len(body)} tokens) must not decrease in this order"
        )
    ends = torch.linspace(longest, len(body), n_stretches).long().unique().tolist()
    step = length - len(front) + 1
    windows = torch.stack([body[end - step : end] for end in ends])
    batches = windows.split(_rows(lm, length))
    return torch.cat([_nll(lm, front, batch, n_last, None) for batch in batches])


def _parts(
    lm: LM, ids: Int[Tensor, " token"], length: int
) -> tuple[Int[Tensor, " front"], Int[Tensor, " rest"]]:
    """Return what to put in front of every stretch, and the rest of the text.

    Where nothing stands in front of every text, the text's first token does here: without one,
    a stretch could not predict its first, and lengths would not predict the same tokens.
    """
    front = max(1, n_front(lm, ids))
    if length < front or len(ids) <= front:
        raise ValueError(
            f"a stretch of {length} tokens of a text of {len(ids)} predicts nothing: "
            f"{front} of them stand in front"
        )
    end = longest_input(lm)
    if end is not None and length > end:
        raise ValueError(f"positions of {lm.name} end at {end} tokens, {length} were asked for")
    return ids[:front], ids[front:]


def _rows(lm: LM, length: int) -> int:
    size = lm.model.config.get_text_config().vocab_size
    return max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // size) // length)


def _nll(
    lm: LM,
    front: Int[Tensor, " front"],
    windows: Int[Tensor, "row token"],
    n_last: int,
    attention: str | None,
) -> Float[Tensor, " predicted"]:
    """Return the nll of the last tokens of each window, read behind the tokens in front."""
    read = torch.cat((front.expand(len(windows), -1), windows[:, :-1]), dim=1)
    with untouched(lm.model, attention):
        logits = lm.model(read, use_cache=False, logits_to_keep=n_last).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wanted = windows[:, -n_last:].flatten()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="none").cpu()
