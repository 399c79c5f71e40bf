"""Streaming is exact: stepwise, parallel and brute force agree, for every policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import brute_force, brute_force_nll, tiny, tiny_classroom, tiny_llama
from transformers import MistralConfig, MistralForCausalLM

import sinkviz.caches as caches
from sinkviz.caches import SinkCache
from sinkviz.capturing import capture
from sinkviz.forward import forward
from sinkviz.policies import Dense, Recompute, SinkWindow, Window
from sinkviz.scoring import score
from sinkviz.streaming import Lane, compare, stream

POLICIES = [Dense(), Window(12), SinkWindow(4, 8), SinkWindow(1, 11), Recompute(12)]
MODELS = {
    "classroom-rope": lambda dtype: tiny_classroom(dtype),
    "classroom-alibi": lambda dtype: tiny_classroom(dtype, position="alibi"),
    "classroom-t5": lambda dtype: tiny_classroom(dtype, position="t5"),
    "classroom-none": lambda dtype: tiny_classroom(dtype, position="none"),
    "classroom-off-by-one": lambda dtype: tiny_classroom(dtype, softmax="off_by_one"),
    "classroom-sink-logit": lambda dtype: tiny_classroom(dtype, softmax="sink_logit"),
    "classroom-grouped": lambda dtype: tiny_classroom(dtype, num_key_value_heads=1),
    "llama": tiny_llama,
}


def rotary(lm):
    module = next((m for m in lm.model.modules() if hasattr(m, "inv_freq")), None)
    return None if module is None else module.inv_freq.double()


def text(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(seed))


def test_a_native_sliding_window_that_would_hide_the_sinks_is_refused():
    lm = tiny(MistralConfig, MistralForCausalLM, num_key_value_heads=2, sliding_window=16)
    with pytest.raises(ValueError, match="sees only 16 tokens back.*a cache of 20 would be cut"):
        score(lm, text(40), SinkWindow(4, 16))
    assert capture(lm, text(40)).mass.sum(-1) == pytest.approx(1.0, abs=1e-5)
    reference = brute_force_nll(lm, text(60), SinkWindow(4, 8), rotary(lm))
    run = score(lm, text(60), SinkWindow(4, 8), engine="stepwise")
    torch.testing.assert_close(torch.from_numpy(run.nll)[1:], reference, atol=1e-9, rtol=0)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_stepwise_parallel_and_brute_force_agree(name, policy):
    """Eight windows and more; blocks that do not divide the text; re-basing on the way."""
    lm, ids = MODELS[name](torch.float64), text(110)
    reference = brute_force_nll(lm, ids, policy, rotary(lm))
    stepwise = torch.from_numpy(score(lm, ids, policy, engine="stepwise").nll)[1:]
    torch.testing.assert_close(stepwise, reference, atol=1e-9, rtol=0)
    for block in (1, 7, 31, 256):
        parallel = torch.from_numpy(score(lm, ids, policy, block=block).nll)[1:]
        torch.testing.assert_close(parallel, reference, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["classroom-rope", "classroom-alibi", "llama"])
def test_float32_logits_are_within_1e4_of_float64(name):
    """The single precision that everybody runs in, against the brute force in double."""
    ids, policy = text(110), SinkWindow(4, 8)
    exact = MODELS[name](torch.float64)
    reference = brute_force(exact, ids, policy, rotary(exact))
    single = MODELS[name](torch.float32)
    lane = Lane(single, policy)
    logits = torch.stack([lane.feed(ids[i : i + 1]) for i in range(len(ids))])
    torch.testing.assert_close(logits.double(), reference, atol=1e-4, rtol=0)
    cache = SinkCache(single.model, 4, 8)
    blocks = torch.cat([forward(single, cache, part) for part in ids.split(25)])
    torch.testing.assert_close(blocks.double(), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["classroom-rope", "llama"])
def test_rebasing_changes_nothing(name, monkeypatch):
    """Positions restart many times, and no prediction moves."""
    lm, ids, policy = MODELS[name](torch.float64), text(200), SinkWindow(4, 8)
    expected = score(lm, ids, policy).nll
    monkeypatch.setattr(caches, "REBASE_AT", 20)
    for engine, block in (("stepwise", 1), ("parallel", 9)):
        run = score(lm, ids, policy, engine=engine, block=block)
        torch.testing.assert_close(
            torch.from_numpy(run.nll[1:]), torch.from_numpy(expected[1:]), atol=1e-9, rtol=0
        )
    cache, fed = SinkCache(lm.model, 4, 8), []
    begin = cache.begin

    def noted(*args):
        changes = begin(*args)
        fed.append(int(changes["position_ids"].max()))
        return changes

    cache.begin = noted
    for i in range(200):
        forward(lm, cache, ids[i : i + 1])
    assert max(fed) <= 20 + 12
    assert cache.clock.base > 100


def test_a_prompt_longer_than_the_cache_equals_feeding_it_token_by_token():
    lm, ids = tiny_llama(), text(77)
    whole, single = Lane(lm, SinkWindow(2, 10)), Lane(lm, SinkWindow(2, 10))
    logits = whole.feed(ids)
    for i in range(len(ids)):
        slow = single.feed(ids[i : i + 1])
    torch.testing.assert_close(logits, slow, atol=1e-9, rtol=0)
    follow = torch.tensor([5])
    torch.testing.assert_close(whole.feed(follow), single.feed(follow), atol=1e-9, rtol=0)


def test_the_cache_is_a_transformers_cache():
    """One token at a time it serves ``model(...)`` and ``generate`` as it is."""
    lm, ids = tiny_llama(), text(5)
    cache = SinkCache(lm.model, 2, 6)
    out = lm.model.generate(
        ids[None], past_key_values=cache, max_new_tokens=40, do_sample=False, pad_token_id=0
    )
    steps = [step.token_id for step in stream(lm, SinkWindow(2, 6), ids, max_new_tokens=40)]
    assert out[0, 5:].tolist() == steps


def test_memory_is_constant_and_only_one_slot_moves():
    lm, ids = tiny_llama(), text(60)
    lane = Lane(lm, SinkWindow(2, 6))
    for i in range(30):
        lane.feed(ids[i : i + 1])
    layer = lane.cache.layers[0]
    before, address = layer.keys.clone(), layer.keys.data_ptr()
    n_bytes = lane.cache_bytes
    lane.feed(ids[30:31])
    changed = (layer.keys != before).any(-1).any(1)[0].nonzero()[:, 0].tolist()
    assert changed == [0, 1, 2 + (30 - 2) % 6]
    assert layer.keys.data_ptr() == address
    assert lane.cache_bytes == n_bytes


def test_steps_tell_what_happened():
    lm, ids = tiny_llama(), text(30)
    lanes = list(compare(lm, [Dense(), Window(8), SinkWindow(2, 6), Recompute(8)], text=ids))
    assert len(lanes) == 29
    first, last = lanes[0], lanes[-1]
    assert [step.position for step in first] == [1] * 4
    assert [step.cache_size for step in last] == [29, 8, 8, 8]
    assert [step.evicted for step in last] == [(), (20,), (22,), (21,)]
    assert [step.token_id for step in last] == [int(ids[-1])] * 4
    assert last[0].cache_bytes > last[1].cache_bytes > last[3].cache_bytes == 0
    run = score(lm, ids, SinkWindow(2, 6))
    torch.testing.assert_close(
        torch.tensor([steps[2].nll for steps in lanes], dtype=torch.float64),
        torch.from_numpy(run.nll[1:]),
        atol=1e-5,
        rtol=0,
    )
    gone = sorted({p for steps in lanes for p in steps[2].evicted})
    kept = SinkWindow(2, 6).keep(29)
    assert sorted(gone + kept) == list(range(29))


def test_sampling_is_seeded_and_bounded():
    lm, ids = tiny_classroom(torch.float32), text(4)
    options = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 20, "top_p": 0.9}

    def draw(seed):
        return [s.token_id for s in stream(lm, SinkWindow(2, 6), ids, seed=seed, **options)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    greedy = [s.token_id for s in stream(lm, Dense(), ids, max_new_tokens=30)]
    penal = [
        s.token_id for s in stream(lm, Dense(), ids, max_new_tokens=30, repetition_penalty=5.0)
    ]
    assert len(set(penal)) > len(set(greedy))


def test_stop_and_endless():
    lm, ids = tiny_classroom(torch.float32), text(4)
    tokens = [s.token for s in stream(lm, Dense(), ids, max_new_tokens=12)]
    ended = list(stream(lm, Dense(), ids, max_new_tokens=None, stop=" ".join(tokens[:3])))
    assert len(ended) == 3


def test_an_interrupted_stream_leaves_the_model_as_it_was():
    lm, ids = tiny_llama(torch.float32), text(40)
    lm.model.train()
    implementation = lm.model.config._attn_implementation
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) for m in lm.model.modules())

    lanes = stream(lm, SinkWindow(2, 6), ids, max_new_tokens=None)
    next(lanes)
    with pytest.raises(KeyboardInterrupt):
        lanes.throw(KeyboardInterrupt)

    def interrupt(*args):
        raise KeyboardInterrupt

    handle = lm.model.model.layers[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        score(lm, ids, SinkWindow(2, 6))
    handle.remove()

    assert lm.model.training
    assert lm.model.config._attn_implementation == implementation
    assert sum(len(m._forward_hooks) for m in lm.model.modules()) == hooks
    assert all(torch.equal(v, before[k]) for k, v in lm.model.state_dict().items())


def test_mass_sums_to_one_and_sinks_are_counted():
    lm, ids = tiny_classroom(softmax="off_by_one"), text(50)
    run = score(lm, ids, SinkWindow(2, 6), mass=True, block=16)
    assert run.mass[:49].sum(-1) == pytest.approx(1.0, abs=1e-5)
    assert (run.mass[:49, 4] > 0).all()
    window = score(lm, ids, Window(8), mass=True)
    assert (window.mass[1:8, 0] > 0).all()
    assert (window.mass[8:49, 0] == 0).all()
    assert (window.mass[:49, 2] == 0).all()
    assert np.isnan(window.mass[49]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: score(lm, [3], Dense()), "at least two tokens"),
        (lambda lm: score(lm, [], Dense()), "the text is empty"),
        (lambda lm: score(lm, [3, 99], Dense()), r"token ids must be in 0\.\.60, got 3\.\.99"),
        (lambda lm: score(lm, "hello", Dense()), "no tokenizer"),
        (lambda lm: score(lm, [1, 2], Dense(), engine="fast"), "known are parallel, stepwise"),
        (lambda lm: score(lm, [1, 2], Dense(), block=0), "block must be at least 1"),
        (lambda lm: score(lm, [1, 2], Recompute(4), mass=True), "not for recompute 4"),
        (lambda lm: compare(lm, [], text=[1, 2]), "at least one policy"),
        (lambda lm: compare(lm, [Dense()]), "either a prompt"),
        (lambda lm: compare(lm, [Dense()], text=[1]), "at least two tokens"),
        (lambda lm: compare(lm, [Dense()], prompt=[1], max_new_tokens=0), "at least 1"),
        (lambda lm: compare(lm, [Dense()], prompt=[1], temperature=-1.0), "at least 0"),
        (
            lambda lm: stream(lm, Dense(), [1], temperature=float("nan")),
            "temperature must be a finite number, got nan",
        ),
        (
            lambda lm: stream(lm, Dense(), [1], repetition_penalty=float("inf")),
            "repetition_penalty must be a finite number",
        ),
        (
            lambda lm: stream(lm, Dense(), [1], temperature=1.0, top_p=float("nan")),
            "top_p must be a finite number",
        ),
        (lambda lm: stream(lm, Dense(), ""), "no tokenizer"),
        (lambda lm: score(lm, torch.rand(9) * 9, Dense()), "whole numbers, got torch.float32"),
        (lambda lm: score(lm, [True, False], Dense()), "whole numbers, got torch.bool"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_classroom(torch.float32))


def test_a_text_shorter_than_the_cache_is_dense():
    lm, ids = tiny_llama(), text(9)
    dense = score(lm, ids, Dense()).nll[1:]
    for policy in (SinkWindow(4, 60), Window(64), Recompute(64)):
        assert score(lm, ids, policy).nll[1:] == pytest.approx(dense, abs=1e-9)


def test_a_cache_beyond_the_training_length_is_allowed_and_exact():
    lm, ids = tiny_classroom(max_position_embeddings=16), text(90)
    policy = SinkWindow(4, 40)
    reference = brute_force_nll(lm, ids, policy, rotary(lm))
    torch.testing.assert_close(
        torch.from_numpy(score(lm, ids, policy, block=20).nll)[1:], reference, atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal"])
def test_absolute_positions_refuse_an_evicting_cache(scheme):
    lm = tiny_classroom(torch.float32, position=scheme, max_position_embeddings=32)
    with pytest.raises(ValueError, match="use Dense or Recompute"):
        score(lm, text(40), SinkWindow(2, 6))
    assert score(lm, text(100), Recompute(16)).nll[1:].max() < 100
    with pytest.raises(ValueError, match="use a cache of at most 32"):
        score(lm, text(100), Recompute(33))


@pytest.mark.parametrize("engine", ["parallel", "stepwise"])
def test_half_precision_stays_close(engine):
    lm, ids = tiny_llama(), text(90)
    expected = score(lm, ids, SinkWindow(4, 8)).mean_nll()
    lm.model.to(torch.bfloat16)
    run = score(lm, ids, SinkWindow(4, 8), engine=engine)
    assert run.mean_nll() == pytest.approx(expected, rel=0.02)
