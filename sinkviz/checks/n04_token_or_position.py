"""The exercises of notebook 04."""

from __future__ import annotations

import numpy as np
import torch

from sinkviz.checks.judging import by_example

# 04.1: the first token, moved


def _late(ids: np.ndarray, to: int) -> np.ndarray:
    """Insert at ``to`` before the first one is taken away, so that it lands one too early."""
    return np.insert(ids, to, ids[0])[1:]


def _swapped(ids: np.ndarray, to: int) -> np.ndarray:
    ids[[0, to]] = ids[[to, 0]]
    return ids


def _moved_by_the_package(ids: np.ndarray, to: int) -> np.ndarray:
    # Here, since it brings transformers along, which takes seconds.
    from sinkviz.interventions import move_first

    return move_first(torch.from_numpy(ids), to).numpy()


_moved = by_example(
    _moved_by_the_package,
    [
        {"ids": np.array([50, 61, 72, 83, 94, 15]), "to": 3},
        {"ids": np.array([9, 81, 72, 63, 54, 45, 36]), "to": 2},
    ],
    [
        (_swapped, "the two tokens have changed places; those between move up by one instead"),
        (_late, "the token lands one place too early: take it away before you count places"),
        (lambda ids, to: np.insert(ids[1:], to + 1, ids[0]), "the token lands one place too late: "
         "with the first token gone, position `to` is index `to` of what is left"),
        (lambda ids, to: np.insert(ids, to + 1, ids[0]), "the token stands there twice: it must "
         "leave its old place"),
        (lambda ids, to: np.insert(ids, to, ids[0]), "the token stands there twice: it must leave "
         "its old place"),
        (lambda ids, to: ids[1:], "the token is gone; put it back at its new place"),
        (lambda ids, to: np.roll(ids, -1), "the token stands at the very end; `to` is its place"),
        (lambda ids, to: np.roll(ids, to), "the whole text is turned round; only the first token "
         "moves"),
        (lambda ids, to: np.roll(ids, -to), "the whole text is turned round; only the first token "
         "moves"),
        (lambda ids, to: np.insert(ids[1:], to, 0), "that inserts id 0; insert the text's own "
         "first token"),
        (lambda ids, to: ids, "the text is as it was"),
    ],
    "the same tokens, and those between have moved up.",
)  # fmt: skip


# 04.2: what copies of a sink get together


def _copies(share: float, n_copies: int) -> float:
    """Return it by the softmax itself: one score stands for all that is not the sink."""
    odds = np.log(share / (1 - share))
    scores = torch.tensor([0.0] + [odds] * n_copies, dtype=torch.float64)
    return float(scores.softmax(0)[1:].sum())


_of_copies = by_example(
    _copies,
    [{"share": 0.4, "n_copies": 2}, {"share": 0.25, "n_copies": 5}],
    [
        (lambda p, n: n * p, "the sum under the softmax grows as well: divide by the new total"),
        (lambda p, n: min(1.0, n * p), "the sum under the softmax grows as well: divide by the new "
         "total"),
        (lambda p, n: p, "copies do not just share out what one had: each adds its own exponential "
         "to the sum"),
        (lambda p, n: p / (n * p + 1 - p), "that is what *one* copy gets; add them up"),
        (lambda p, n: p / n, "that is the old share, cut in pieces; each copy adds its own "
         "exponential to the sum"),
        (lambda p, n: n * p / (n * p + 1), "the rest of the text has 1 - share, not 1"),
        (lambda p, n: (1 - p) / (n * p + 1 - p), "that is what is left for the rest of the text"),
        (lambda p, n: 1 - (1 - p) ** n, "that treats copies as independent draws; in a softmax "
         "they add up before they are divided"),
        (lambda p, n: (n + 1) * p / ((n + 1) * p + 1 - p), "one copy too many: n_copies counts the "
         "first one, too"),
    ],
    "each copy adds the same exponential, and the sum is scaled to one.",
)  # fmt: skip


# 04.3: from perplexities to nats


_nats = by_example(
    lambda before, after: np.log(after) - np.log(before),
    [{"before": 8.0, "after": 11.0}, {"before": 21.0, "after": 19.5}],
    [
        (lambda b, a: a - b, "that is a difference of perplexities; take their logarithms first"),
        (lambda b, a: a / b, "that is their ratio; the logarithm of it is in nats"),
        (lambda b, a: a / b - 1, "that is the relative change; nats are logarithms"),
        (lambda b, a: np.log(b / a), "the sign is reversed: a higher perplexity is a higher nll"),
        (lambda b, a: np.log2(a / b), "that is in bits; nats need the natural logarithm"),
        (lambda b, a: np.log10(a / b), "that is a logarithm of base 10; nats need the natural one"),
        (lambda b, a: np.log(a) / np.log(b), "logarithms are divided here; subtract them"),
        (lambda b, a: np.log(abs(a - b)), "the difference came before the logarithm; the other way "
         "round"),
        (lambda b, a: np.exp(a) - np.exp(b), "exp goes from nats to perplexity; you want the way "
         "back"),
        (lambda b, a: np.exp(a - b), "exp goes from nats to perplexity; you want the way back"),
        (lambda b, a: abs(np.log(a / b)), "the sign is lost; a gain must come out negative"),
        (lambda b, a: np.log(a), "that is the nll afterwards; subtract the one before"),
    ],
    "perplexity is exp(nll), so ratios of perplexities are differences in nats.",
)  # fmt: skip

EXERCISES = {
    "04.1": _moved,
    "04.2": _of_copies,
    "04.3": _nats,
}
