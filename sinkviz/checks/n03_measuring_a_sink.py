"""The exercises of notebook 03."""

from __future__ import annotations

import numpy as np
import torch

from sinkviz.checks.judging import by_example
from sinkviz.metrics import effective_context, entropy, received_attention, sink_rate

# 03.1: the sink rate


def _made_up_received(layers: int, heads: int, keys: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (layers, heads, keys))


_rate_of_sinks = by_example(
    lambda received, epsilon: sink_rate(torch.from_numpy(received), epsilon=epsilon),
    [
        {"received": _made_up_received(2, 3, 4, seed=0), "epsilon": 0.3},
        {"received": _made_up_received(3, 4, 5, seed=1), "epsilon": 0.6},
    ],
    [
        (lambda r, e: (r[..., 0] > e).sum(), "that is how many heads pass; divide by all heads"),
        (lambda r, e: 100 * (r[..., 0] > e).mean(), "that is in per cent; give a share"),
        (lambda r, e: r[..., 0].mean(), "that is the mean that the first token receives; count the "
         "heads that pass epsilon"),
        (lambda r, e: (r[..., 0] > 0.3).mean(), "epsilon is 0.3 whatever is given; use the "
         "argument"),
        (lambda r, e: (r[..., 0] < e).mean(), "these are the heads *below* epsilon"),
        (lambda r, e: (r > e).mean(), "that counts every key; only the first one, key 0"),
        (lambda r, e: (r > e).any(-1).mean(), "a head counts here when *any* key passes; ask for "
         "the first one"),
        (lambda r, e: (r[..., -1] > e).mean(), "that is the last key; the first one is key 0"),
        (lambda r, e: (r[0] > e).mean(), "r[0] is the first *layer*; keys are on the last axis"),
        (lambda r, e: (r[:, 0] > e).mean(), "r[:, 0] is the first *head*; keys are on the last "
         "axis"),
        (lambda r, e: float(r[..., 0].mean() > e), "the mean over heads is compared; compare each "
         "head, then take the mean"),
        (lambda r, e: (r[..., 0] > e).mean(-1), "that is one rate per layer; take all heads "
         "together"),
        (lambda r, e: r[..., 0] > e, "that is a yes or no for each head; take their mean"),
    ],
    "compare each head, then take the mean.",
)  # fmt: skip


# 03.2: what the first key receives when attention is even


def _even(n_tokens: int) -> float:
    seen = torch.ones(n_tokens, n_tokens, dtype=torch.float64).tril()
    return float(received_attention(seen / seen.sum(-1, keepdim=True))[0])


_even_attention = by_example(
    _even,
    [{"n_tokens": 4}, {"n_tokens": 9}],
    [
        (lambda n: 1 / n, "that is the share that the *last* query gives; earlier ones see fewer "
         "keys and give more to each"),
        (lambda n: 2 / (n + 1), "that divides by the mean number of keys; take the mean of the "
         "shares, not of the numbers"),
        (lambda n: (1 / np.arange(1, n + 1)).sum(), "that is the sum over queries; divide by their "
         "number"),
        (lambda n: (1 / np.arange(2, n + 1)).mean(), "the first query is missing; it sees itself "
         "alone and counts too"),
        (lambda n: (1 / np.arange(2, n + 2)).mean(), "one key too many in each row: query q sees "
         "q + 1 keys, itself included"),
        (lambda n: (1 / np.arange(1, n)).mean(), "the last query is missing"),
        (lambda n: 1 / np.arange(1, n + 1), "that is one share per query; take their mean"),
        (lambda n: np.log(n) / n, "a good guess for long texts; here take the exact mean"),
        (lambda n: 0.5, "that is what holds for two tokens at the second query; take the mean over "
         "all queries"),
    ],
    "query q gives 1 / (q + 1), and the mean is high for short texts.",
)  # fmt: skip


# 03.3: effective context


def _weights(keys: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(keys, 0.7))


def _nats(weights: np.ndarray) -> float:
    return float(entropy(torch.from_numpy(weights)[None])[0])


_effective = by_example(
    lambda weights: float(effective_context(torch.from_numpy(weights)[None])[0]),
    [{"weights": _weights(4, seed=0)}, {"weights": _weights(7, seed=1)}],
    [
        (_nats, "that is the entropy, in nats; its exponential is a number of keys"),
        (lambda w: _nats(w) / np.log(2), "that is the entropy in bits; 2 to that power is a "
         "number of keys"),
        (lambda w: 2 ** _nats(w), "base 2 belongs to bits; with the natural logarithm take e"),
        (lambda w: np.exp(_nats(w) / np.log(2)), "log2 and e do not go together; take log and exp, "
         "or log2 and 2"),
        (lambda w: np.exp(-_nats(w)), "the sign is reversed: entropy is *minus* the sum of "
         "p log p"),
        (lambda w: -_nats(w), "the sign is reversed, and the exponential is missing"),
        (lambda w: np.exp(_nats(w) / len(w)), "the mean was taken; entropy is the sum over keys"),
        (lambda w: np.exp(-np.log(w).mean()), "the logarithms are weighted alike; weight each with "
         "its share"),
        (lambda w: 1 / (w**2).sum(), "that is 1 / sum of squares, another effective number; take "
         "the exponential of the entropy"),
        (lambda w: 1 / w.max(), "that looks at the largest share alone"),
        (lambda w: len(w), "that is how many keys there are; weigh them by their shares"),
        (lambda w: np.exp(-w * np.log(w)).sum(), "exponentials of each part; sum first, then take "
         "the exponential"),
    ],
    "the number of keys that even attention would need for the same entropy.",
)  # fmt: skip

EXERCISES = {
    "03.1": _rate_of_sinks,
    "03.2": _even_attention,
    "03.3": _effective,
}
