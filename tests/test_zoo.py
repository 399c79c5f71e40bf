"""The references are right: the zoo is exact, and naive decoding is what its definition says."""

from __future__ import annotations

import pytest
import torch
from naive import naive_logits, native_window
from reference import brute_force
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from zoo import ZOO, in_double, zoo_float32, zoo_model

from sinkviz.models import untouched
from sinkviz.policies import Dense, Recompute, SinkWindow, Window, visibility

LEARNED = ("gpt2", "opt")
COUNTED = ("mpt", "bloom", "falcon-alibi")  # ALiBi from the number of keys


def text(n: int) -> torch.Tensor:
    return torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(1))


def whole(lm, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of the whole text at once, no cache."""
    with untouched(lm.model):
        return lm.model(ids[None], use_cache=False).logits[0]


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    assert expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# The zoo ------------------------------------------------------------------------------------------


class Rounded(TorchDispatchMode):
    """Collect what is computed in less than double precision, whole numbers (counts) left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        tensors = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        for x in tensors:
            if x.is_floating_point() and x.dtype != torch.float64 and (x != x.round()).any():
                self.found.append(f"{func} {x.dtype}")
        return out


@pytest.mark.parametrize("name", ZOO)
def test_all_is_computed_in_double_and_a_token_at_a_time_gives_the_same(name):
    ids, rows, cache = text(40), [], DynamicCache()
    with zoo_model(name) as lm, untouched(lm.model):
        with Rounded() as rounded:
            expected = whole(lm, ids)
        for token in ids:
            rows.append(lm.model(token[None, None], past_key_values=cache).logits[0, -1])
    if not name.startswith("classroom"):  # whose own few (slopes, buckets) are part of the model
        assert rounded.found == []
    assert_same(torch.stack(rows), expected, 1e-10)
    single = whole(zoo_float32(name), ids)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, atol=1e-3, rtol=0)


def test_only_casts_of_transformers_are_read_as_double_and_only_meanwhile():
    lm, x = ZOO["gptj"](), torch.ones(1)
    table = lm.model.transformer.h[0].attn.embed_positions
    before = whole(lm, text(5))
    with in_double(lm.model):
        assert x.double().float().dtype == x.double().to(torch.float32).dtype == torch.float32
        assert not torch.equal(whole(lm, text(5)), before)
    assert torch.equal(whole(lm, text(5)), before)
    assert lm.model.transformer.h[0].attn.embed_positions is table


# Naive decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_dense_is_the_models_own_forward(name):
    with zoo_model(name) as lm:
        assert_same(naive_logits(lm, text(40), Dense()), whole(lm, text(40)))


def masked(lm, ids: torch.Tensor, policy) -> torch.Tensor:
    """Return the logits of the whole text at once, the full layers masked as a policy says."""
    seen = visibility(policy, len(ids))
    kind, eager = lm.model.config.model_type, lm.model.config._attn_implementation == "eager"
    least = torch.finfo(torch.float64).min

    def mask(module, args, kwargs):
        given = next(k for k in ("attention_mask", "mask") if k in kwargs)
        if kind == "mpt":
            new = ~seen
        elif kwargs[given] is not None and kwargs[given].is_floating_point():
            new = kwargs[given].masked_fill(~seen, least)  # biases stay as they are
        else:
            new = torch.zeros(seen.shape).double().masked_fill(~seen, least) if eager else seen
        return args, kwargs | {given: new if new.ndim == 4 else new[None, None]}

    layers = [m for m in lm.model.modules() if "Attention" in type(m).__name__]
    assert [m.layer_idx for m in layers] == list(range(lm.model.config.num_hidden_layers))
    full = [m for m in layers if native_window(lm.model, m.layer_idx) is None]
    hooks = [m.register_forward_pre_hook(mask, with_kwargs=True) for m in full]
    try:
        return whole(lm, ids)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", ZOO)
def test_a_window_is_the_models_own_forward_under_a_band(name):
    """Whatever sees only distances cannot tell positions in the cache from those in the text."""
    ids, policy = text(30), Window(8)
    with zoo_model(name) as lm:
        expected = masked(lm, ids, policy)
        assert_same(naive_logits(lm, ids, policy, text_positions=True), expected)
        if name in LEARNED:
            with pytest.raises(ValueError, match="baked"):
                naive_logits(lm, ids, policy)
        else:
            assert_same(naive_logits(lm, ids, policy), expected)


@pytest.mark.parametrize("name", ZOO)
def test_sinks_at_their_text_positions_are_the_models_own_forward_under_a_mask(name):
    ids, policy = text(30), SinkWindow(3, 6)
    with zoo_model(name) as lm:
        if name in COUNTED:
            with pytest.raises(NotImplementedError, match="no gap"):
                naive_logits(lm, ids, policy, text_positions=True)
        else:
            expected = masked(lm, ids, policy)
            assert_same(naive_logits(lm, ids, policy, text_positions=True), expected)


@pytest.mark.parametrize("name", [n for n in ZOO if n.startswith(("llama", "classroom"))])
def test_sinks_and_window_equal_brute_force(name):
    ids, policy = text(110), SinkWindow(4, 8)
    with zoo_model(name) as lm:
        rotary = next((m for m in lm.model.modules() if hasattr(m, "inv_freq")), None)
        frequencies = None if rotary is None else rotary.inv_freq.double()
        assert_same(naive_logits(lm, ids, policy), brute_force(lm, ids, policy, frequencies))


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "cohere2", "gpt_oss"])
def test_sliding_layers_keep_their_own_window(name):
    with zoo_model(name) as lm:
        dense, policy = naive_logits(lm, text(40), Dense()), SinkWindow(4, 12)
        logits = naive_logits(lm, text(40), policy)
        assert_same(logits[:16], dense[:16])
        assert (logits[16:] - dense[16:]).abs().amax(-1).min() > 1e-3
        sliding = [i for i in range(3) if native_window(lm.model, i)]
        assert sliding == [0, 2]


def test_recompute_runs_each_window_as_a_text():
    ids = text(20)
    with zoo_model("gpt2") as lm:
        logits = naive_logits(lm, ids, Recompute(8))
        window = torch.cat((ids[:1], ids[-7:]))
        assert_same(logits[-1], whole(lm, window)[-1])
        assert_same(logits[:8], whole(lm, ids[:8]))
