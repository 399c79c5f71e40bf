"""The same numbers on a CUDA device as on the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from zoo import ZOO, zoo_float32

from sinkviz import choosing
from sinkviz.attention import banded_attention
from sinkviz.bands import Band
from sinkviz.caches import SinkCache
from sinkviz.capturing import capture, fused
from sinkviz.capturing.reducing import reduce_products
from sinkviz.capturing.sights import Sight
from sinkviz.capturing.statistics import LayerStatistics, Plan
from sinkviz.flexing import flex_banded
from sinkviz.lanes import Lane
from sinkviz.policies import H2O, Dense, Recompute, SinkWindow, Window
from sinkviz.scoring import score
from sinkviz.streaming import stream

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
IDS = torch.arange(90) % 50 + 5
POLICIES = [Dense(), Window(12), SinkWindow(4, 8), SinkWindow(4, 8, "text"), Recompute(12)]
FAMILIES = [name for name in ZOO if name not in ("gpt2", "opt")]


def wide(name: str, device: str = "cpu"):
    lm = zoo_float32(name)
    lm.model.to(device, torch.float64)
    return lm


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", ["classroom-rope", "classroom-alibi", "llama", "gemma3_text"])
def test_scores_agree_with_the_cpu(name, policy):
    expected = score(wide(name), IDS, policy).nll[1:]
    lm = wide(name, "cuda")
    for engine in ("parallel", "stepwise"):
        found = score(lm, IDS, policy, engine=engine).nll[1:]
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_streams_as_on_the_cpu(name):
    expected = score(wide(name), IDS, SinkWindow(4, 8), block=25).nll[1:]
    lm = wide(name, "cuda")
    for block in (1, 25):
        found = score(lm, IDS, SinkWindow(4, 8), block=block).nll[1:]
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gptj", "mpt"])
def test_padded_batches_generate_as_on_the_cpu(name):
    ids, mask = IDS[:24].view(2, 12).clone(), torch.ones(2, 12).long()
    mask[0, :5] = 0
    found = []
    for device in ("cpu", "cuda"):
        lm = wide(name, device)
        output = lm.model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            past_key_values=SinkCache(lm.model, 2, 6),
            max_new_tokens=30,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        found.append(output.cpu())
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["classroom-rope", "llama", "gpt_neox", "gemma3_text"])
def test_compiled_steps_in_cuda_graphs_agree(name):
    lm = zoo_float32(name)
    lm.model.to("cuda")
    ids = IDS.to("cuda")
    lanes = [Lane(lm, SinkWindow(4, 20), compiled=compiled) for compiled in (True, False)]
    for i in range(len(ids)):
        a, b = (lane.feed(ids[i : i + 1]) for lane in lanes)
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["classroom-rope", "llama"])
def test_capture_and_streams_agree_with_the_cpu(name):
    found = []
    for device in ("cpu", "cuda"):
        lm = wide(name, device)
        steps = [
            [s.token_id for s in stream(lm, policy, IDS[:5], max_new_tokens=40)]
            for policy in (SinkWindow(2, 6), H2O(4, 4))
        ]
        found.append((capture(lm, IDS).attention, steps))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-6)
    assert found[1][1] == found[0][1]


def test_half_precision_streams_stay_close():
    lm = zoo_float32("llama")
    expected = score(lm, IDS, SinkWindow(4, 8)).mean_nll()
    lm.model.to("cuda", torch.bfloat16)
    assert score(lm, IDS, SinkWindow(4, 8)).mean_nll() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", ["causal", "window", "masked", "null", "capped", "part"])
@pytest.mark.parametrize("shared", [1, 4])
def test_flex_attention_sums_as_blocks_do(shared, kind):
    """Both in single precision, from the same narrow queries and keys; a warning is an error."""
    n, heads, first, device = 1300, 8, 300 if kind == "part" else 0, torch.device("cuda")
    torch.manual_seed(0)
    query = torch.randn(heads, n - first, 64, device=device, dtype=torch.bfloat16)
    key = torch.randn(heads // shared, n, 64, device=device, dtype=torch.bfloat16)
    mask = torch.ones(1, n, n, device=device, dtype=torch.bool).tril().triu(-700)
    sight = Sight(
        first, n, mask if kind == "masked" else None, 200 if kind == "window" else None, device
    )
    softcap = 5.0 if kind == "capped" else None
    null = torch.randn(heads, device=device) if kind == "null" else None
    found = []
    for reduce in (fused.reduce_fused, reduce_products):
        one = LayerStatistics(
            Plan(n, ("received", "mass", "entropy")), heads, device, torch.float32
        )
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            reduce(one, query, key, sight, 0.125, softcap, null)
        found.append(one.result())
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, atol=1e-4, rtol=0)


def test_long_captures_take_that_path_and_little_memory(monkeypatch):
    lm = zoo_float32("llama")
    lm.model.to("cuda", torch.bfloat16)
    ids, asked = torch.arange(fused.LEAST_QUERIES) % 61, ("received", "mass", "entropy")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = capture(lm, ids, keep="statistics", statistics=asked)
    assert torch.cuda.max_memory_allocated() - before < len(ids) ** 2  # a byte for each pair
    monkeypatch.setattr(fused, "DEVICES", set())
    expected = capture(lm, ids, keep="statistics", statistics=asked)
    for name in asked:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["window", "sinks", "null", "capped", "padded"])
def test_flex_attention_over_a_band_equals_whole_attention(kind, dtype):
    """In the definition every query meets every key, in double precision."""
    device, generator = torch.device("cuda"), torch.Generator("cuda").manual_seed(0)
    n_query, n_recent, n_sink = 600, 200, 0 if kind == "window" else 4
    padding = torch.tensor([[0], [750]] if kind == "padded" else [[0], [0]], device=device)
    query = torch.arange(400, 400 + n_query, device=device) - padding
    recent = query[:, :1] + torch.arange(1 - n_recent, 0, device=device)
    recent = torch.cat((recent, query), 1)
    sink = torch.arange(n_sink, device=device).expand(2, -1)
    key = torch.cat((sink, recent.masked_fill(recent < n_sink, -1)), 1)
    angle = torch.rand(2, n_query, 32, device=device, generator=generator)
    band = Band(query, key, n_sink, n_recent, (angle.cos(), angle.sin()) if n_sink else None)
    q = torch.randn(2, 8, n_query, 64, device=device, generator=generator).to(dtype)
    k, v = torch.randn(2, 2, 2, key.shape[1], 64, device=device, generator=generator).to(dtype)
    options = {"scaling": 0.125, "softcap": 5.0 if kind == "capped" else None}
    if kind == "null":
        options["s_aux"] = torch.randn(8, device=device, generator=generator)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # compilers advise
        found = flex_banded(q, k, v, band, **options)
    module = torch.nn.Identity()
    module.layer_idx = 0
    wide = (x.double() for x in (q, k, v))
    whole, _ = banded_attention(module, *wide, None, bands={0: band}, maps=True, **options)
    real = (query >= 0)[..., None, None]
    close = 1e-5 if dtype == torch.float32 else 2e-2
    assert found.isfinite().all()
    torch.testing.assert_close(found.double() * real, whole * real, atol=close, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_oss"])
def test_long_scores_take_the_faster_way_and_say_which(name, monkeypatch):
    """A warning, that the two ways do not agree or that one does not run, is an error."""
    monkeypatch.setattr(choosing, "LEAST_TOKENS", 1000)
    monkeypatch.setattr(choosing, "_faster", {})
    lm, ids = zoo_float32(name), torch.arange(3000) * 7 % 61
    lm.model.to("cuda")
    measured = score(lm, ids, SinkWindow(4, 60), block=300)
    assert choosing._faster
    assert measured.provenance["attention"] in (choosing.FOLDED, choosing.FLEX)
    found = {}
    for way in (choosing.FOLDED, choosing.FLEX):
        choosing._faster.update(dict.fromkeys(choosing._faster, way))
        found[way] = score(lm, ids, SinkWindow(4, 60), block=300)
        assert found[way].provenance["attention"] == way
    expected = found[choosing.FOLDED].nll[1:]
    for run in (measured, found[choosing.FLEX]):
        assert run.nll[1:] == pytest.approx(expected, abs=1e-4)
