"""Capture equals transformers' own attentions, in any block size, and leaves no trace itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import tiny, tiny_classroom, tiny_llama
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)
from zoo import ZOO, zoo_float32

from sinkviz import capturing, observing
from sinkviz.capturing import capture, capture_scores
from sinkviz.families import attention_modules
from sinkviz.metrics import ROLES, entropy, mass, received_attention, sink_rate
from sinkviz.models import LM, untouched
from sinkviz.records import Trace

IDS = torch.arange(50) % 61
MODELS = {
    "rope": lambda: tiny_classroom(),
    "alibi": lambda: tiny_classroom(position="alibi"),
    "sinusoidal": lambda: tiny_classroom(position="sinusoidal"),
    "off-by-one": lambda: tiny_classroom(softmax="off_by_one"),
    "llama": tiny_llama,
}


def eager_maps(lm) -> torch.Tensor:
    """Whole maps as the model's own eager attention returns them, (layer, head, query, key)."""
    maps = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda *args: maps.append(args[-1][1][0]))
        for layer in lm.model.model.layers
    ]
    with untouched(lm.model, "eager"):
        lm.model(IDS[None])
    for hook in hooks:
        hook.remove()
    return torch.stack(maps)


# transformers' eager Llama takes its softmax in float32 even in a float64 model, which is why it
# is compared less tightly, through its maps alone.
@pytest.mark.parametrize("block", [7, 256])
@pytest.mark.parametrize("name", MODELS)
def test_statistics_equal_those_of_whole_maps(name, block):
    lm = MODELS[name]()
    whole = eager_maps(lm)
    trace = capture(lm, IDS, n_sink=2, n_recent=8, block=block)
    assert trace.attention == pytest.approx(whole.numpy(), abs=1e-6 if name != "llama" else 5e-6)
    whole = torch.from_numpy(trace.attention)
    statistics = capture(lm, IDS, keep="statistics", n_sink=2, n_recent=8, block=block)
    assert statistics.attention is None
    assert statistics.received == pytest.approx(received_attention(whole).numpy(), abs=1e-6)
    assert statistics.entropy == pytest.approx(entropy(whole).numpy(), abs=2e-6)
    assert statistics.sink_rate == sink_rate(received_attention(whole))
    shares = mass(whole, 2, 8)
    for role in ROLES:
        assert statistics.mass_of(role) == pytest.approx(shares[role].numpy(), abs=1e-6)
    assert statistics.mass.sum(-1) == pytest.approx(1.0, abs=1e-5)


def test_named_heads_are_kept_and_found(tmp_path):
    lm = MODELS["llama"]()
    whole = capture(lm, IDS)
    some = capture(lm, IDS, keep=[(2, 1), (0, 3)])
    assert np.array_equal(some.map(2, 1), whole.map(2, 1))
    assert np.array_equal(some.map(0, 3), whole.map(0, 3))
    with pytest.raises(ValueError, match="kept the maps of"):
        some.map(1, 1)
    loaded = Trace.load(some.save(tmp_path / "trace.safetensors"))
    assert np.array_equal(loaded.map(0, 3), whole.map(0, 3))
    assert loaded.tokens == some.tokens
    assert loaded.provenance == some.provenance


def test_the_model_stays_as_it_was_also_after_ctrl_c():
    lm = MODELS["llama"]()
    lm.model.train()
    implementation = lm.model.config._attn_implementation

    def interrupt(*args):
        raise KeyboardInterrupt

    handle = lm.model.model.layers[1].mlp.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        capture(lm, IDS)
    handle.remove()
    assert lm.model.training
    assert lm.model.config._attn_implementation == implementation
    assert not any(m._forward_hooks for m in lm.model.modules())


def test_long_texts_keep_statistics_and_say_what_maps_would_cost():
    lm = tiny_classroom(torch.float32, max_position_embeddings=64)
    long = torch.arange(1500) % 61
    assert capture(lm, long).attention is None
    with pytest.raises(ValueError, match="would need 14 GB; use keep='statistics'"):
        capture(lm, torch.zeros(20_000, dtype=torch.long), keep="maps")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "everything"}, "is none of 'maps', 'statistics'"),
        ({"keep": [(0, 9)]}, r"no head \(0, 9\).*heads 0\.\.3"),
        ({"statistics": ["rank"]}, "no statistics .*rank.*; known are received, mass"),
        ({"queries": [50]}, "no query 50: the text has tokens 0..49"),
        ({"pooled": 300}, "pooled must be in 1..256"),
    ],
)
def test_bad_input_says_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        capture(MODELS["llama"](), IDS, **options)


# What the model computes --------------------------------------------------------------------------


def last_logits(lm, run) -> torch.Tensor:
    """Return the last logits of the model's last pass in ``run()``."""
    found = []
    hook = lm.model.register_forward_hook(lambda *args: found.append(args[-1].logits[0, -1]))
    run()
    hook.remove()
    return found[-1]


def plain(lm) -> None:
    with untouched(lm.model):
        lm.model(IDS[None], use_cache=False, logits_to_keep=1)


@pytest.mark.parametrize("name", ZOO)
def test_the_model_computes_what_it_computes_alone(name):
    """Bit for bit, but for families that run in eager mode to show their weights."""
    lm = zoo_float32(name)
    before, after = (last_logits(lm, lambda: plain(lm)) for _ in range(2))
    found = last_logits(lm, lambda: capture(lm, IDS, keep="statistics"))
    assert torch.equal(before, after)
    if observing.engine_of(lm) == "interface":
        assert torch.equal(found, before)
    else:
        torch.testing.assert_close(found, before, atol=1e-4, rtol=0)
    in_parts = last_logits(lm, lambda: capture(lm, IDS, keep="statistics", block=13))
    torch.testing.assert_close(in_parts, before, atol=1e-3, rtol=0)


def test_falcon_is_causal_and_has_its_bias_once():
    """Transformers' own attentions of a rotary Falcon are not causal, and ALiBi counts twice."""
    common = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=61)
    common |= dict(bos_token_id=None, eos_token_id=None)
    for alibi in (False, True):
        torch.manual_seed(0)
        lm = LM(FalconForCausalLM(FalconConfig(alibi=alibi, multi_query=False, **common)).eval())
        torch.nn.init.zeros_(lm.model.transformer.h[0].self_attention.query_key_value.weight)
        found = torch.from_numpy(capture(lm, IDS[:9]).attention[0, 0])
        assert (found.triu(1) == 0).all()
        # Queries and keys of zero: what is left is the bias alone, 2 ** -4 per token and / 4.
        slope = 2.0**-4 / 4 if alibi else 0.0
        expected = (slope * torch.arange(9.0)).expand(9, 9)
        expected = expected.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(-1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_model_whose_layers_all_slide_is_captured_as_it_slides():
    lm = tiny(MistralConfig, MistralForCausalLM, num_key_value_heads=2, sliding_window=16)
    trace = capture(lm, IDS, block=20)
    assert trace.attention == pytest.approx(capture(lm, IDS).attention, abs=1e-9)
    distance = np.arange(50)[:, None] - np.arange(50)
    assert ((trace.attention > 0) == ((distance >= 0) & (distance < 16))).all()
    viewers = ((distance >= 0) & (distance < 16)).sum(0)
    assert trace.received == pytest.approx(trace.attention.sum(-2) / viewers, abs=1e-9)


def test_half_precision_is_reduced_in_single():
    for name in ("llama", "mpt"):
        lm = zoo_float32(name)
        lm.model.bfloat16()
        trace = capture(lm, IDS, keep="statistics")
        assert trace.received.dtype == np.float32
        assert trace.mass.sum(-1) == pytest.approx(1.0, abs=1e-5)
        assert (trace.mass_of("null") == 0).all() or np.abs(trace.mass_of("null")).max() < 1e-6


def test_long_texts_are_fed_in_parts_where_attention_is_eager(monkeypatch):
    monkeypatch.setattr(observing, "EAGER_BYTES", 4 * 4 * 50 * 17)
    for name, size in (("llama", 50), ("gemma2", 17), ("mpt", 17), ("classroom-alibi", 22)):
        assert observing.pass_size(zoo_float32(name), 50) == size


# Faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon-alibi", "mpt"])
def test_nothing_is_left_behind_wherever_it_breaks_off(name, monkeypatch):
    lm = zoo_float32(name)
    expected = last_logits(lm, lambda: plain(lm))
    implementation = lm.model.config._attn_implementation
    reduce = {n: getattr(observing, n) for n in ("reduce_products", "reduce_weights")}
    for broken in range(len(attention_modules(lm.model, lm.family))):
        calls = []

        def interrupt(*args, broken=broken, calls=calls):
            calls.append(args)
            if len(calls) > broken:
                raise KeyboardInterrupt
            which = "reduce_products" if len(args) > 4 else "reduce_weights"
            return reduce[which](*args)

        for one in reduce:
            monkeypatch.setattr(observing, one, interrupt)
        with pytest.raises(KeyboardInterrupt):
            capture(lm, IDS)
        assert lm.model.config._attn_implementation == implementation
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
        assert observing._WATCHER.get() is None
        assert torch.equal(last_logits(lm, lambda: plain(lm)), expected)


def test_a_hook_that_is_already_there_may_capture_too():
    lm, inner = MODELS["llama"](), []
    outside = capture(lm, IDS)

    def look(*args):
        if not inner:
            inner.append(None)
            inner.append(capture(lm, IDS[:20]))

    handle = lm.model.model.layers[1].mlp.register_forward_hook(look)
    again = capture(lm, IDS)
    handle.remove()
    assert np.array_equal(again.received, outside.received)
    assert np.array_equal(inner[1].received, capture(lm, IDS[:20]).received)


def test_several_texts_have_a_trace_each(tmp_path):
    lm = MODELS["llama"]()
    traces = capture(lm, [IDS, IDS[:7].tolist()], keep="statistics", queries=[-1], top_k=2)
    assert [len(trace.tokens) for trace in traces] == [50, 7]
    for ids, trace in zip((IDS, IDS[:7]), traces, strict=True):
        alone = capture(lm, ids, keep="statistics", queries=[-1], top_k=2)
        loaded = Trace.load(trace.save(tmp_path / "trace.safetensors"))
        for name in ("received", "pooled_max", "distance", "top_keys", "residual_norm"):
            assert np.array_equal(getattr(alone, name), getattr(loaded, name), equal_nan=True)
        assert loaded.queries == (len(ids) - 1,) and loaded.distance_edges[:3] == (0, 1, 2)


def test_what_is_not_asked_for_is_not_there():
    trace = capture(MODELS["llama"](), IDS, keep="statistics", statistics=["received", "mass"])
    assert np.isnan(trace.entropy).all()
    assert trace.pooled_max is trace.distance is trace.key_norm is trace.top_keys is None
    whole = capture(MODELS["llama"](), IDS, keep="statistics")
    assert trace.mass == pytest.approx(whole.mass, abs=1e-12)
    assert trace.received == pytest.approx(whole.received, abs=1e-12)


def test_too_much_is_refused_before_it_is_begun(monkeypatch):
    monkeypatch.setattr(capturing, "free_memory", lambda: 100_000)
    with pytest.raises(ValueError, match="would need 2.5 MB, and 100.0 kB are free"):
        capture(MODELS["llama"](), IDS.repeat(10), keep="statistics")
    with pytest.raises(ValueError, match="can tell 256 positions apart, the text has 300 tokens"):
        capture(zoo_float32("gpt2"), IDS.repeat(6))
    with pytest.raises(ValueError, match="none of the texts has 60 tokens"):
        capture_scores(MODELS["llama"](), [IDS], length=60)


def test_a_family_that_the_table_does_not_know_is_captured_in_eager_mode():
    lm = tiny(OlmoConfig, OlmoForCausalLM)
    trace = capture(lm, IDS, block=20)
    assert trace.provenance["engine"] == "eager"
    expected = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda *args: expected.append(args[-1][1][0]))
        for layer in lm.model.model.layers
    ]
    with untouched(lm.model, "eager"):
        lm.model(IDS[None])
    for hook in hooks:
        hook.remove()
    assert trace.attention == pytest.approx(torch.stack(expected).numpy(), abs=5e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon-alibi"])
def test_a_model_whose_weights_lie_elsewhere_is_captured_alike(name):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    lm = zoo_float32(name)
    expected = capture(lm, IDS, keep="statistics")
    accelerate.cpu_offload(lm.model, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in lm.model.parameters()} == {"meta"}
    found = capture(lm, IDS, keep="statistics")
    for one in ("received", "mass", "entropy", "distance", "key_norm", "residual_norm"):
        assert np.array_equal(getattr(found, one), getattr(expected, one))
