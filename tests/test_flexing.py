"""Flex attention over a band equals the definition; the faster way is taken, and recorded.

Without a GPU torch computes flex attention by its own definition, uncompiled. It looks at all
pairs, so here it is told to see nothing in tiles that the kernels would leave out.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention
from zoo import zoo_float32

from sinkviz import choosing, flexing, tiles
from sinkviz.attention import banded_attention
from sinkviz.bands import Band
from sinkviz.choosing import FLEX, FOLDED
from sinkviz.interventions import forbid
from sinkviz.policies import Dense, SinkWindow
from sinkviz.scoring import score
from sinkviz.streaming import stream

IDS = torch.arange(230) * 7 % 61
POLICY = SinkWindow(4, 20)


def in_tiles(query, key, value, *, block_mask, **options):
    """Let torch's definition see what its kernels see: tiles without a mask, and masked ones."""
    mask, (tall, wide) = block_mask.mask_mod, block_mask.BLOCK_SIZE
    kinds = (
        (block_mask.kv_num_blocks, block_mask.kv_indices),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
    )
    some, every = (
        flex_attention._ordered_to_dense(*kind, kind[1].shape[-1]).bool()[:, 0] for kind in kinds
    )
    assert not (some & every).any()

    def seen(row, head, at, of):
        place = row % len(some), at // tall, of // wide
        return every[place] | (some[place] & mask(row, head, at, of))

    block_mask.mask_mod = seen
    return flex_attention.flex_attention(query, key, value, block_mask=block_mask, **options)


@pytest.fixture
def uncompiled(monkeypatch):
    """Run no kernels, but what defines them, in small tiles, and so for short texts."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(tiles, "SIDE", 16)
    monkeypatch.setattr(flexing, "_run", lambda: flexing._attend)
    monkeypatch.setattr(flexing, "flex_attention", in_tiles)


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Let the CPU and short texts be served, too; nothing is known of this session."""
    monkeypatch.setattr(choosing, "DEVICES", {"cpu"})
    monkeypatch.setattr(choosing, "LEAST_QUERIES", 2)
    monkeypatch.setattr(choosing, "LEAST_TOKENS", 100)
    monkeypatch.setattr(choosing, "_faster", {})
    monkeypatch.setattr(choosing, "_given_up", False)


@pytest.fixture
def clock(monkeypatch) -> dict:
    """Which way is said to be faster, and how often that was asked."""
    found = {"faster": FLEX, "asked": 0}

    def seconds(attend, arguments):
        found["asked"] += 1
        return float((attend is choosing.folded_attention) == (found["faster"] == FLEX))

    monkeypatch.setattr(choosing, "_seconds", seconds)
    return found


def band_of(n_query, n_sink, n_recent, seen=0, padding=(0,), pairs=3, seed=0) -> Band:
    """Return a band as a cache makes it, each query with an angle of its own."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.arange(seen, seen + n_query)[None] - torch.tensor(padding)[:, None]
    recent = torch.cat((query[:, :1] + torch.arange(-min(n_recent, seen), 0), query), 1)
    sink = torch.arange(n_sink).expand(len(padding), -1)
    sink, recent = (
        sink.masked_fill(sink > query[:, -1:], -1),
        recent.masked_fill(recent < n_sink, -1),
    )
    angle = torch.rand(len(padding), n_query, pairs, generator=generator, dtype=torch.float64)
    turn = (angle.cos(), angle.sin()) if n_sink else None
    return Band(query, torch.cat((sink, recent), 1), n_sink, n_recent, turn)


def states(band: Band, heads=4, kv_heads=2, size=16, rows=None, dtype=torch.float64) -> list:
    generator = torch.Generator().manual_seed(1)
    rows = rows or len(band.query_position)
    shapes = [(heads, band.query_position.shape[1])] + 2 * [(kv_heads, band.key_position.shape[1])]
    return [torch.randn(rows, *shape, size, generator=generator, dtype=dtype) for shape in shapes]


def whole(band, query, key, value, **options) -> torch.Tensor:
    module = torch.nn.Identity()
    module.layer_idx = 0
    options = {"scaling": 0.3, "bands": {0: band}, "maps": True} | options
    return banded_attention(module, query, key, value, None, **options)[0]


# Attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"s_aux": True}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("padding", [(0,), (0, 3, 41)], ids=str)
@pytest.mark.parametrize("seen", [0, 3, 50])
@pytest.mark.parametrize(("n_sink", "n_recent"), [(0, 5), (2, 5), (4, 40), (0, 1), (3, 1)])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_flex_attention_equals_whole_attention(
    kv_heads, n_sink, n_recent, seen, padding, options, uncompiled
):
    band = band_of(75, n_sink, n_recent, seen, padding)
    three = states(band, kv_heads=kv_heads)
    if options.get("s_aux"):
        options = {"s_aux": torch.tensor([-1.0, 0.0, 3.0, 30.0], dtype=torch.float64)}
    found = flexing.flex_banded(*three, band, 0.3, **options)
    assert found.isfinite().all() and found.is_contiguous()
    real = (band.query_position >= 0)[..., None, None]
    torch.testing.assert_close(
        found * real, whole(band, *three, **options) * real, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("padding", [(0,), (0, 3, 41)], ids=str)
@pytest.mark.parametrize(("n_sink", "n_recent"), [(0, 5), (4, 40), (0, 1), (3, 70)])
@pytest.mark.parametrize("seen", [0, 50])
def test_tiles_are_left_out_where_nothing_is_seen(
    seen, n_sink, n_recent, padding, monkeypatch, uncompiled
):
    """As many as can be, and masked only where they must be: compared pair by pair."""
    band = band_of(75, n_sink, n_recent, seen, padding)
    counts, columns, full_counts, full_columns = band.tiles
    n_tiles = columns.shape[-1]
    some = flex_attention._ordered_to_dense(counts, columns, n_tiles).bool()
    every = flex_attention._ordered_to_dense(full_counts, full_columns, n_tiles).bool()
    visible = band.visible & (band.query_position >= 0)[..., None] & band.in_band[:, None]
    place = torch.arange(band.key_position.shape[1]) - n_sink
    by_place = place[-75:, None] - place  # which is known without any positions
    inside = ((by_place >= 0) & (by_place < n_recent))[None] & band.in_band[:, None]
    assert torch.equal(inside & (band.query_position >= 0)[..., None], visible)
    for row in range(len(inside)):
        for i, rows in enumerate(inside[row].split(16)):
            for j, tile in enumerate(rows.split(16, 1)):
                assert bool(every[row, 0, i, j]) == bool(tile.all())
                if not every[row, 0, i, j] and tile.any():
                    assert some[row, 0, i, j]
                if some[row, 0, i, j] and len(padding) == 1 and seen:
                    assert tile.any() and not tile.all()


def test_streams_may_share_a_band(uncompiled):
    band = band_of(40, 2, 9, 30)
    three = states(band, rows=3)
    found = flexing.flex_banded(*three, band, 0.3)
    torch.testing.assert_close(found, whole(band, *three), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_narrow_numbers_come_out_as_such(dtype, close, uncompiled):
    """In bfloat16, which has eight bits, outputs of about one are off by their last two."""
    band = band_of(75, 4, 40, 50)
    three = states(band, dtype=dtype)
    found = flexing.flex_banded(*three, band, 0.3)
    assert found.dtype == dtype
    expected = whole(band, *(x.double() for x in three))
    torch.testing.assert_close(found.double(), expected, atol=close, rtol=0)


def test_numbers_that_are_none_stay_so(uncompiled):
    """Whoever scores a broken model must see it."""
    band = band_of(40, 2, 9, 30)
    query, key, value = states(band)
    query[0, 1, 7] = torch.nan
    found = flexing.flex_banded(query, key, value, band, 0.3)
    assert found[0, 7, 1].isnan().all() and found.isnan().sum() == 16


def test_one_graph_serves_all_passes_of_a_kind_and_nothing_is_square(monkeypatch):
    graphs, compiled = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **how: compiled(f, backend=backend, **how))
    flexing._run.cache_clear()
    try:
        for seen in (300, 570, 840):
            band = band_of(270, 4, 200, seen, seed=seen)
            three = states(band, dtype=torch.float32)
            with torch.no_grad():
                found = flexing.flex_banded(*three, band, 0.3, softcap=2.0)
            expected = whole(band, *three, softcap=2.0)
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    finally:
        flexing._run.cache_clear()
        torch.compiler.reset()
    (graph,) = graphs
    assert [str(node.target) for node in graph.graph.nodes].count("flex_attention") == 1
    for node in graph.graph.nodes:
        value = node.meta.get("example_value")
        for one in value if isinstance(value, tuple | list) else (value,):
            assert not isinstance(one, torch.Tensor) or one.numel() < 270 * 270


# The choice ---------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch) -> list:
    """The passes that flex attention serves."""
    found, attend = [], choosing.flex_banded

    def flex(*arguments):
        found.append(arguments)
        return attend(*arguments)

    monkeypatch.setattr(choosing, "flex_banded", flex)
    return found


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_oss", "classroom-rope"])
def test_the_faster_way_is_taken_and_said(name, uncompiled, on_the_cpu, served, clock):
    lm, runs = zoo_float32(name), {}
    kinds = 2 if name in ("gemma3_text", "gpt_oss") else 1  # layers that slide, and others
    for faster in (FOLDED, FLEX):
        choosing._faster.clear()
        clock.update(faster=faster, asked=0)
        runs[faster] = score(lm, IDS, POLICY, block=30)
        assert clock["asked"] == 2 * kinds
        assert list(choosing._faster.values()) == [faster] * kinds
        assert runs[faster].provenance["attention"] == faster
    np.testing.assert_allclose(runs[FLEX].nll, runs[FOLDED].nll, atol=1e-4)
    # The next text of this kind finds it known.
    n_served = len(served)
    again = score(lm, IDS.flip(0)[:120], POLICY, block=30)
    assert clock["asked"] == 2 * kinds and len(served) > n_served
    assert again.provenance["attention"] == FLEX


def test_short_texts_and_short_blocks_are_folded(on_the_cpu, served, clock):
    lm = zoo_float32("llama")
    for ids, block in ((IDS[:100], 30), (IDS, 1)):
        assert score(lm, ids, POLICY, block=block).provenance["attention"] != FLEX
    list(stream(lm, POLICY, IDS[:150], max_new_tokens=30))  # no text is ahead
    assert not served and not clock["asked"]


def test_a_processor_always_folds(served):
    run = score(zoo_float32("llama"), IDS.repeat(3), POLICY)
    assert run.provenance["attention"] == FOLDED and not served


def test_what_has_no_kernel_or_a_shape_of_its_own_is_not_served(on_the_cpu, monkeypatch):
    def served(band=None, **options):
        band = band or band_of(75, 4, 40, 50)
        return choosing._served(*states(band, **{"dtype": torch.float32} | options)[:2], band)

    assert served() and served(dtype=torch.bfloat16) and served(dtype=torch.float16)
    assert not served(dtype=torch.float64) and not served(size=8)
    assert not served(band_of(75, 4, 40, 38))  # a window that begins before the text
    monkeypatch.setattr(choosing, "LEAST_QUERIES", 76)
    assert not served()
    monkeypatch.setattr(choosing, "LEAST_QUERIES", 75)
    assert served()
    monkeypatch.setattr(choosing, "_given_up", True)
    assert not served()
    monkeypatch.undo()
    assert not served(band_of(300, 4, 40, 50))  # the CPU


def test_other_windows_heads_and_caps_are_measured_anew():
    band = band_of(40, 2, 9, 30)
    three = states(band)
    one = choosing._kind(*three, band, 0.3, None, None)
    assert one == choosing._kind(*states(band), band_of(40, 2, 9, 70), 0.3, None, None)
    others = [
        choosing._kind(*three, band_of(40, 3, 8, 30), 0.3, None, None),
        choosing._kind(*three, band, 0.5, None, None),
        choosing._kind(*three, band, 0.3, torch.zeros(4), None),
        choosing._kind(*three, band, 0.3, None, 5.0),
        choosing._kind(*states(band, kv_heads=1), band, 0.3, None, None),
        choosing._kind(*states(band, dtype=torch.float32), band, 0.3, None, None),
    ]
    assert len({one, *others}) == 7


def test_time_is_taken_of_runs_that_have_ended(monkeypatch):
    log, now = [], iter((10.0, 12.0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("end"))
    monkeypatch.setattr(choosing.time, "perf_counter", lambda: log.append("look") or next(now))
    seconds = choosing._seconds(lambda x: log.append("run") or x, (torch.zeros(1),))
    assert log == ["run", "end", "look", *["run"] * choosing.RUNS, "end", "look"]
    assert seconds == 2.0 / choosing.RUNS


# The record ---------------------------------------------------------------------------------------


def test_a_score_that_goes_on_elsewhere_says_what_most_of_it_did(
    uncompiled, on_the_cpu, clock, monkeypatch, tmp_path
):
    lm, path = zoo_float32("llama"), tmp_path / "score.safetensors"
    expected = score(lm, IDS, POLICY, block=30).nll
    for most, after in ((FLEX, 12), (FOLDED, 5)):
        calls = 0

        def break_off(*args, after=after):
            nonlocal calls
            calls += 1
            if calls == after:
                raise KeyboardInterrupt

        handle = lm.model.model.layers[1].register_forward_hook(break_off)
        with pytest.raises(KeyboardInterrupt):
            score(lm, IDS, POLICY, block=15, state=path)
        handle.remove()
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(choosing, "DEVICES", set())
            run = score(lm, IDS, POLICY, block=15, state=path)
        assert run.provenance["attention"] == most
        np.testing.assert_allclose(run.nll, expected, atol=1e-4)
        path.unlink()


def test_the_record_says_where_no_band_was_attended_over():
    lm = zoo_float32("llama")
    said = {
        "the cache holds it all": score(lm, IDS[:20], POLICY),
        "full attention": score(lm, IDS, Dense()),
        "stepwise": score(lm, IDS[:30], POLICY, engine="stepwise"),
        "maps": score(lm, IDS[:60], POLICY, mass=True),
    }
    words = [run.provenance["attention"] for run in said.values()]
    assert words == [lm.attention, lm.attention, "the model's own", "whole maps"]


# Faults -------------------------------------------------------------------------------------------


def folded_score(monkeypatch, lm) -> np.ndarray:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(choosing, "DEVICES", set())
        return score(lm, IDS, POLICY, block=30).nll


def test_where_it_does_not_compile_all_is_folded_after_one_warning(on_the_cpu, clock, monkeypatch):
    def fail(*args):
        raise NotImplementedError("NYI: no kernel for this\nand a long story")

    monkeypatch.setattr(flexing, "_run", lambda: fail)
    lm = zoo_float32("llama")
    with pytest.warns(RuntimeWarning, match="does not work here .*no kernel for this\\); ") as said:
        run = score(lm, IDS, POLICY, block=30)
    assert len(said) == 1 and "long story" not in str(said[0].message)
    assert run.provenance["attention"] == FOLDED
    assert np.array_equal(run.nll, folded_score(monkeypatch, lm), equal_nan=True)
    score(lm, IDS, POLICY, block=30)  # and no second warning, which would be an error


@pytest.mark.parametrize("wrong", [lambda x: x * 1.05, lambda x: x * torch.nan, torch.zeros_like])
def test_wrong_output_is_not_taken(wrong, uncompiled, on_the_cpu, clock, monkeypatch):
    monkeypatch.setattr(flexing, "_run", lambda: lambda *args: wrong(flexing._attend(*args)))
    lm = zoo_float32("llama")
    with pytest.warns(RuntimeWarning, match="it is off by .* of what a folded band gives"):
        run = score(lm, IDS, POLICY, block=30)
    assert not clock["asked"] and run.provenance["attention"] == FOLDED
    assert np.array_equal(run.nll, folded_score(monkeypatch, lm), equal_nan=True)


def test_a_broken_model_is_not_taken_for_a_broken_kernel(uncompiled, on_the_cpu, clock):
    attend, band = choosing.FasterAttention(), band_of(75, 4, 40, 50)
    attend.left = 200
    three = states(band, dtype=torch.float32)
    three[2][0, 0, 60] = torch.nan
    with warnings.catch_warnings(action="error"):
        found = attend(*three, band, 0.3)
    assert found.isnan().any() and not choosing._faster and not choosing._given_up
    assert attend.word == FOLDED


def test_memory_that_runs_out_and_ctrl_c_stay_what_they_are(on_the_cpu, clock, monkeypatch):
    attend, band = choosing.FasterAttention(), band_of(75, 4, 40, 50)
    attend.left = 200
    for error in (torch.OutOfMemoryError("CUDA out of memory."), KeyboardInterrupt()):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(flexing, "_run", lambda fail=fail: fail)
        with warnings.catch_warnings(action="error"), pytest.raises(type(error)):
            attend(*states(band, dtype=torch.float32), band, 0.3)
        assert not choosing._given_up and not attend.attended


def test_a_forbidden_token_is_not_there(uncompiled, on_the_cpu, clock, served, monkeypatch):
    lm = zoo_float32("llama")
    with forbid(lm, 1):
        run = score(lm, IDS, POLICY, block=30)
        assert served and run.provenance["attention"] == FLEX
        np.testing.assert_allclose(run.nll, folded_score(monkeypatch, lm), atol=1e-4)
