"""Sums by flex attention equal those of whole float64 maps; where it does not work, blocks do."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention
from zoo import zoo_float32

from sinkviz import tiles
from sinkviz.capturing import capture, fused, gathering, kernels, observing
from sinkviz.capturing.sights import Sight
from sinkviz.capturing.statistics import LayerStatistics, Plan
from sinkviz.metrics import ROLES, entropy, mass, received_attention

SUMS = ("received", "mass", "entropy")
IDS = torch.arange(50) * 7 % 61


def block_by_block(query, key, value, *, score_mod, block_mask, scale, enable_gqa, **options):
    """Compute what flex attention's kernel for GPUs computes, from the blocks that it is given.

    Torch's own definition looks at all pairs, and would not see a block that is missing.
    """
    assert enable_gqa == (query.shape[1] != key.shape[1]) and value.shape[-1] >= 16
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.full((*query.shape[1:3], key.shape[2]), -torch.inf, dtype=torch.float32)
    assert block_mask.seq_lengths == scores.shape[1:]
    heads, (tall, wide) = torch.arange(len(scores))[:, None, None], block_mask.BLOCK_SIZE
    kinds = (
        (block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.mask_mod),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, None),
    )
    for counts, columns, mask in kinds:
        for block, count in enumerate(counts[0, 0].tolist()):
            row = torch.arange(block * tall, min((block + 1) * tall, scores.shape[1]))[:, None]
            for start in columns[0, 0, block, :count].tolist():
                column = torch.arange(start * wide, min((start + 1) * wide, scores.shape[2]))
                rows, keys = slice(row[0], row[-1] + 1), slice(column[0], column[-1] + 1)
                product = query[0, :, rows].float() @ key[0, :, keys].float().mT * scale
                product = score_mod(product, 0, heads, row, column)
                if mask is not None:
                    seen = mask(0, 0, row, column)
                    product = product.masked_fill(~seen, -torch.inf)
                assert (scores[:, rows, keys] == -torch.inf).all()
                scores[:, rows, keys] = product
    return None, flex_attention.AuxOutput(lse=scores.logsumexp(-1)[None])


@pytest.fixture
def uncompiled(monkeypatch):
    """Run no kernels, but what they compute, in small blocks, and so for short texts."""
    monkeypatch.setattr(tiles, "SIDE", 16)
    monkeypatch.setattr(kernels, "_run", lambda: kernels._logs)
    monkeypatch.setattr(kernels, "flex_attention", block_by_block)


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Let short float32 texts on the CPU be served, too."""
    monkeypatch.setattr(fused, "DEVICES", {"cpu"})
    monkeypatch.setattr(fused, "LEAST_QUERIES", 1)
    monkeypatch.setattr(fused, "_given_up", False)


def states(n: int, heads: int = 4, shared: int = 2, size: int = 16, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(h, n, size, generator=generator) for h in (heads, heads // shared))


def visibility(n: int, window: int | None = None) -> torch.Tensor:
    distance = torch.arange(n)[:, None] - torch.arange(n)
    return (distance >= 0) & (distance < (window or n))


def maps_of(query, key, visible, scaling, softcap=None, null=None) -> torch.Tensor:
    """Return whole maps in float64, (head, query, key)."""
    keys = key.double().repeat_interleave(len(query) // len(key), 0)
    scores = query.double() @ keys.mT * scaling
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~visible, -torch.inf)
    if null is not None:
        lost = null.double()[:, None, None].expand(*scores.shape[:2], 1)
        scores = torch.cat((scores, lost), -1)
    return scores.softmax(-1)[..., : key.shape[1]].nan_to_num()


def assert_sums_of(maps, visible, found: LayerStatistics, tolerance: float = 1e-5) -> None:
    plan, result = found.plan, found.result()
    shares = mass(maps, plan.n_sink, plan.n_recent)
    expected = {
        "received": received_attention(maps, visible),
        "mass": torch.stack([shares[role] for role in ROLES], -1),
        "entropy": entropy(maps),
    }
    assert result.keys() == expected.keys()
    for name, one in expected.items():
        np.testing.assert_allclose(result[name], one, atol=tolerance, rtol=0, err_msg=name)


def statistics_of(n: int, n_heads: int, dtype=torch.float32, **options: int) -> LayerStatistics:
    plan = Plan(n, SUMS, **{"n_sink": 3, "n_recent": 20} | options)
    return LayerStatistics(plan, n_heads, torch.device("cpu"), dtype)


# Sums ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 48, 75])
@pytest.mark.parametrize("shared", [1, 4])
@pytest.mark.parametrize("kind", ["causal", "window", "masked", "null", "capped", "large"])
def test_sums_equal_those_of_whole_maps(kind, shared, n, uncompiled):
    query, key = states(n, shared=shared)
    query = query * (10 if kind == "large" else 1)
    window = 21 if kind == "window" else None
    visible, mask = visibility(n, window), None
    if kind == "masked":  # padding on the left, which sees itself alone; and a window
        visible = visibility(n, 50) & (torch.arange(n) >= 11) | torch.eye(n).bool()
        mask = visible[None]
    softcap = 1.5 if kind == "capped" else None
    null = torch.tensor([-1.0, 0.0, 3.0, 30.0]) if kind == "null" else None
    found = statistics_of(n, 4)
    fused.reduce_fused(found, query, key, Sight(0, n, mask, window), 0.25, softcap, null)
    assert_sums_of(maps_of(query, key, visible, 0.25, softcap, null), visible, found)


@pytest.mark.parametrize("cuts", [(0, 40, 75), (0, 1, 33, 75)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, 20])
def test_passes_of_a_part_each_add_up(window, masked, cuts, uncompiled):
    query, key = states(75)
    visible, found = visibility(75, window), statistics_of(75, 4)
    for first, stop in zip(cuts, cuts[1:], strict=False):
        part = visible[None, first:stop, :stop] if masked else None
        sight = Sight(first, stop, part, None if masked else window)
        fused.reduce_fused(found, query[:, first:stop], key[:, :stop], sight, 0.25)
    assert_sums_of(maps_of(query, key, visible, 0.25), visible, found)


@pytest.mark.parametrize("n_sink", [0, 1, 40, 90])
@pytest.mark.parametrize("n_recent", [1, 20, 90])
@pytest.mark.parametrize("window", [None, 13])
def test_roles_begin_and_end_where_they_should(n_sink, n_recent, window, uncompiled):
    query, key = states(75)
    visible = visibility(75, window)
    found = statistics_of(75, 4, n_sink=n_sink, n_recent=n_recent)
    fused.reduce_fused(found, query, key, Sight(0, 75, None, window), 0.25)
    assert_sums_of(maps_of(query, key, visible, 0.25), visible, found)


@pytest.mark.parametrize("kind", ["causal", "window", "masked"])
def test_torch_defines_the_same(kind, monkeypatch):
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(kernels, "_run", lambda: kernels._logs)
    query, key = states(200)
    visible = visibility(200, 33 if kind == "window" else None)
    mask = visible[None] if kind == "masked" else None
    found, null = statistics_of(200, 4), torch.tensor([-1.0, 0.0, 3.0, 30.0])
    sight = Sight(0, 200, mask, 33 if kind == "window" else None)
    fused.reduce_fused(found, query, key, sight, 0.25, 1.5, null)
    assert_sums_of(maps_of(query, key, visible, 0.25, 1.5, null), visible, found)


@pytest.mark.parametrize("first", [0, 100, 299])
@pytest.mark.parametrize(
    "pairs", [(0, 300, 0, 300), (0, 1, 0, 300), (1, 40, 3, 300), (1, 300, 0, 3)]
)
def test_blocks_are_left_out_where_nothing_counts(pairs, first):
    """As many as can be: what counts is compared pair by pair."""
    query, key = torch.arange(first, 300)[:, None], torch.arange(300)
    distance = query - key
    counts = (distance >= pairs[0]) & (distance < pairs[1]) & (key >= pairs[2]) & (key < pairs[3])
    few = torch.rand(300 - first, 300, generator=torch.Generator().manual_seed(0)) < 2e-4
    for visible in (None, few):
        parts = None if visible is None else kernels._parts(visible)
        partial, full = tiles.grids(300 - first, 300, pairs, key.device, parts)
        inside = counts if visible is None else counts & visible
        for i, rows in enumerate(inside.split(tiles.SIDE)):
            for j, block in enumerate(rows.split(tiles.SIDE, 1)):
                assert not full[i, j] or block.all()
                assert partial[i, j] or full[i, j] or not block.any()
                if visible is None:
                    assert bool(full[i, j]) == bool(block.all())
                    assert bool(partial[i, j]) == bool(block.any() and not block.all())


def test_a_query_that_sees_nothing_gives_nothing(uncompiled):
    query, key = states(75)
    visible = visibility(75)
    visible[[0, 70]] = False
    found = statistics_of(75, 4)
    fused.reduce_fused(found, query, key, Sight(0, 75, visible[None]), 0.25)
    result = found.result()
    maps = maps_of(query, key, visible, 0.25)
    np.testing.assert_allclose(result["received"], received_attention(maps, visible), atol=1e-6)
    assert result["entropy"][:, [0, 70]].abs().max() < 1e-6


def test_narrow_numbers_are_summed_in_single_precision(uncompiled):
    """All but what the queries and keys themselves have lost."""
    query, key = (x.bfloat16() for x in states(75))
    found = statistics_of(75, 4)
    fused.reduce_fused(found, query, key, Sight(0, 75), 0.25)
    visible = visibility(75)
    assert_sums_of(maps_of(query, key, visible, 0.25), visible, found)


@pytest.mark.parametrize("window", [None, 1, 7, 99])
@pytest.mark.parametrize("first", [0, 20, 49])
def test_viewers_of_a_window_are_those_of_its_mask(window, first):
    visible = visibility(50, window)[first:]
    assert torch.equal(Sight(first, 50, None, window).viewers(), visible.sum(0))


# Kernels ------------------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch):
    """Return what is compiled, which here is traced and then run as it is written."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    compiled = torch.compile

    def compile_for_us(function, **options):
        return compiled(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_for_us)
    kernels._run.cache_clear()
    yield found
    kernels._run.cache_clear()
    torch.compiler.reset()


def test_it_is_compiled_also_where_models_are_not_and_nothing_is_square(graphs):
    n, (query, key) = 270, states(270)
    found = statistics_of(n, 4)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        fused.reduce_fused(found, query, key, Sight(0, n), 0.25)
        n_kernels = len(graphs)
        fused.reduce_fused(statistics_of(n, 4), query * 2, key, Sight(0, n), 0.25)
        assert len(graphs) == n_kernels == 3  # of exponentials, of columns, of entropies
        # Another layer is no other kernel, and the model's stance is back again.
        torch.compile(torch.sin)(query)
        assert len(graphs) == n_kernels
    visible = visibility(n)
    assert_sums_of(maps_of(query, key, visible, 0.25), visible, found)
    for graph in graphs:
        calls = [str(node.target) for node in graph.graph.nodes]
        assert calls.count("flex_attention") == 1
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            for one in value if isinstance(value, tuple | list) else (value,):
                assert not isinstance(one, torch.Tensor) or one.numel() < n * n


def test_texts_of_many_lengths_need_few_kernels(graphs):
    for n in (130, 257, 150):
        found = LayerStatistics(Plan(n, ("received",)), 4, torch.device("cpu"), torch.float32)
        fused.reduce_fused(found, *states(n), Sight(0, n), 0.25)
        visible = visibility(n)
        expected = received_attention(maps_of(*states(n), visible, 0.25), visible)
        np.testing.assert_allclose(found.result()["received"], expected, atol=1e-6)
    assert len(graphs) == 4  # two of the first length, and two of any


# What is served -----------------------------------------------------------------------------------


def test_what_asks_for_weights_or_is_small_is_not_served(monkeypatch, on_the_cpu):
    query, causal = states(30)[0], Sight(0, 30)
    device = torch.device("cpu")

    def served(plan=None, query=query, sight=causal, kept=()):
        found = LayerStatistics(plan or Plan(30, SUMS), 4, device, torch.float32, kept)
        return fused.serves(found, query, sight)

    assert served() and served(query=query.bfloat16()) and served(Plan(30, ("norms", "mass")))
    assert served(sight=Sight(0, 30, visibility(30)[None]))
    refused = {
        "distance": dict(plan=Plan(30, ("received", "distance"))),
        "pooled": dict(plan=Plan(30, ("received", "pooled"))),
        "queries": dict(plan=Plan(30, SUMS, queries=(3,))),
        "scores": dict(plan=Plan(30, SUMS, scores=True)),
        "maps": dict(kept=[(0, torch.zeros(30, 30))]),
        "bias": dict(sight=Sight(0, 30, torch.zeros(1, 30, 30))),
        "a mask per head": dict(sight=Sight(0, 30, visibility(30).expand(4, 30, 30))),
        "double": dict(query=query.double()),
        "narrow heads": dict(query=query[..., :12]),
    }
    for name, options in refused.items():
        assert not served(**options), name
    monkeypatch.setattr(fused, "LEAST_QUERIES", 31)
    assert not served()
    monkeypatch.undo()
    assert not served()  # the CPU, and 30 tokens


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("block", [None, 30])
def test_captures_are_the_same(name, block, monkeypatch, uncompiled, on_the_cpu):
    lm, calls = zoo_float32(name), []

    def reduce(*args):
        calls.append(args)
        fused.reduce_fused(*args)

    monkeypatch.setattr(gathering, "reduce_fused", reduce)
    options = {"keep": "statistics", "statistics": [*SUMS, "norms"], "block": block, "n_recent": 9}
    found = capture(lm, IDS, **options)
    assert calls
    monkeypatch.setattr(fused, "DEVICES", set())
    expected = capture(lm, IDS, **options)
    for one in (*SUMS, "key_norm", "value_norm", "residual_norm"):
        ours, theirs = getattr(found, one), getattr(expected, one)
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=one)


# Faults -------------------------------------------------------------------------------------------


def test_where_it_does_not_compile_blocks_do_it_after_one_warning(monkeypatch, on_the_cpu):
    def fail(*args):
        raise NotImplementedError("NYI: no kernel for this\nand a long story")

    monkeypatch.setattr(observing, "FUSED_ATTENTION", "unheard")
    monkeypatch.setattr(kernels, "_run", lambda: fail)
    lm, options = zoo_float32("llama"), {"keep": "statistics", "statistics": SUMS}
    with pytest.warns(RuntimeWarning, match="does not work here .*no kernel for this\\); ") as said:
        found = capture(lm, IDS, **options)
    assert len(said) == 1 and "long story" not in str(said[0].message)
    monkeypatch.setattr(fused, "DEVICES", set())
    expected = capture(lm, IDS, **options)
    for one in SUMS:
        assert np.array_equal(getattr(found, one), getattr(expected, one))


@pytest.mark.parametrize("wrong", [lambda x: x * math.log2(math.e), lambda x: x + math.nan])
def test_sums_that_contradict_each_other_are_not_taken(wrong, monkeypatch, uncompiled, on_the_cpu):
    monkeypatch.setattr(kernels, "_run", lambda: lambda *args: wrong(kernels._logs(*args)))
    query, key = states(60)
    found, visible = statistics_of(60, 4), visibility(60)
    with pytest.warns(RuntimeWarning, match="sums over queries contradict its sums over keys"):
        fused.reduce_fused(found, query, key, Sight(0, 60), 0.25)
    assert_sums_of(maps_of(query, key, visible, 0.25), visible, found)


def test_memory_that_runs_out_and_ctrl_c_stay_what_they_are(monkeypatch, on_the_cpu):
    for error in (torch.OutOfMemoryError("CUDA out of memory."), KeyboardInterrupt()):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(kernels, "_run", lambda fail=fail: fail)
        with warnings.catch_warnings(), pytest.raises(type(error)):
            fused.reduce_fused(statistics_of(60, 4), *states(60), Sight(0, 60), 0.25)
        assert not fused._given_up
