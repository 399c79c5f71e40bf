"""Metrics equal their definitions, written as loops, on random causal attention."""

from __future__ import annotations

import math

import pytest
import torch

from sinkviz.metrics import (
    attention_rollout,
    effective_context,
    entropy,
    first_token_share,
    received_attention,
    sink_rate,
    value_weighted_attention,
)

LAYERS, HEADS, T = 3, 4, 7
GENERATOR = torch.Generator().manual_seed(0)
SCORES = 3 * torch.randn(LAYERS, HEADS, T, T, generator=GENERATOR, dtype=torch.float64)
MAPS = SCORES.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
CLOSE = {"atol": 1e-12, "rtol": 0}


def test_first_token_share_is_the_mean_over_later_queries():
    for layer in range(LAYERS):
        for head in range(HEADS):
            expected = sum(float(MAPS[layer, head, query, 0]) for query in range(1, T)) / (T - 1)
            assert float(first_token_share(MAPS)[layer, head]) == pytest.approx(expected)
    # Of the last queries alone, none is the first token's own.
    torch.testing.assert_close(first_token_share(MAPS[..., -2:, :]), MAPS[..., -2:, 0].mean(-1))
    for shape in ((1, 1), (3, 2)):
        with pytest.raises(ValueError, match="needs queries after it"):
            first_token_share(torch.ones(shape))


def test_a_shorter_text_is_a_corner_of_the_map():
    expected = [
        sum(float(MAPS[layer, head, query, 0]) for query in range(4)) / 4 > 0.3
        for layer in range(LAYERS)
        for head in range(HEADS)
    ]
    found = sink_rate(received_attention(MAPS[..., :4, :4]))
    assert found == pytest.approx(sum(expected) / len(expected))
    assert 0 < found < 1


def test_effective_context_is_exp_of_entropy_of_what_goes_to_keys():
    for query in range(T):
        row = [float(x) for x in MAPS[0, 0, query] if x > 0]
        expected = math.exp(-sum(x * math.log(x) for x in row))
        assert float(entropy(MAPS)[0, 0, query]) == pytest.approx(math.log(expected), abs=1e-12)
        assert float(effective_context(MAPS)[0, 0, query]) == pytest.approx(expected)
    torch.testing.assert_close(effective_context(0.3 * MAPS), effective_context(MAPS), **CLOSE)
    assert effective_context(torch.full((2, 5), 0.2)).tolist() == pytest.approx([5, 5])
    assert effective_context(torch.zeros(1, 3)).tolist() == [0]


def test_value_weighted_attention_is_the_length_of_what_is_added():
    value = torch.randn(LAYERS, 2, T, 5, generator=GENERATOR, dtype=torch.float64)
    output = torch.randn(LAYERS, HEADS, 5, 8, generator=GENERATOR, dtype=torch.float64)
    plain, projected = value_weighted_attention(MAPS, value), None
    projected = value_weighted_attention(MAPS, value, output)
    for layer, head, query, key in ((0, 0, 3, 1), (1, 1, 6, 6), (2, 2, 4, 0), (2, 3, 5, 2)):
        share, vector = MAPS[layer, head, query, key], value[layer, head // 2, key]
        assert plain[layer, head, query, key] == pytest.approx((share * vector).norm())
        added = share * (vector @ output[layer, head])
        assert projected[layer, head, query, key] == pytest.approx(added.norm())


def test_rollout_adds_up_all_paths():
    found = attention_rollout(MAPS)
    mean = MAPS.mean(1)

    def reached(layer: int, query: int, token: int) -> float:
        if layer < 0:
            return float(query == token)
        along = sum(
            float(mean[layer, query, key]) * reached(layer - 1, key, token) for key in range(T)
        )
        return 0.5 * along + 0.5 * reached(layer - 1, query, token)

    for layer, query, token in ((0, 3, 1), (1, 5, 0), (2, 6, 0), (2, 6, 5), (2, 4, 4)):
        assert float(found[layer, query, token]) == pytest.approx(reached(layer, query, token))
    torch.testing.assert_close(found.sum(-1), torch.ones(LAYERS, T).double(), **CLOSE)
    # What goes to no key is lost, layer after layer.
    lost = attention_rollout(0.5 * MAPS).sum(-1)
    torch.testing.assert_close(lost[:, 0], torch.tensor([0.75, 0.75**2, 0.75**3]).double())
