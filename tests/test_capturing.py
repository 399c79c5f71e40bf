"""Capture equals transformers' own attentions, in any block size, and leaves no trace itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import tiny_classroom, tiny_llama

from sinkviz.capturing import capture
from sinkviz.metrics import ROLES, entropy, mass, received_attention, sink_rate
from sinkviz.models import untouched
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
    ],
)
def test_bad_input_says_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        capture(MODELS["llama"](), IDS, **options)
