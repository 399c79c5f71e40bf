"""Statistics equal those of whole float64 maps, which the models' own eager attention returns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import tiny_llama
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache
from zoo import ZOO, zoo_float32, zoo_model

from sinkviz.capturing import capture, capture_scores
from sinkviz.families import attention_modules
from sinkviz.models import untouched
from sinkviz.statistics import STATISTICS, distance_edges

LENGTH = 45
OPTIONS = {"n_sink": 2, "n_recent": 8, "pooled": 7, "queries": [0, 20, -1], "top_k": 3}


def text(n: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(2))


class FusedMaps(TorchFunctionMode):
    """Compute the weights of every fused attention call from its own arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[torch.Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key = args[:2]
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
            self.maps.append((scores + kwargs["attn_mask"]).softmax(-1)[0])
        return func(*args, **kwargs)


def whole_maps(lm, ids: torch.Tensor) -> torch.Tensor:
    """Return every head's map, (layer, head, query, key), as the model itself computes it."""
    if lm.name == "falcon-alibi":  # whose eager attention adds its bias twice
        with untouched(lm.model), FusedMaps() as fused:
            lm.model(ids[None], use_cache=False)
        return torch.stack(fused.maps)
    maps = []
    hooks = [
        module.register_forward_hook(lambda *args: maps.append(args[-1][1][0]))
        for module in attention_modules(lm.model, lm.family)
    ]
    with untouched(lm.model, "eager"):
        lm.model(ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(maps)


def reference(maps: torch.Tensor, trace) -> dict[str, np.ndarray]:
    """Return the statistics of whole maps, written as their definitions say."""
    maps, n, cell = maps.double(), maps.shape[-1], trace.cell
    # A key that a query does not see gets nothing at all; one that it sees, a little.
    seen, query, key = maps > 0, torch.arange(n)[:, None], torch.arange(n)
    own, sink = key == query, (key < OPTIONS["n_sink"]) & (key != query)
    recent = (key > query - OPTIONS["n_recent"]) & ~own & ~sink
    roles = (sink, recent, ~(own | sink | recent), own)
    mass = [(maps * role).sum(-1) for role in roles]
    edges = distance_edges(n)
    bins = [(query - key >= a) & (query - key < b) for a, b in zip(edges, edges[1:], strict=False)]
    sides = range(0, n, cell)
    cells = [[maps[..., i : i + cell, j : j + cell] for j in sides] for i in sides]
    pairs = [[seen[..., i : i + cell, j : j + cell].sum((-1, -2)) for j in sides] for i in sides]
    best = maps[:, :, list(trace.queries)].sort(-1, descending=True)
    found = {
        "received": maps.sum(-2) / seen.sum(-2),
        "mass": torch.stack([*mass, 1 - maps.sum(-1)], -1),
        "entropy": -torch.xlogy(maps, maps).sum(-1),
        "distance": torch.stack([(maps * one).sum((-1, -2)) / n for one in bins], -1),
        "pooled_max": torch.stack([torch.stack([c.amax((-1, -2)) for c in r], -1) for r in cells], -2),
        "pooled_mean": torch.stack(
            [
                torch.stack([c.sum((-1, -2)) / p for c, p in zip(r, q, strict=True)], -1)
                for r, q in zip(cells, pairs, strict=True)
            ],
            -2,
        ),
        "top_attention": best.values[..., : OPTIONS["top_k"]],
    }
    unseen = found["pooled_mean"].isnan()
    found["pooled_max"] = found["pooled_max"].masked_fill(unseen, torch.nan)
    return {name: x.numpy() for name, x in found.items()}


def assert_equal_statistics(trace, maps: torch.Tensor, tolerance: float) -> None:
    for name, expected in reference(maps, trace).items():
        found = getattr(trace, name)
        assert found.shape == expected.shape, name
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0, err_msg=name)
    # Keys of equal weight may change places, so the keys are held against their weights.
    keys = torch.from_numpy(trace.top_keys)
    for i, query in enumerate(trace.queries):
        assert ((keys[:, :, i] < 0).sum(-1) == max(0, OPTIONS["top_k"] - query - 1)).all() or (
            maps[:, :, query] == 0
        ).any()
        weights = maps[:, :, query].gather(-1, keys[:, :, i].clamp(min=0)).masked_fill(keys[:, :, i] < 0, 0)
        np.testing.assert_allclose(trace.top_attention[:, :, i], weights, atol=tolerance, rtol=0)


@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("name", ZOO)
def test_in_double_every_family_equals_its_own_maps(name, block):
    with zoo_model(name) as lm:
        maps = whole_maps(lm, text())
        trace = capture(lm, text(), keep="statistics", block=block, **OPTIONS)
        with_maps = capture(lm, text(), keep="maps", block=block)
    assert maps.dtype == torch.float64
    assert_equal_statistics(trace, maps, 1e-9)
    np.testing.assert_allclose(with_maps.attention, maps, atol=1e-9, rtol=0)
    bypass = name.startswith(("gptj", "codegen", "falcon", "mpt", "bloom"))
    assert trace.provenance["engine"] == ("eager" if bypass else "interface")
    null = name in ("gpt_oss", "classroom-off-by-one", "classroom-sink-logit")
    assert (trace.mass_of("null") > 1e-6).any() == null


@pytest.mark.parametrize("name", ZOO)
def test_norms_are_those_of_keys_values_and_the_residual_stream(name):
    with zoo_model(name) as lm:
        cache = DynamicCache()
        with untouched(lm.model):
            hidden = lm.model(text()[None], past_key_values=cache, output_hidden_states=True)
        trace = capture(lm, text(), statistics=["norms"], block=20)
    for kind in ("key", "value"):
        expected = [getattr(layer, f"{kind}s")[0].norm(dim=-1) for layer in cache.layers]
        found = getattr(trace, f"{kind}_norm")
        np.testing.assert_allclose(found, torch.stack(expected), atol=1e-9, rtol=1e-9)
    if hidden.hidden_states is not None:  # the last is that after the final norm
        expected = torch.stack(hidden.hidden_states[1:-1])[:, 0].norm(dim=-1)
        np.testing.assert_allclose(trace.residual_norm[:-1], expected, atol=1e-9, rtol=1e-9)
