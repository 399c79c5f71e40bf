"""Statistics equal those of whole float64 maps, which the models' own eager attention returns."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import tiny_llama
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache
from zoo import ZOO, zoo_float32, zoo_model

from sinkviz.capturing import capture, capture_scores, gathering, observing, reducing, tiling
from sinkviz.capturing.reducing import reduce_products
from sinkviz.capturing.sights import Sight
from sinkviz.capturing.statistics import LayerStatistics, Plan, distance_edges
from sinkviz.families import attention_modules
from sinkviz.metrics import ROLES, entropy, mass
from sinkviz.models import untouched

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


def grid(cells: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return (layer, head, row, column) of rows of (layer, head)."""
    return torch.stack([torch.stack(row, -1) for row in cells], -2)


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
        "pooled_max": grid([[c.amax((-1, -2)) for c in r] for r in cells]),
        "pooled_mean": grid([[c.sum((-1, -2)) for c in r] for r in cells]) / grid(pairs),
        "top_attention": best.values[..., : OPTIONS["top_k"]],
    }
    unseen = found["pooled_mean"].isnan()
    found["pooled_max"] = found["pooled_max"].masked_fill(unseen, torch.nan)
    return {name: x.numpy() for name, x in found.items()}


def assert_equal_statistics(
    trace, maps: torch.Tensor, tolerance: float, looser: dict[str, float] | None = None
) -> None:
    for name, expected in reference(maps, trace).items():
        found, allowed = getattr(trace, name), (looser or {}).get(name, tolerance)
        assert found.shape == expected.shape, name
        np.testing.assert_allclose(found, expected, atol=allowed, rtol=0, err_msg=name)
    # Keys of equal weight may change places, so keys are held against their weights.
    keys, rows = torch.from_numpy(trace.top_keys), maps[:, :, list(trace.queries)]
    weights = rows.gather(-1, keys.clamp(min=0)).masked_fill(keys < 0, 0)
    np.testing.assert_allclose(trace.top_attention, weights, atol=tolerance, rtol=0)
    assert ((keys >= 0).sum(-1) <= (rows > 0).sum(-1)).all()


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


# Scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_scores_are_what_the_softmax_is_given(name):
    with zoo_model(name) as lm:
        maps = whole_maps(lm, text())
        trace = capture(lm, text(), keep="statistics", statistics=[], scores=True, block=20)
        mean = capture_scores(lm, [text(20), text(30).flip(0), text(10)], length=20)
        ones = [capture(lm, ids, scores=True) for ids in (text(20), text(30).flip(0)[:20])]
    scores = torch.from_numpy(trace.scores)
    assert torch.equal(scores.isnan(), maps == 0)
    # Attention says what scores are up to a number for each row. Looking on while a module takes
    # its softmax hides from ``zoo_model`` who takes it, so that it is rounded there.
    tolerance = 1e-9 if trace.provenance["engine"] == "interface" else 1e-4
    differences = scores - scores.diagonal(0, 2, 3)[..., None]
    expected = maps.log() - maps.diagonal(0, 2, 3)[..., None].log()
    expected = expected.masked_fill(maps == 0, torch.nan)
    np.testing.assert_allclose(differences, expected, atol=tolerance, rtol=tolerance)
    expected = (ones[0].scores + ones[1].scores) / 2
    np.testing.assert_allclose(mean, expected, atol=1e-5, rtol=1e-5)


def test_scores_are_queries_times_keys():
    lm = tiny_llama()
    layer, seen = lm.model.model.layers[0].self_attn, []
    hook = layer.register_forward_hook(lambda *args: seen.append(args[-2]), with_kwargs=True)
    trace = capture(lm, text(), scores=True)
    hook.remove()
    hidden, (cos, sin) = seen[0]["hidden_states"][0], seen[0]["position_embeddings"]
    query, key = (project(hidden).view(LENGTH, -1, 12) for project in (layer.q_proj, layer.k_proj))

    def turned(x: torch.Tensor) -> torch.Tensor:
        halves = torch.cat((-x[..., 6:], x[..., :6]), -1)
        return x * cos[0][:, None] + halves * sin[0][:, None]

    query, key = turned(query), turned(key).repeat_interleave(2, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(12)
    scores[:, torch.ones(LENGTH, LENGTH).triu(1).bool()] = torch.nan
    np.testing.assert_allclose(trace.scores[0], scores.detach(), atol=1e-9)


# Single precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("scale", [1, 12])
@pytest.mark.parametrize("kind", ["causal", "sliding", "bias", "null", "capped"])
def test_in_single_precision_the_same_queries_and_keys_give_the_same(
    kind, scale, at_once, monkeypatch
):
    """Within 1e-6 of float64; where scores reach hundreds, they are rounded by more themselves.

    A head at a time as on a CPU, and all at once as on a GPU.
    """
    monkeypatch.setattr(reducing, "_heads_at_once", lambda query: at_once)
    generator = torch.Generator().manual_seed(3)
    n, heads = 700, 4
    query, key = (torch.randn(h, n, 32, generator=generator) * scale**0.5 for h in (heads, 2))
    distance = torch.arange(n)[:, None] - torch.arange(n)
    visible = (distance >= 0) & ((distance < 100) | (kind != "sliding"))
    softcap = 5.0 if kind == "capped" else None
    null = torch.randn(heads, generator=generator) if kind == "null" else None
    slopes = 2.0 ** -torch.arange(1, heads + 1)[:, None, None]
    bias = (-slopes * distance).masked_fill(~visible, torch.finfo(torch.float32).min)
    mask = {"sliding": visible[None], "bias": bias}.get(kind)

    scores = query.double() @ key.double().repeat_interleave(2, 0).mT / math.sqrt(32)
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if kind == "bias":
        scores = scores - slopes * distance
    scores = scores.masked_fill(~visible, -torch.inf)
    if null is not None:
        scores = torch.cat((scores, null.double()[:, None, None].expand(heads, n, 1)), -1)
    maps = scores.softmax(-1)[..., :n]

    plan = Plan(n, n_sink=2, n_recent=8, queries=(0, 20, n - 1), top_k=3, cell=n // 7)
    whole = torch.zeros(n, n)
    found = LayerStatistics(plan, heads, query.device, torch.float32, [(1, whole)])
    for first in (0, 300):
        last = 300 if first == 0 else n
        part = None if mask is None else mask[:, first:last, :last]
        sight = Sight(first, last, part)
        reduce_products(found, query[:, first:last], key[:, :last], sight, 32**-0.5, softcap, null)
    result = {name: x.numpy()[None] for name, x in found.result().items()}
    trace = SimpleNamespace(cell=plan.cell, queries=plan.queries, **result)
    wide = maps[None]
    tolerance = 1e-6 if scale == 1 else 1e-5
    assert_equal_statistics(trace, wide, tolerance, {"entropy": 5 * tolerance})
    np.testing.assert_allclose(whole, maps[1], atol=tolerance, rtol=0)


@pytest.mark.parametrize("scale", [1, 40])
@pytest.mark.parametrize("kind", ["plain", "sliding", "hidden"])
@pytest.mark.parametrize("size", [(256, 1024), (32, 100), (7, 3)], ids=str)
def test_sums_by_tiles_are_those_of_whole_maps(kind, scale, size, monkeypatch):
    """In parts of rows and keys, with the logarithms of the sums that the softmax divides by."""
    monkeypatch.setattr(tiling, "ROWS", size[0])
    monkeypatch.setattr(tiling, "KEYS", size[1])
    generator = torch.Generator().manual_seed(4)
    n, heads = 300, 4
    query, key = (torch.randn(h, n, 32, generator=generator) * scale**0.5 for h in (heads, 2))
    visible = torch.ones(n, n, dtype=torch.bool).tril()
    if kind == "sliding":
        visible &= visible.triu(-40)
    if kind == "hidden":
        visible[:, 10:30] = False
        visible.fill_diagonal_(True)
    mask = None if kind == "plain" else visible[None]
    scores = query.double() @ key.double().repeat_interleave(2, 0).mT / math.sqrt(32)
    scores = scores.masked_fill(~visible, -torch.inf)
    maps, log_sums = scores.softmax(-1), scores.logsumexp(-1).float()

    plan = Plan(n, ("received", "mass", "entropy"), n_sink=2, n_recent=8)
    found = LayerStatistics(plan, heads, query.device, torch.float32)
    for first, last in ((0, 130), (130, n)):
        sight = Sight(first, last, None if mask is None else mask[:, first:last, :last])
        part = slice(first, last)
        given = query[:, part], key[:, :last], sight, 32**-0.5, log_sums[:, part]
        tiling.reduce_tiles(found, *given)
    result = found.result()
    tolerance = 1e-6 if scale == 1 else 2e-5
    by_role = mass(maps, plan.n_sink, plan.n_recent)
    wide = {
        "received": maps.sum(1) / visible.sum(0),
        "entropy": entropy(maps),
        "mass": torch.stack([by_role[role] for role in ROLES], -1),
    }
    for name, expected in wide.items():
        more = 5 if name == "entropy" else 1
        torch.testing.assert_close(result[name].double(), expected, atol=more * tolerance, rtol=0)


def test_a_fused_attention_is_overheard_and_nothing_else(monkeypatch):
    """Where a kernel says what it divides by, sums take tiles; the results are the same."""
    lm, lean = zoo_float32("llama"), {"keep": "statistics", "statistics": ["received", "mass"]}
    used, reduce = [], tiling.reduce_tiles
    monkeypatch.setattr(gathering, "reduce_tiles", lambda *args: used.append(reduce(*args)))
    heard = capture(lm, text(), **lean)
    assert len(used) == heard.n_layers
    whole = capture(lm, text(), keep="statistics")
    one_map = capture(lm, text(), keep=[(0, 0)], statistics=["received"])
    assert len(used) == 2 * heard.n_layers - 1
    monkeypatch.setattr(observing, "FUSED_ATTENTION", "another")
    unheard = capture(lm, text(), **lean)
    assert len(used) == 2 * heard.n_layers - 1
    monkeypatch.undo()
    lm.model.to(torch.bfloat16)
    monkeypatch.setattr(gathering, "reduce_tiles", lambda *args: pytest.fail("sums are rounded"))
    capture(lm, text(), **lean)
    for trace in (whole, one_map, unheard):
        np.testing.assert_allclose(trace.received, heard.received, atol=1e-6)
    np.testing.assert_allclose(unheard.mass, heard.mass, atol=1e-6)


def wide_maps(query, key, sight, scaling, softcap=None, null=None) -> torch.Tensor:
    """Return one layer's maps in float64, from what the model hands to attention."""
    keys = key.double().repeat_interleave(len(query) // len(key), 0)
    scores = query.double() @ keys.mT * scaling
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if sight.mask is None:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    elif sight.adds:
        scores = scores + sight.mask.double()
    else:
        scores = scores.masked_fill(~sight.mask, -torch.inf)
    if null is not None:
        scores = torch.cat((scores, null.double()[:, None, None].expand(*scores.shape[:2], 1)), -1)
    return scores.softmax(-1)[..., : key.shape[1]]


@pytest.mark.parametrize("name", ZOO)
def test_in_single_precision_every_family_is_exact(name, monkeypatch):
    """To 1e-6 of full float64 maps, from the same queries and keys, or the model's own weights.

    At a tenth of the zoo's size of queries, where scores are a few units, as in trained models.
    """
    maps = []

    def products(found, query, *rest):
        maps.append(wide_maps(0.1 * query, *rest))
        reduce_products(found, 0.1 * query, *rest)

    def weights(found, attention, *rest):
        maps.append(attention.double())
        reducing.reduce_weights(found, attention, *rest)

    monkeypatch.setattr(gathering, "reduce_products", products)
    monkeypatch.setattr(gathering, "reduce_weights", weights)
    trace = capture(zoo_float32(name), text(), keep="statistics", block=LENGTH, **OPTIONS)
    assert trace.received.dtype == np.float32
    assert_equal_statistics(trace, torch.stack(maps), 1e-6)


@pytest.mark.parametrize("name", ZOO)
def test_a_single_precision_model_is_close(name):
    """What the model itself rounds grows from layer to layer; these models exaggerate it."""
    with zoo_model(name) as lm:
        maps = whole_maps(lm, text())
    trace = capture(zoo_float32(name), text(), keep="statistics", **OPTIONS)
    assert trace.received.dtype == trace.entropy.dtype == np.float32
    assert_equal_statistics(trace, maps, 2e-4, {"entropy": 1e-3})
