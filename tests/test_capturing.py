"""Capture equals transformers' own attentions, in any block size, and leaves no trace itself."""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from reference import tiny, tiny_classroom, tiny_llama
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)
from zoo import ZOO, zoo_float32

from sinkviz.capturing import asking, capture, capture_scores, gathering, observing
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
    reduce = {n: getattr(gathering, n) for n in ("reduce_products", "reduce_weights")}
    for broken in range(len(attention_modules(lm.model, lm.family))):
        calls = []

        def interrupt(*args, broken=broken, calls=calls):
            calls.append(args)
            if len(calls) > broken:
                raise KeyboardInterrupt
            which = "reduce_products" if len(args) > 4 else "reduce_weights"
            return reduce[which](*args)

        for one in reduce:
            monkeypatch.setattr(gathering, one, interrupt)
        with pytest.raises(KeyboardInterrupt):
            capture(lm, IDS)
        assert lm.model.config._attn_implementation == implementation
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
        assert observing._WATCHER.get() is None
        assert torch.equal(last_logits(lm, lambda: plain(lm)), expected)


@pytest.mark.parametrize("name", ["llama", "mpt"])
def test_threads_capture_one_model_as_one_alone_does(name):
    lm = zoo_float32(name)
    expected = capture(lm, IDS, keep="maps")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda turn: capture(lm, IDS, keep="maps"), range(12)):
                assert np.array_equal(found.attention, expected.attention)
                assert found.provenance == expected.provenance
    finally:
        sys.setswitchinterval(interval)
    assert lm.model.config._attn_implementation == expected.provenance["attention"]


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
    monkeypatch.setattr(asking, "free_memory", lambda: 100_000)
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


# Batches ------------------------------------------------------------------------------------------


ARRAYS = ("received", "mass", "entropy", "distance", "pooled_max", "key_norm", "residual_norm")


def assert_same(found: Trace, expected: Trace, tolerance: float = 1e-5, names=ARRAYS) -> None:
    for name in names:
        ours, theirs = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("block", [None, 13])
@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gpt2", "mpt", "falcon-alibi", "gptj", "classroom-alibi"]
)
def test_texts_of_a_batch_have_the_traces_that_they_have_alone(name, block):
    lm = ZOO[name]()
    texts = [IDS[:23], IDS, IDS[5:9]]
    options = {"keep": [(0, 1)], "queries": [-1], "top_k": 2, "scores": True, "block": block}
    together = capture(lm, texts, batch=2, **options)
    mask = torch.zeros(3, 50, dtype=torch.long)
    padded = torch.full((3, 50), 7)
    for row, (ids, left) in enumerate(zip(texts, (False, False, True), strict=True)):
        place = slice(50 - len(ids), 50) if left else slice(len(ids))
        padded[row, place], mask[row, place] = ids, 1
    masked = capture(lm, padded, attention_mask=mask, **options)
    for ids, *found in zip(texts, together, masked, strict=True):
        alone = capture(lm, ids, **options)
        for one in found:
            assert np.array_equal(one.token_ids, ids)
            assert_same(one, alone, names=(*ARRAYS, "attention", "top_attention"))
            if name == "mpt":  # whose bias counts from the last key: its scores are as good as that
                ours, theirs = (
                    x.scores - x.scores.diagonal(0, 2, 3)[..., None] for x in (one, alone)
                )
                np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
            else:
                assert_same(one, alone, names=("scores",))


def test_rows_of_a_tensor_are_texts():
    lm = MODELS["llama"]()
    first, second = capture(lm, IDS.view(2, 25))
    assert_same(second, capture(lm, IDS[25:]), names=("received", "attention"))
    assert first.n_layers == 3
    assert isinstance(capture(lm, IDS[None]), Trace)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (IDS[:6], torch.ones(6).long(), r"must mark the padding of a tensor of ids"),
        (IDS[:6].view(2, 3), torch.ones(2, 4).long(), r"ids \(2, 3\) and a mask \(2, 4\)"),
        (IDS[:6].view(2, 3), torch.tensor([[1, 0, 1], [1, 1, 1]]), "text 0 is hidden in between"),
        (IDS[:6].view(2, 3), torch.tensor([[1, 1, 1], [0, 0, 0]]), "text 1 is all padding"),
    ],
)
def test_masks_that_hide_more_than_padding_are_refused(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        asking.texts_of(MODELS["llama"](), ids, mask)


# Big models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mpt"])
def test_a_model_spread_over_cpu_and_disk_is_captured_alike(name, tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    lm = zoo_float32(name)
    expected = capture(lm, IDS, keep="statistics")
    places = {child: "cpu" for child, _ in lm.model.named_children()}
    base = lm.model.base_model_prefix
    del places[base]
    for child, module in lm.model.get_submodule(base).named_children():
        layers = hasattr(module, "__len__")
        kinds = (
            {f"{base}.{child}.{i}": ("disk", "cpu")[i % 2] for i in range(len(module))}
            if (layers)
            else {f"{base}.{child}": "cpu"}
        )
        places |= kinds
    lm.model.tie_weights()
    accelerate.dispatch_model(
        lm.model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    found = capture(lm, IDS, keep="statistics")
    assert_same(found, expected, 0)
    again = capture(lm, [IDS, IDS[:9]], keep="statistics", batch=2)
    assert_same(again[0], expected)


class Int8Linear(torch.nn.Module):
    """A layer whose weights are bytes, scaled by row: what quantised checkpoints come down to."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(-1, keepdim=True) / 127
        weight = (linear.weight / scale).round().to(torch.int8)
        self.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
        self.register_buffer("scale", scale.detach())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x) * self.scale.to(x), self.bias)


@pytest.mark.parametrize("dynamic", [False, True])
def test_quantised_weights_are_captured(dynamic):
    """Against a model whose layers are the same, and which is asked for its maps in eager mode."""
    lm = MODELS["llama"]()
    lm.model.float()
    del lm.model.model.rotary_emb.forward  # of double precision
    if dynamic:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch is about to move this to another package
            torch.ao.quantization.quantize_dynamic(
                lm.model, {torch.nn.Linear}, torch.qint8, inplace=True
            )
    else:
        for path, module in list(lm.model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                lm.model.set_submodule(path, Int8Linear(module))
    with warnings.catch_warnings():
        if dynamic:
            warnings.simplefilter("ignore")
        trace = capture(lm, IDS)
        maps = eager_maps(lm)
        logits = [last_logits(lm, run) for run in (lambda: plain(lm), lambda: capture(lm, IDS))]
    assert torch.equal(*logits)
    np.testing.assert_allclose(trace.attention, maps, atol=1e-5)
    assert trace.received.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "mpt"])
def test_narrow_models_are_captured_as_they_compute(name, dtype):
    """Statistics and maps come from the same narrow queries and keys, in single precision."""
    lm = zoo_float32(name)
    lm.model.to(dtype)
    found = capture(lm, IDS, keep="statistics")
    maps = torch.from_numpy(capture(lm, IDS, keep="maps").attention).double()
    assert np.isfinite(found.received).all()
    viewers = (maps > 0).sum(-2).clamp(min=1) if name == "gpt_oss" else torch.arange(50, 0, -1)
    expected = maps.sum(-2) / viewers
    np.testing.assert_allclose(found.received, expected, atol=2e-6)
    np.testing.assert_allclose(found.entropy, entropy(maps), atol=2e-5)
    before, after = last_logits(lm, lambda: plain(lm)), last_logits(lm, lambda: capture(lm, IDS))
    if name == "llama":
        assert torch.equal(before, after)


# Memory, compilers, checkpoints -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mpt"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_it_takes_and_frees_it(name, error, monkeypatch):
    lm, held = zoo_float32(name), []

    def run_out(*args):
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise error.with_traceback(None)

    for one in ("reduce_products", "reduce_weights"):
        monkeypatch.setattr(gathering, one, run_out)
    implementation = lm.model.config._attn_implementation
    gc.disable()
    try:
        with pytest.raises(MemoryError, match=f"{name} ran out of memory on 50 tokens: .*smaller"):
            capture(lm, IDS, keep="statistics")
        error.__traceback__ = None  # pytest's parameters keep the error
        assert held[0]() is None
    finally:
        gc.enable()
    assert lm.model.config._attn_implementation == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_other_errors_stay_what_they_are(monkeypatch):
    def fail(*args):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(gathering, "reduce_products", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        capture(MODELS["llama"](), IDS)


def test_a_compiled_model_is_captured_as_it_is_written():
    lm, calls = MODELS["llama"](), []
    expected = capture(lm, IDS)

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    lm.model.compile(backend=backend)
    assert np.array_equal(capture(lm, IDS).received, expected.received)
    assert not calls
    with untouched(lm.model):
        lm.model(IDS[None], use_cache=False)
    assert calls  # compiled still
    torch.compiler.reset()
    wrapped = object.__new__(LM)
    object.__setattr__(wrapped, "model", torch.compile(lm.model, backend="eager"))
    with pytest.raises(TypeError, match="the model itself, not what torch.compile"):
        wrapped.__post_init__()


@pytest.mark.parametrize("name", ["llama", "mpt"])
def test_gradient_checkpointing_changes_nothing_and_stays_on(name):
    lm = zoo_float32(name)
    expected = capture(lm, IDS, keep="statistics")
    lm.model.activation_checkpointing_enable()
    lm.model.train()
    found = capture(lm, IDS, keep="statistics")
    assert lm.model.is_activation_checkpointing and lm.model.training
    assert_same(found, expected, 0)


def test_a_model_that_looks_ahead_is_refused():
    config = Gemma3TextConfig(
        vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, use_bidirectional_attention=True,
    )  # fmt: skip
    lm = LM(Gemma3ForCausalLM(config).eval())
    with pytest.raises(ValueError, match="attends in both directions, as an encoder does"):
        capture(lm, IDS)


@pytest.mark.parametrize("name", ["llama", "falcon-alibi", "mpt"])
@pytest.mark.parametrize("part", ["attention", "around"])
def test_hooks_of_others_stay_and_a_layer_that_breaks_leaves_nothing(name, part):
    lm = zoo_float32(name)
    modules = attention_modules(lm.model, lm.family)
    if part == "around":
        paths = {module: path for path, module in lm.model.named_modules()}
        modules = [lm.model.get_submodule(paths[m].rpartition(".")[0]) for m in modules]
    implementation = lm.model.config._attn_implementation
    expected = capture(lm, IDS, keep="statistics")
    for module in modules:

        def broken(*args):
            raise KeyboardInterrupt

        handle = module.register_forward_hook(broken)
        with pytest.raises(KeyboardInterrupt):
            capture(lm, IDS)
        assert list(module._forward_hooks.values()) == [broken]
        handle.remove()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
        assert lm.model.config._attn_implementation == implementation
        assert_same(capture(lm, IDS, keep="statistics"), expected, 0)


@pytest.mark.parametrize("names", [("mpt", "mpt"), ("llama", "mpt"), ("mpt", "llama")])
def test_capture_within_capture_of_either_engine(names):
    outer, inner = (zoo_float32(name) for name in names)
    if names[0] == names[1]:
        inner = outer
    expected, within = capture(outer, IDS), capture(inner, IDS[:20])
    found = []

    def look(*args):
        if not found:
            found.append(None)
            found.append(capture(inner, IDS[:20]))

    handle = attention_modules(outer.model, outer.family)[1].register_forward_hook(look)
    again = capture(outer, IDS)
    handle.remove()
    assert np.array_equal(again.received, expected.received)
    assert np.array_equal(found[1].received, within.received)


def test_numbers_that_make_no_sense_are_refused():
    for name in ("n_recent", "top_k", "block", "batch"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            capture(MODELS["llama"](), IDS, **{name: 0})
    with pytest.raises(ValueError, match="n_sink must be at least 0, got -1"):
        capture(MODELS["llama"](), IDS, n_sink=-1)
