"""Every intervention equals attention changed by hand, in captures, streams and scores alike."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from naive import NaiveCache
from reference import tiny_llama
from transformers import AttentionInterface, AttentionMaskInterface, StaticCache
from zoo import zoo_float32, zoo_model

from sinkviz.capturing import capture
from sinkviz.forward import forward
from sinkviz.interventions import (
    forbid,
    knock_out,
    move_first,
    null_key,
    prepend,
    remove_first,
    repeat_first,
    replace_first,
    zero_value,
)
from sinkviz.interventions.projections import value_columns
from sinkviz.lanes import Lane
from sinkviz.models import untouched
from sinkviz.policies import H2O, Dense, Recompute, SinkWindow, Window
from sinkviz.ranked import RankedCache
from sinkviz.records import Trace
from sinkviz.scoring import score
from sinkviz.streaming import stream

LENGTH = 20
IDS = torch.randint(3, 61, (LENGTH,), generator=torch.Generator().manual_seed(1))
CLOSE = {"atol": 1e-9, "rtol": 0}

# By hand ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByHand:
    """What is changed, as plainly as it can be written: sets of (layer, ...) or None for all."""

    zero: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()
    silent: tuple[tuple[int, int], ...] = ()
    null: tuple[float, ...] = ()
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


def naive_run(lm, ids, policy, edit: ByHand) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits after every token, and (layer, head, query, text position) of attention.

    A token at a time over ``NaiveCache``, which keeps everything and looks up what the policy says;
    one head after the other.
    """
    config = lm.model.config
    cache = NaiveCache(lm.model, policy, getattr(policy, "positions", None) == "text")
    maps = torch.zeros(config.num_hidden_layers, config.num_attention_heads, len(ids), len(ids))
    maps = maps.double()

    def attend(module, query, key, value, mask, *, scaling=None, softcap=None, s_aux=None, **more):
        layer, now = module.layer_idx, cache.n - 1
        changed = edit.layers is None or layer in edit.layers
        returned = torch.tensor(list(cache.layers[layer].returned))
        shared, rows = query.shape[1] // key.shape[1], []
        for head in range(query.shape[1]):
            scores = key[0, head // shared] @ query[0, head, 0] * scaling
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            if mask is not None:
                scores = scores + mask[0, head if mask.shape[1] > 1 else 0, 0]
            weights, values = scores.exp(), value[0, head // shared].clone()
            if changed and (edit.heads is None or head in edit.heads):
                for position in set(edit.forbidden) - {now}:
                    weights[returned == position] = 0
            if changed:
                for position in edit.zero:
                    values[returned == position] = 0
            total = weights.sum() + (0 if s_aux is None else s_aux[head].exp())
            total = total + sum(np.exp(logit) for logit in edit.null if changed)
            maps[layer, head, now, returned] = weights / total
            row = (weights / total) @ values
            rows.append(0 * row if (layer, head) in edit.silent else row)
        return torch.stack(rows)[None, None], None

    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", lambda *args, **kwargs: None)
    logits = []
    with untouched(lm.model, "by_hand"):
        for token in ids:
            place = torch.tensor([[cache.expect_next()]])
            out = lm.model(token[None, None], position_ids=place, past_key_values=cache)
            logits.append(out.logits[0, -1])
    return torch.stack(logits), maps


def nll_of(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    return -logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0].numpy()


MODELS = ["llama", "gpt_neox", "gemma2", "classroom-alibi"]
# Further null logits, ways to group heads and to mask: with everything at once.
FURTHER = ["qwen3", "gpt_oss", "stablelm", "gpt2", "classroom-rope", "classroom-sink-logit"]
ONE = {
    "zero-value": (ByHand(zero=(0,)), lambda lm: [zero_value(lm, 0)]),
    "zero-later-value": (
        ByHand(zero=(9,), layers=(1,)),
        lambda lm: [zero_value(lm, 9, layers=1)],
    ),
    "knock-out": (ByHand(silent=((1, 2),)), lambda lm: [knock_out(lm, 1, 2)]),
    "forbid": (ByHand(forbidden=(0,)), lambda lm: [forbid(lm, 0)]),
    "forbid-head": (
        ByHand(forbidden=(1,), layers=(0, 1), heads=(0, 2)),
        lambda lm: [forbid(lm, 1, layers=[0, 1], heads=[0, 2])],
    ),
    "off-by-one": (ByHand(null=(0.0,)), lambda lm: [null_key(lm)]),
    "null-key": (ByHand(null=(2.5,), layers=(1,)), lambda lm: [null_key(lm, 2.5, layers=[1])]),
    "nested": (
        ByHand(zero=(0,), forbidden=(0, 3), silent=((0, 1),), null=(0.0, 1.0)),
        lambda lm: [
            forbid(lm, 3),
            null_key(lm, 1.0),
            zero_value(lm, 0),
            knock_out(lm, 0, 1),
            forbid(lm, 0),
            null_key(lm),
        ],
    ),
}
POLICIES = [Dense(), SinkWindow(4, 8)]
MORE = [*POLICIES, Window(12), SinkWindow(2, 10, "text")]


def policies_of(name: str, change: str) -> list:
    if name == "gpt2":  # its positions are baked into the keys
        return [Dense()]
    return MORE if change == "nested" and name in MODELS else POLICIES


def within(contexts) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


@pytest.mark.parametrize(("name", "change"), [*product(MODELS, ONE), *product(FURTHER, ["nested"])])
def test_captures_streams_and_scores_equal_attention_changed_by_hand(name, change):
    edit, contexts = ONE[change]
    with zoo_model(name) as lm:
        plain = forward(lm, lm.cache(Dense()), IDS)
        for policy in policies_of(name, change):
            logits, maps = naive_run(lm, IDS, policy, edit)
            with within(contexts(lm)):
                lane = Lane(lm, policy)
                steps = torch.stack([lane.feed(IDS[i : i + 1]) for i in range(LENGTH)])
                torch.testing.assert_close(steps, logits, **CLOSE)
                parts, lane = [], Lane(lm, policy)
                for part in IDS.split((5, 1, 10, 4)):
                    parts.append(lane.read(part))
                torch.testing.assert_close(torch.cat(parts), logits, **CLOSE)
                run = score(lm, IDS, policy, block=17)
            assert run.nll[1:] == pytest.approx(nll_of(logits, IDS), abs=1e-9)
            if isinstance(policy, Dense):
                assert (logits - plain).abs().max() > 1e-3  # the change matters
                for block in (None, 13):
                    with within(contexts(lm)):
                        trace = capture(lm, IDS, n_sink=2, n_recent=8, block=block)
                    assert trace.attention == pytest.approx(maps.numpy(), abs=1e-9)
                    null = 1 - maps.sum(-1)
                    assert trace.mass_of("null") == pytest.approx(null.numpy(), abs=1e-9)
                    seen = torch.arange(LENGTH, 0, -1)
                    if not hasattr(lm.model.config, "sliding_window"):
                        found = (maps.sum(-2) / seen).numpy()
                        assert trace.received == pytest.approx(found, abs=1e-9)
        torch.testing.assert_close(forward(lm, lm.cache(Dense()), IDS), plain, atol=0, rtol=0)


@pytest.mark.parametrize("change", ["forbid", "zero-value", "nested", "forbid-head"])
def test_a_cache_of_any_policy_and_heads_that_choose_for_themselves(change):
    edit, contexts = ONE[change]
    with zoo_model("llama") as lm:
        expected = naive_run(lm, IDS, SinkWindow(4, 8), edit)[0]
        cache = RankedCache(lm.model, SinkWindow(4, 8))
        with within(contexts(lm)):
            found = forward(lm, cache, IDS)
            torch.testing.assert_close(found, expected, **CLOSE)
            # As long as nothing is evicted, a policy by attention is full attention.
            lane = Lane(lm, H2O(10, 10))
            steps = torch.stack([lane.feed(IDS[i : i + 1]) for i in range(LENGTH)])
        torch.testing.assert_close(steps, naive_run(lm, IDS, Dense(), edit)[0], **CLOSE)


def test_a_head_that_lost_the_position_needs_not_be_told():
    """Each kv head of H2O keeps tokens of its own; what one has dropped is dropped."""
    with zoo_model("llama") as lm, forbid(lm, 0), zero_value(lm, 5):
        lane, whole = Lane(lm, H2O(4, 4)), []
        for i in range(LENGTH):
            lane.feed(IDS[i : i + 1])
            whole.append([lane.cache.kept(layer) for layer in range(2)])
        kept = torch.stack(whole[-1])
        assert not (kept == 0).any()  # received nothing but its own
        assert (kept != kept[:, :, :1]).any()


def test_a_step_tells_where_attention_went():
    policy = SinkWindow(1, 8)
    with zoo_model("llama") as lm:
        maps = naive_run(lm, IDS, policy, ByHand(forbidden=(0,), null=(1.0,)))[1].mean((0, 1))
        with forbid(lm, 0), null_key(lm, 1.0):
            (step,) = stream(lm, policy, IDS, max_new_tokens=1, capture=True)
            run = score(lm, IDS, policy, mass=True)
        assert step.mass["sink"] == pytest.approx(0, abs=1e-12)
        assert step.mass["null"] == pytest.approx(1 - float(maps[-1].sum()), abs=1e-6)
        assert run.mass[1:-1, 0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("policy", [Dense(), SinkWindow(4, 8)], ids=str)
@pytest.mark.parametrize("change", ["forbid", "zero-value", "nested"])
def test_padded_streams_count_their_own_tokens(change, policy):
    lengths = (LENGTH, 14)
    batch = torch.stack([torch.cat((0 * IDS[: LENGTH - n], IDS[:n])) for n in lengths])
    mask = torch.stack([(torch.arange(LENGTH) >= LENGTH - n).long() for n in lengths])
    edit, contexts = ONE[change]
    with zoo_model("llama") as lm:
        expected = naive_run(lm, IDS, policy, edit)[0]
        for size in (1, 13):
            with within(contexts(lm)):
                cache = lm.cache(policy)
                parts = zip(batch.split(size, 1), mask.split(size, 1), strict=True)
                found = torch.cat([forward(lm, cache, a, attention_mask=b) for a, b in parts], 1)
            for row, n in enumerate(lengths):
                torch.testing.assert_close(found[row, LENGTH - n :], expected[:n], **CLOSE)


def test_windows_run_afresh_are_texts_of_their_own():
    with zoo_model("llama") as lm:
        policy, edit = Recompute(8), ByHand(forbidden=(0,))
        window = IDS[policy.keep(LENGTH)]
        expected = naive_run(lm, window, Dense(), edit)[0][-1]
        with forbid(lm, 0):
            torch.testing.assert_close(Lane(lm, policy).feed(IDS), expected, **CLOSE)


def test_generate_goes_along():
    lm = zoo_float32("llama")
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True}
    with forbid(lm, 0), zero_value(lm, 1):
        expected = [s.token_id for s in stream(lm, SinkWindow(4, 20), IDS[:9], max_new_tokens=6)]
        found = lm.model.generate(IDS[None, :9], past_key_values=lm.cache(Dense()), **options)
        assert found[0, 9:].tolist() == expected
        with pytest.raises(ValueError, match="cannot tell where a StaticCache keeps which token"):
            cache = StaticCache(lm.model.config, max_cache_len=20)
            lm.model(IDS[None, :9], past_key_values=cache, use_cache=True)


# Outside the interface ----------------------------------------------------------------------------

OUTSIDE = ["gptj", "codegen", "falcon-rope", "falcon-alibi", "falcon-new", "mpt", "bloom"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_values_become_zero_outside_the_interface_and_nothing_else(name):
    with zoo_model(name) as lm:
        plain, zeroed = lm.cache(Dense()), lm.cache(Dense())
        before = forward(lm, plain, IDS)
        with zero_value(lm, 3, layers=0):
            after = forward(lm, zeroed, IDS)
            steps = Lane(lm, Dense())
            stepwise = torch.stack([steps.feed(IDS[i : i + 1]) for i in range(LENGTH)])
            trace = capture(lm, IDS, keep="statistics", block=17)
        expected = plain.layers[0].values.clone()
        expected[:, :, 3] = 0
        assert torch.equal(zeroed.layers[0].values, expected)
        assert torch.equal(zeroed.layers[0].keys, plain.layers[0].keys)
        torch.testing.assert_close(stepwise, after, **CLOSE)
        assert torch.equal(after[:3], before[:3]) and (after - before)[3:].abs().max() > 1e-3
        assert (trace.value_norm[0, :, 3] == 0).all()
        assert (np.delete(trace.value_norm, 3, -1) > 0).all() and (trace.value_norm[1] > 0).all()
        with zero_value(lm, 3):
            window = score(lm, IDS, SinkWindow(4, 8), block=17).nll
            by_step = score(lm, IDS, SinkWindow(4, 8), engine="stepwise").nll
        assert window[1:] == pytest.approx(by_step[1:], abs=1e-9)


def out_weight(module) -> torch.Tensor:
    names = ("out_proj", "dense")
    return next(getattr(module, name).weight for name in names if hasattr(module, name))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_head_without_weights_in_the_output_projection_is_silent(name):
    with zoo_model(name) as lm:
        weight = out_weight(lm.attention_modules[1]).data
        size, whole = weight.shape[1] // lm.model.config.num_attention_heads, weight.clone()
        weight[:, 2 * size : 3 * size] = 0
        expected = forward(lm, lm.cache(Dense()), IDS)
        silent = score(lm, IDS, SinkWindow(4, 8)).nll[1:]
        weight.copy_(whole)
        with knock_out(lm, 1, 2):
            torch.testing.assert_close(forward(lm, lm.cache(Dense()), IDS), expected, **CLOSE)
            found = score(lm, IDS, SinkWindow(4, 8)).nll[1:]
        assert found == pytest.approx(silent, abs=1e-9)


# Nothing stays ------------------------------------------------------------------------------------


def state_of(lm) -> tuple:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()]
    configs = [id(getattr(module, "config", None)) for module in lm.attention_modules]
    return hooks, configs, lm.model.config._attn_implementation


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon-alibi"])
def test_nothing_is_left_on_the_model_wherever_it_breaks_off(name, error):
    lm = zoo_float32(name)
    before, plain = state_of(lm), capture(lm, IDS).received

    def interrupt(*args):
        raise error

    outside = name.startswith("falcon")
    for broken in lm.attention_modules:
        with pytest.raises(error), zero_value(lm, 0), knock_out(lm, 0, 1):
            with (
                contextlib.nullcontext() if outside else forbid(lm, 2),
                within([] if outside else [null_key(lm)]),
            ):
                handle = broken.register_forward_hook(interrupt)
                try:
                    capture(lm, IDS)
                finally:
                    handle.remove()
        assert state_of(lm) == before
    assert np.array_equal(capture(lm, IDS).received, plain)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_changes_leave_in_any_order_and_the_others_stay_in_force(order):
    lm, fresh = zoo_float32("llama"), zoo_float32("llama")
    before, plain = state_of(lm), capture(lm, IDS).attention
    makes = [
        lambda lm: forbid(lm, 0),
        lambda lm: zero_value(lm, 3),
        lambda lm: null_key(lm, 2.0, layers=1),
    ]

    def found(lm) -> tuple[np.ndarray, np.ndarray]:
        return capture(lm, IDS).attention, score(lm, IDS, SinkWindow(4, 8), block=7).nll[1:]

    changes = dict(enumerate(make(lm) for make in makes))
    for change in changes.values():
        change.__enter__()
    for one in order:
        changes.pop(one).__exit__(None, None, None)
        with within(makes[other](fresh) for other in changes):
            expected = found(fresh)
        for a, b in zip(found(lm), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert state_of(lm) == before
    np.testing.assert_array_equal(capture(lm, IDS).attention, plain)


def test_a_break_within_does_not_end_the_intervention():
    lm = zoo_float32("llama")
    with forbid(lm, 0):
        expected = capture(lm, IDS).received
        handle = lm.attention_modules[1].register_forward_pre_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            capture(lm, IDS)
        handle.remove()
        assert np.array_equal(capture(lm, IDS).received, expected)


def test_the_cache_keeps_the_true_value():
    with zoo_model("llama") as lm:
        plain, zeroed = lm.cache(Dense()), lm.cache(Dense())
        forward(lm, plain, IDS)
        with zero_value(lm, 0, layers=1):
            forward(lm, zeroed, IDS)
        assert torch.equal(zeroed.layers[1].values, plain.layers[1].values)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_compiled_step_is_refused_and_goes_on_afterwards(name, monkeypatch):
    """Also one that was compiled before: its graph runs no hooks that came later."""
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)
    lm, policy = zoo_float32(name), SinkWindow(4, 8)
    lane, other = Lane(lm, policy, compiled=True), Lane(lm, policy)
    for i in range(15):
        lane.feed(IDS[i : i + 1])
    with knock_out(lm, 0, 1), zero_value(lm, 15):
        with pytest.raises(ValueError, match="do not reach into compiled steps; use compiled=F"):
            lane.feed(IDS[15:16])
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        with pytest.raises(ValueError, match="interventions do not go into compiled models"):
            other.feed(IDS[:1])
        monkeypatch.undo()
    whole = Lane(lm, policy)
    whole.feed(IDS[:15])
    found, expected = lane.feed(IDS[15:16]), whole.feed(IDS[15:16])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lm: zero_value(lm, -1), "position must be one of the text, .* got -1"),
        (lambda lm: forbid(lm, 0, layers=2), r"no layer 2: llama has layers 0\.\.1"),
        (lambda lm: forbid(lm, 0, heads=[4]), r"no head 4: llama has heads 0\.\.3"),
        (lambda lm: knock_out(lm, 0, 9), r"no head 9: llama has heads 0\.\.3"),
        (lambda lm: null_key(lm, layers=[-1]), r"no layer -1"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    lm = zoo_float32("llama")
    with pytest.raises(ValueError, match=message):
        change(lm)


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_lies_out_of_reach_is_refused(name):
    lm = zoo_float32(name)
    with pytest.raises(ValueError, match="a position cannot be forbidden; zero_value and"):
        forbid(lm, 0)
    with pytest.raises(ValueError, match="a null key cannot be added"):
        null_key(lm)


def test_an_unknown_projection_is_refused():
    lm = zoo_float32("llama")
    with pytest.raises(ValueError, match="not known where llama projects its values"):
        value_columns(lm.attention_modules[0], lm.family)
    lm = zoo_float32("bloom")
    module = lm.attention_modules[0]
    module.slow_but_exact, module.pretraining_tp = True, 2
    with pytest.raises(ValueError, match="set config.slow_but_exact = False"):
        knock_out(lm, 0, 0)
    del module.dense
    with pytest.raises(ValueError, match="has no output projection named o_proj, out_proj"):
        knock_out(lm, 0, 0)


# What records say ---------------------------------------------------------------------------------


def test_records_say_what_was_done_meanwhile(tmp_path):
    lm, ids = tiny_llama(), list(range(20))
    plain = capture(lm, ids)
    with zero_value(lm, 0), forbid(lm, position=1, layers=[0]):
        changed = capture(lm, ids)
        run = score(lm, ids, Window(8))
        with pytest.raises(ValueError, match="no head 99"), knock_out(lm, 0, 99):
            pass
    said = "zero_value(position=0); forbid(position=1, layers=[0])"
    assert changed.provenance["interventions"] == run.provenance["interventions"] == said
    assert Trace.load(changed.save(tmp_path / "t.safetensors")).provenance["interventions"] == said
    assert "interventions" not in plain.provenance and lm.changes == ""


def test_a_score_goes_on_under_the_same_intervention_only(tmp_path):
    lm, ids, kept = tiny_llama(), list(range(40)), tmp_path / "half.safetensors"
    whole = score(lm, ids, Window(8), state=kept)
    with zero_value(lm, 0), pytest.raises(ValueError, match="belongs to another intervention"):
        score(lm, ids, Window(8), state=kept)
    np.testing.assert_array_equal(score(lm, ids, Window(8), state=kept).nll, whole.nll)


# Edits of the text --------------------------------------------------------------------------------


def test_edits_are_those_of_lists():
    ids = [5, 6, 7, 8]
    assert prepend(ids, [1]).tolist() == [1, *ids]
    assert remove_first(ids, 2).tolist() == ids[2:]
    assert replace_first(ids, [1, 2]).tolist() == [1, 2, *ids[2:]]
    assert repeat_first(ids, 3, n=2).tolist() == [5, 6, 5, 6, 5, 6, 7, 8]
    for n in range(5):
        for to in range(5 - n):
            expected = ids[n:]
            expected[to:to] = ids[:n]
            assert move_first(ids, to, n).tolist() == expected


def test_edits_leave_the_text_as_it_is():
    ids = torch.tensor([5, 6, 7])
    for edited in (remove_first(ids, 0), replace_first(ids, []), move_first(ids, 0)):
        edited += 1
    assert ids.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: remove_first([5], 1), r"to remove, must be in 0\.\.0 for this text, got 1"),
        (lambda: replace_first([5], [1, 2]), r"must be in 0\.\.1 for this text, got 2"),
        (lambda: move_first([5, 6], to=2), r"new position, must be in 0\.\.1 for this text, got 2"),
        (lambda: repeat_first([5, 6], n=3), r"to repeat, must be in 1\.\.2"),
        (lambda: repeat_first([5, 6], times=0), "times must be at least 1"),
        (lambda: prepend([5], torch.tensor([1.7])), "whole numbers, got torch.float32"),
        (lambda: remove_first([True, False]), "whole numbers, got torch.bool"),
    ],
)
def test_impossible_edits_are_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        edit()
