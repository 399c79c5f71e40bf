"""Numbers that describe attention and predictions, under their names in the literature.

Received attention, sink rate, first-token share, mass by role, attention entropy, effective
context, value-weighted attention, attention rollout, perplexity: tensors in, tensors or numbers
out. Knows nothing about models, hooks or plots.
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

    It depends on the number of tokens T, so say T beside it. A causal model sees the first T tokens
    of a longer text as a text of their own: ``received_attention(attention[..., :T, :T])``.

    Args:
        received: received attention in [0, 1].
        key: text position of the candidate sink.
        epsilon: threshold in [0, 1]; the literature uses 0.3.

    Returns:
        Share of heads in [0, 1].

    Source: Gu et al. 2024, arXiv 2410.10781, equation 7 (there epsilon is 0.3 and T is 64).

    Example:
        >>> sink_rate(torch.tensor([[0.9, 0.1], [0.2, 0.3]]))
        0.5
        >>> head = torch.tensor([[1.0, 0.0, 0.0], [0.1, 0.9, 0.0], [0.1, 0.1, 0.8]])
        >>> sink_rate(received_attention(head)), sink_rate(received_attention(head[:2, :2]))
        (1.0, 1.0)
        >>> sink_rate(received_attention(head), epsilon=0.5)  # T = 3: (1 + 0.1 + 0.1) / 3 = 0.4
        0.0
    """
    return float((received[..., key] > epsilon).double().mean())


def first_token_share(
    attention: Float[Tensor, "*layer_head query key"],
) -> Float[Tensor, "*layer_head"]:
    """Return the mean attention to the first token from the queries after it.

    The first token has nothing else to attend to, so its own query, which received attention
    counts, is left out.

    Args:
        attention: post-softmax weights in [0, 1]; the queries are the last of the text, or all.

    Returns:
        Share in [0, 1] per head.

    Raises:
        ValueError: no query comes after the first token.

    Source: Xiao et al. 2023, arXiv 2309.17453, section 3.1 (the attention sink, as a share).

    Example:
        >>> first_token_share(torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.7, 0.1, 0.2]]))
        tensor(0.8000)
    """
    n_query, n_key = attention.shape[-2:]
    if n_key < 2 or n_query > n_key:
        raise ValueError(
            f"the first token's share needs queries after it, and a key for each; got {n_query} "
            f"queries and {n_key} keys"
        )
    return attention[..., n_query == n_key :, 0].mean(-1)


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
    """Return the attention entropy: that of each query's attention over the keys.

    Args:
        attention: post-softmax weights in [0, 1]; what goes to no key adds nothing.

    Returns:
        Nats: 0 where one key takes all, ``log(keys)`` where all get the same.

    Source: Clark et al. 2019, arXiv 1906.04341, section 3.3.

    Example:
        >>> entropy(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.8, 0.1, 0.1]]))
        tensor([0.0000, 0.6931, 0.6390])
    """
    return torch.special.entr(attention).sum(-1)


def effective_context(
    attention: Float[Tensor, "*layer_head query key"],
) -> Float[Tensor, "*layer_head query"]:
    """Return how many keys each query effectively attends to: ``exp`` of its attention entropy.

    The number of keys that, with even attention, would have the same entropy. What goes to no key
    is left out first. This is about attention alone: how much context a model can use for its
    predictions is another question, and is asked by shortening the context.

    Args:
        attention: post-softmax weights in [0, 1].

    Returns:
        Keys: 1 where one takes all, up to all of them; 0 for a query that attends to none.

    Source: Hill 1973, "Diversity and evenness" (the effective number, of order one).

    Example:
        >>> effective_context(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.8, 0.1, 0.1]]))
        tensor([1.0000, 2.0000, 1.8946])
    """
    total = attention.sum(-1, keepdim=True)
    shares = attention / total.clamp(min=torch.finfo(attention.dtype).tiny)
    return entropy(shares).exp() * (total[..., 0] > 0)


def value_weighted_attention(
    attention: Float[Tensor, "*layer head query key"],
    value: Float[Tensor, "*layer kv_head key dimension"],
    output: Float[Tensor, "*layer head dimension hidden"] | None = None,
) -> Float[Tensor, "*layer head query key"]:
    """Return the length of what each key adds to each query: attention times its value's length.

    A sink gets much attention and has a short value, so it adds little. A ``Trace`` has the lengths
    of values without the output projection: ``trace.value_norm``.

    Args:
        attention: post-softmax weights in [0, 1].
        value: value vectors; one may serve several heads next to each other.
        output: each head's part of the output projection, from values to the residual stream; with
            it these are the norms of the source, without it those of the values themselves.

    Returns:
        Lengths, at least 0.

    Source: Kobayashi et al. 2020, arXiv 2004.10102, section 3 (the norm-based analysis).

    Example:
        >>> attention = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.8, 0.1, 0.1]])
        >>> value = torch.tensor([[0.1, 0.0], [3.0, 4.0], [0.0, 1.0]])
        >>> value_weighted_attention(attention[None], value[None])[0]
        tensor([[0.1000, 0.0000, 0.0000],
                [0.0900, 0.5000, 0.0000],
                [0.0800, 0.5000, 0.1000]])
    """
    value = value.repeat_interleave(attention.shape[-3] // value.shape[-3], -3)
    if output is not None:
        value = value @ output
    return attention * value.norm(dim=-1)[..., None, :]


def attention_rollout(
    attention: Float[Tensor, "layer head token token"],
) -> Float[Tensor, "layer token token"]:
    """Return attention through all layers up to each: half goes along, half stays in the residual.

    Heads are averaged, and layers multiplied: how much of each token reaches each other one, if
    values, projections and feed-forwards did nothing. What goes to no key is lost.

    Args:
        attention: post-softmax weights in [0, 1] of all layers from the first on; whole maps.

    Returns:
        Shares in [0, 1], (layer, query, token of the text); row sums are one without null mass.

    Source: Abnar and Zuidema 2020, arXiv 2005.00928, section 3 (attention rollout).

    Example:
        >>> one = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> attention_rollout(torch.stack((one, one))[:, None])[1]
        tensor([[1.0000, 0.0000, 0.0000],
                [0.7500, 0.2500, 0.0000],
                [0.2500, 0.5000, 0.2500]])
    """
    mean = attention.mean(1)
    steps = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
    found = [steps[0]]
    for step in steps[1:]:
        found.append(step @ found[-1])
    return torch.stack(found)


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
