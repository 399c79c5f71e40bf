"""Numbers that describe attention and predictions.

Received attention, sink rate, mass by role, entropy, perplexity: arrays in, numbers out. Knows
nothing about models, hooks or plots.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROLES = ("sink", "recent", "middle", "self", "null")
SINK_EPSILON = 0.3


def received_attention(
    attention: Float[Tensor, "*layer_head query key"],
    visible: Bool[Tensor, "query key"] | None = None,
) -> Float[Tensor, "*layer_head key"]:
    """Return the mean attention that each key gets from the queries that see it.

    Args:
        attention: post-softmax weights in [0, 1].
        visible: which query sees which key; causal where not given.

    Returns:
        One value in [0, 1] per key; 0 for a key that nobody sees.

    Source: Gu et al. 2024, arXiv 2410.10781, section 3.1 (the importance score alpha).

    Example:
        >>> received_attention(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([0.7500, 0.5000])
    """
    n_query, n_key = attention.shape[-2:]
    if visible is None:
        visible = torch.ones(n_query, n_key, dtype=torch.bool).tril(n_key - n_query)
    viewers = visible.to(attention.device).sum(0).clamp(min=1)
    return attention.sum(-2) / viewers


def sink_rate(
    received: Float[Tensor, "*layer_head key"], *, key: int = 0, epsilon: float = SINK_EPSILON
) -> float:
    """Return the share of heads whose received attention at ``key`` passes ``epsilon``.

    Args:
        received: received attention in [0, 1].
        key: text position of the candidate sink.
        epsilon: threshold in [0, 1]; the literature uses 0.3.

    Returns:
        Share of heads in [0, 1].

    Source: Gu et al. 2024, arXiv 2410.10781, equation 7.

    Example:
        >>> sink_rate(torch.tensor([[0.9, 0.1], [0.2, 0.3]]))
        0.5
    """
    return float((received[..., key] > epsilon).double().mean())


def mass(
    attention: Float[Tensor, "*layer_head query key"],
    n_sink: int = 4,
    n_recent: int = 64,
    *,
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> dict[str, Float[Tensor, "*layer_head query"]]:
    """Return how each query's attention divides among the roles of the keys.

    ``self`` is the query's own key, ``sink`` the first ``n_sink`` others, ``recent`` the last
    ``n_recent`` up to the query (own key aside), ``middle`` the rest, ``null`` what is missing to
    one (off-by-one softmax, or a learned sink logit).

    Args:
        attention: post-softmax weights in [0, 1].
        n_sink: tokens.
        n_recent: tokens, the query's own included.
        query: text positions of the queries; by default the last ones of the text.
        key: text positions of the keys; by default 0, 1, 2 ...

    Returns:
        Role -> share in [0, 1]; the shares of a query sum to one.

    Example:
        >>> shares = mass(torch.tensor([[0.6, 0.1, 0.2, 0.1]]), n_sink=1, n_recent=2)
        >>> {role: round(float(share), 2) for role, share in shares.items()}
        {'sink': 0.6, 'recent': 0.2, 'middle': 0.1, 'self': 0.1, 'null': 0.0}
    """
    n_query, n_key = attention.shape[-2:]
    key = (torch.arange(n_key) if key is None else key).to(attention.device)
    query = torch.arange(n_key - n_query, n_key) if query is None else query
    query = query.to(attention.device)[:, None]
    own = key == query
    sink = (key < n_sink) & ~own
    recent = (key > query - n_recent) & ~own & ~sink
    middle = ~(own | sink | recent)
    shares = {
        role: (attention * where).sum(-1)
        for role, where in (("sink", sink), ("recent", recent), ("middle", middle), ("self", own))
    }
    shares["null"] = (1 - attention.sum(-1)).clamp(min=0)
    return shares


def entropy(
    attention: Float[Tensor, "*layer_head query key"],
) -> Float[Tensor, "*layer_head query"]:
    """Return the entropy of each query's attention over the keys.

    Args:
        attention: post-softmax weights in [0, 1].

    Returns:
        Nats: 0 where one key takes all, ``log(keys)`` where all get the same.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    return torch.special.entr(attention).sum(-1)


def perplexity(nll: Float[Tensor, " token"]) -> float:
    """Return ``exp(mean nll)``, the number of equally likely next tokens.

    Args:
        nll: negative log-likelihood, nats per token; NaN (no prediction) is left out.

    Returns:
        Perplexity, at least 1.

    Example:
        >>> round(perplexity(torch.tensor([float("nan"), 0.0, math.log(4)])), 6)
        2.0
    """
    return math.exp(float(torch.as_tensor(nll).double().nanmean()))
