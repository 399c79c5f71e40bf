"""Lengths and costs: quality against naive windows, mechanisms against full attention."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from reference import tiny_classroom, tiny_llama
from torch.nn.attention import flex_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkviz import experiments
from sinkviz.experiments import costs, lengths, mechanisms
from sinkviz.experiments.expense import inference_step, peak_bytes_of, training_step
from sinkviz.experiments.running import Setting
from sinkviz.experiments.stretches import reach_nll, stretch_nll
from sinkviz.models import LM, untouched
from sinkviz.plots import plot_costs, plot_lengths
from sinkviz.policies import SinkWindow, Window
from sinkviz.recipes import RECIPES

POSITIONS = ("rope", "alibi", "sinusoidal", "t5", "learned", "none")


def draw_ids(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, (n,), generator=torch.Generator().manual_seed(seed))


def naive_nll(lm: LM, read: torch.Tensor, wanted: torch.Tensor) -> list[float]:
    """Nll of the tokens after each token that is read, one softmax at a time."""
    with untouched(lm.model):
        logits = lm.model(read[None], use_cache=False).logits[0]
    return [
        float(torch.logsumexp(row, 0) - row[token])
        for row, token in zip(logits, wanted.tolist(), strict=True)
    ]


def snapshot(lm: LM) -> tuple:
    weights = {name: p.clone() for name, p in lm.model.named_parameters()}
    modes = [module.training for module in lm.model.modules()]
    grads = [p.grad is None and p.requires_grad for p in lm.model.parameters()]
    return weights, modes, grads, lm.model.config._attn_implementation


def same(one: tuple, other: tuple) -> bool:
    weights = all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    return weights and one[1:] == other[1:]


class Random(Setting):
    """A setting whose text is random ids."""

    def ids(self, lm: LM, n_tokens: int) -> torch.Tensor:
        return draw_ids(n_tokens)


def setting_of(*lms: LM) -> Setting:
    return Random({lm.name: lm for lm in lms}, quick=True)


# Quality against length ------------------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("length", [5, 16, 40])
def test_stretches_equal_naive_windows(position, length):
    lm = tiny_classroom(position=position)
    ids = draw_ids(101)
    begin, body, expected = ids[:1], ids[1:], []
    for start in range(0, len(body), length):
        chunk = body[start : start + length]
        expected += naive_nll(lm, torch.cat((begin, chunk[:-1])), chunk)
    found = stretch_nll(lm, ids, length)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_all_lengths_predict_the_same_tokens():
    lm, ids = tiny_classroom(), draw_ids(90)
    assert {len(stretch_nll(lm, ids, length)) for length in (2, 7, 64, 500)} == {89}


def test_sink_tokens_stand_in_front_of_every_stretch():
    lm = tiny_classroom(n_sink_tokens=2)
    ids = torch.cat((torch.tensor([59, 60]), draw_ids(40)))
    front, body, expected = ids[:2], ids[2:], []
    for start in range(0, len(body), 9):  # 2 in front and 8 more are read, 9 predicted
        chunk = body[start : start + 9]
        read, wanted = torch.cat((front, chunk[:-1])), torch.cat((front[1:], chunk))
        expected += naive_nll(lm, read, wanted)[1:]
    np.testing.assert_allclose(stretch_nll(lm, ids, 10), expected, atol=1e-12)


@pytest.mark.parametrize("length", [8, 20, 32])
def test_reach_equals_one_window_per_place(length):
    lm, ids = tiny_classroom(position="alibi"), draw_ids(100)
    body, expected = ids[1:], []
    for end in (32, 54, 76, 99):  # evenly spaced from the longest to the end of the text
        window = body[end - length : end]
        expected += naive_nll(lm, torch.cat((ids[:1], window[:-1])), window)[-4:]
    found = reach_nll(lm, ids, length, longest=32, n_stretches=4, n_last=4)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_bad_lengths_are_refused():
    lm = tiny_classroom(position="learned", max_position_embeddings=32)
    with pytest.raises(ValueError, match="end at 32 tokens, 33 were asked for"):
        stretch_nll(lm, draw_ids(50), 33)
    with pytest.raises(ValueError, match="predicts nothing"):
        stretch_nll(lm, draw_ids(1), 8)
    with pytest.raises(ValueError, match="must not decrease"):
        reach_nll(lm, draw_ids(20), 8, longest=32, n_stretches=2, n_last=4)


def test_learned_positions_end_and_nothing_is_invented(monkeypatch):
    monkeypatch.setattr(lengths, "_lengths", lambda setting: [16, 32, 48])
    lm = tiny_classroom(position="learned", max_position_embeddings=32)
    table = pd.DataFrame(lengths.measure(setting_of(lm), {"kind": "quality", "model": "tiny"}))
    beyond = table[table.length > 32]
    assert len(beyond) == 2 and beyond.nll.isna().all() and beyond.perplexity.isna().all()
    assert (beyond.note == "positions end at 32 tokens").all() and (beyond.n_predicted == 0).all()
    known = table[table.length <= 32]
    assert known.nll.notna().all() and np.allclose(known.perplexity, np.exp(known.nll))
    assert set(table.kind) == {"quality", "sliding"} and (table.position == "learned").all()


def test_speed_rows_take_turns_and_leave_the_models_alone(monkeypatch):
    models = [tiny_classroom(torch.float32, position=one) for one in ("sinusoidal", "alibi")]
    lms = [LM(lm.model, None, lm.model.config.position) for lm in models]
    before = [snapshot(lm) for lm in lms]
    table = pd.DataFrame(lengths.measure(setting_of(*lms), {"kind": "speed", "length": 64}))
    assert all(map(same, before, map(snapshot, lms)))
    seen = table.groupby(["phase", "attention"]).size()
    assert seen.to_dict() == {
        ("inference", "eager"): 2,
        ("inference", "sdpa"): 2,
        ("training", "eager"): 2,
    }
    assert (table[table.model == "sinusoidal"].speed_ratio == 1).all()
    assert (table.words_per_second > 0).all() and (table.peak_mb > 0).all()
    assert table.timing.str.contains("median of 3 alternating turns").all()


def test_a_training_step_trains_its_own_copy(monkeypatch):
    lm, copies, deepcopy = tiny_classroom(torch.float32), [], copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", lambda x, *memo: copies.append(deepcopy(x)) or copies[-1])
    before, batch = snapshot(lm), draw_ids(66).view(2, 33)
    step = training_step(lm, batch, RECIPES["smoke"])
    monkeypatch.undo()
    model = next(one for one in copies if isinstance(one, type(lm.model)))
    weight = model.lm_head.weight.clone()
    step()
    assert not torch.equal(weight, model.lm_head.weight) and same(before, snapshot(lm))


# What a call costs ------------------------------------------------------------------------


def test_peak_memory_counts_what_is_held_at_once():
    def call() -> torch.Tensor:
        first = torch.zeros(1000)
        second = first.clone()  # both are held: 8,000 bytes
        del first
        return second.neg()  # again two

    assert peak_bytes_of(call, torch.device("cpu")) == 8000


def test_peak_memory_of_the_same_call_is_the_same(capfd):
    step = inference_step(tiny_classroom(), draw_ids(66).view(2, 33), None)
    peaks = {peak_bytes_of(step, torch.device("cpu")) for _ in range(3)}
    assert len(peaks) == 1 and capfd.readouterr().err == ""


# Mechanisms ------------------------------------------------------------------------


def states(heads: int = 4, shared: int = 2, length: int = 40) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, n, length, 8, dtype=torch.float64, generator=draw)
        for n in (heads, shared, shared)
    ]


def test_top_k_is_a_softmax_over_the_highest_scores():
    query, key, value = states()
    output, attention = mechanisms.top_k_attention(
        costs._Site(2), query, key, value, None, n_keys=3, scaling=0.5
    )
    for row, head, place in ((0, 0, 0), (0, 3, 1), (1, 2, 2), (1, 1, 39)):
        scores = [float(query[row, head, place] @ k) * 0.5 for k in key[row, head // 2]]
        seen = sorted(range(place + 1), key=lambda i: -scores[i])[:3]
        total = sum(math.exp(scores[i]) for i in seen)
        mixed = sum(math.exp(scores[i]) / total * value[row, head // 2, i] for i in seen)
        torch.testing.assert_close(output[row, place, head], mixed)
        assert sorted(attention[row, head, place].nonzero().flatten().tolist()) == sorted(seen)


@pytest.mark.parametrize("position", ["rope", "alibi", "t5"])
@pytest.mark.parametrize("way", ["top", "window", "sdpa", "eager"])
def test_with_all_keys_every_mechanism_is_full_attention(position, way):
    lm, ids = tiny_classroom(position=position), draw_ids(41)
    made = {
        "top": lambda: mechanisms.top_k(40),
        "window": lambda: mechanisms.local_window(lm, 40, 40),
        "sdpa": mechanisms.sdpa,
        "eager": mechanisms.eager,
    }
    expected = stretch_nll(lm, ids, 40)
    with mechanisms.attending(made[way]()) as name:
        found = stretch_nll(lm, ids, 40, attention=name)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_flex_is_full_attention(monkeypatch):
    # Not compiled: the same rule, and no half minute.
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    query, key, value = states()
    found, expected = (
        one.attend(costs._Site(2), query, key, value, mask, scaling=0.5)[0]
        for one, mask in (
            (mechanisms.flex(40, torch.device("cpu")), None),
            (mechanisms.eager(), mechanisms.causal_mask(query, 40)),
        )
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("n_sink", "n_recent"), [(0, 8), (2, 6)])
def test_local_windows_see_what_the_policy_keeps(n_sink, n_recent):
    query, key, value = states(shared=4)
    lm = tiny_classroom()
    output, _ = mechanisms.local_window(lm, 40, n_recent, n_sink).attend(
        costs._Site(1), query, key, value, None, scaling=0.5
    )
    policy = SinkWindow(n_sink, n_recent) if n_sink else Window(n_recent)
    for place in range(40):
        kept = policy.keep(place + 1)
        weights = (query[0, 1, place] @ key[0, 1, kept].T * 0.5).softmax(-1)
        torch.testing.assert_close(output[0, place, 1], weights @ value[0, 1, kept])


def test_fewer_keys_change_the_result():
    lm, ids = tiny_classroom(), draw_ids(41)
    with mechanisms.attending(mechanisms.top_k(1)) as name:
        found = stretch_nll(lm, ids, 40, attention=name)
    assert (found - stretch_nll(lm, ids, 40)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="n_keys must be at least 1"):
        with mechanisms.attending(mechanisms.top_k(0)) as name:
            stretch_nll(lm, ids, 40, attention=name)


def test_after_an_exception_the_model_is_as_it_was():
    lm, ids = tiny_classroom(), draw_ids(41)
    before, expected = snapshot(lm), stretch_nll(lm, ids, 40)

    def breaks(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with mechanisms.attending(mechanisms.Mechanism("breaks", breaks)) as name:
            with pytest.raises(RuntimeError, match="one mechanism is measured at a time"):
                mechanisms.attending(mechanisms.eager()).__enter__()
            stretch_nll(lm, ids, 40, attention=name)
    assert same(before, snapshot(lm)) and torch.equal(expected, stretch_nll(lm, ids, 40))
    assert mechanisms.MEASURED not in ALL_ATTENTION_FUNCTIONS
    assert mechanisms.MEASURED not in ALL_MASK_ATTENTION_FUNCTIONS


def test_heads_that_share_keys_hold_fewer_bytes():
    lms = [
        LM(tiny_classroom(num_attention_heads=6, num_key_value_heads=n).model, None, f"kv{n}")
        for n in (6, 2, 1)
    ]
    table = pd.DataFrame(costs.measure(setting_of(*lms), {"kind": "heads", "length": 32}))
    # Keys and values, 3 layers, 8 coordinates of 8 bytes per token and head.
    assert table.cache_bytes.tolist() == [2 * 3 * 8 * 8 * 32 * n for n in (6, 2, 1)]
    assert table.mechanism.tolist() == ["multi-head", "grouped-query", "multi-query"]
    assert (table.ms > 0).all() and table.ms_ratio.iloc[0] == 1


def test_what_a_device_lacks_is_a_row_with_a_reason(monkeypatch):
    def lacking() -> mechanisms.Mechanism:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(costs, "_mechanisms", lambda *_: {"eager": mechanisms.eager, "x": lacking})
    table = pd.DataFrame(costs.measure(setting_of(tiny_llama()), {"kind": "time", "length": 16}))
    row = table[table.mechanism == "x"].iloc[0]
    assert row.note == "not on this device: no such kernel" and math.isnan(row.ms)


# Whole runs ------------------------------------------------------------------------


@pytest.fixture
def random_text(monkeypatch):
    monkeypatch.setattr(Setting, "ids", lambda self, lm, n: draw_ids(n))


def test_train_short_test_long_runs(monkeypatch, random_text):
    monkeypatch.setattr(lengths, "_n_tokens", lambda setting: 601)
    lms = [
        LM(tiny_classroom(torch.float32, position=one, max_position_embeddings=64).model, None, one)
        for one in ("sinusoidal", "learned", "rope", "t5", "alibi", "none")
    ]
    table = experiments.run("train_short_test_long", lms, quick=True, text="stories")
    wanted = {"model", "position", "length", "nll", "perplexity", "train_length", "kind"}
    assert wanted <= set(table.columns)
    quality = table[table.kind == "quality"]
    assert not quality.duplicated(["model", "length"]).any() and len(quality) == 6 * 4
    answers = [claim.judge(table) for claim in lengths.CLAIMS]
    assert all(agrees in (True, False) and told for agrees, told in answers)
    assert len(lengths.draw(table).axes) == 2


def test_attention_costs_runs_and_is_kept_whole(random_text, tmp_path):
    lms = [
        LM(
            tiny_classroom(
                torch.float32,
                num_attention_heads=4,
                num_key_value_heads=n,
                max_position_embeddings=64,
            ).model,
            None,
            name,
        )
        for name, n in (("heads-multi", 4), ("heads-grouped", 2), ("heads-single", 1))
    ]
    table = experiments.run("attention_costs", lms, quick=True, text="stories")
    assert set(table.kind) == {"time", "quality", "heads quality", "heads"}
    answers = [claim.judge(table) for claim in costs.CLAIMS]
    assert all(agrees in (True, False) and told for agrees, told in answers)
    assert len(costs.draw(table).axes) == 4
    path = experiments.save_table(table, tmp_path / "costs.json")
    again = experiments.load_table(path)
    assert json.loads(path.read_text())["experiment"] == "attention_costs"
    assert [claim.judge(again)[0] for claim in costs.CLAIMS] == [one for one, _ in answers]


def test_claims_that_a_table_cannot_decide_say_why():
    table = pd.DataFrame(
        {"kind": ["quality"], "position": ["alibi"], "length": [64], "train_length": [64],
         "perplexity": [20.0], "model": ["m"], "mechanism": ["sdpa"]}
    )  # fmt: skip
    for claim in (*lengths.CLAIMS, *costs.CLAIMS):
        agrees, told = claim.judge(table)
        assert agrees is None and told


def curves(**values: list[float]) -> pd.DataFrame:
    rows = [
        {"kind": kind, "model": name, "position": name, "length": 64 * 2**i, "train_length": 64,
         "perplexity": value}
        for name, line in values.items()
        for i, value in enumerate(line)
        for kind in ("quality", "sliding")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_judges_follow_the_numbers():
    judge = {claim.says.split()[0]: claim.judge for claim in lengths.CLAIMS[:4]}
    good = curves(sinusoidal=[20, 40, 90], rope=[20, 22, 40], t5=[20, 19.8, 21], alibi=[20, 19, 18])
    assert [judge[one](good)[0] for one in ("Sinusoidal", "Rotary", "The", "ALiBi")] == [True] * 4
    bad = curves(sinusoidal=[20, 20, 19], rope=[20, 30, 60], t5=[20, 50, 90], alibi=[20, 19, 21])
    assert [judge[one](bad)[0] for one in ("Sinusoidal", "Rotary", "The", "ALiBi")] == [False] * 4


def test_claims_on_retrained_models_need_every_seed():
    lines = {"sinusoidal": [20, 40, 90], "rope": [20, 22, 40], "alibi": [19, 18.9, 18.9]}
    claims = experiments.experiment("retrained_lengths").claims
    good = [curves(**lines).assign(run=f"seed {seed}") for seed in range(3)]
    assert [claim.judge(pd.concat(good))[0] for claim in claims] == [True] * 5
    other = curves(**lines | {"alibi": [21, 22, 23]}).assign(run="seed 3")
    answers = [claim.judge(pd.concat([*good, other])) for claim in claims]
    assert [agrees for agrees, _ in answers] == [True, True, None, None, None]
    assert all(f"seed {seed}: " in told for _, told in answers for seed in range(4))
    assert [claim.judge(other)[0] for claim in claims] == [True, True, False, False, False]


def test_retrained_lengths_runs(monkeypatch, random_text):
    monkeypatch.setattr(lengths, "_n_tokens", lambda setting: 601)
    lms = [
        LM(
            tiny_classroom(torch.float32, position=one, max_position_embeddings=64).model,
            None,
            name,
        )
        for one, name in (("rope", "position-rope"), ("rope", "position-rope-seed-2"))
    ]
    table = experiments.run("retrained_lengths", lms, quick=True, text="stories")
    runs = table.groupby("model").run.unique().map(list).to_dict()
    assert runs == {"position-rope": ["seed 0"], "position-rope-seed-2": ["seed 2"]}
    (ax,) = experiments.experiment("retrained_lengths").draw(table).axes
    assert {"position-rope", "position-rope-seed-2"} <= {line.get_label() for line in ax.lines}


# Figures ------------------------------------------------------------------------


def test_plot_lengths_draws_the_table():
    table = curves(alibi=[20, 19, 18], learned=[21, math.nan, math.nan])
    ax = plot_lengths(table[table.kind == "quality"])
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["ALiBi"].get_xdata().tolist() == [64, 128, 256]
    assert lines["ALiBi"].get_ydata().tolist() == [20, 19, 18]
    assert ax.get_ylabel() == "perplexity (log scale)"
    assert lines["learned"].get_ydata().tolist() == [21]
    assert any(line.get_xdata() == [64, 64] for line in ax.lines if len(line.get_xdata()) == 2)
    shown = " ".join(text.get_text() for text in ax.texts)
    assert "training length (64)" in shown and "learned: 21.0 (ends at 64)" in shown
    with pytest.raises(ValueError, match="lacks perplexity"):
        plot_lengths(table.drop(columns="perplexity"))
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_lengths(table.assign(perplexity=math.nan))


def test_plot_costs_draws_the_table():
    table = pd.DataFrame(
        {"mechanism": ["eager", "eager", "full", "flash"], "length": [128, 256, 256, 128],
         "ms": [1.0, 4.0, 2.0, math.nan]}
    )  # fmt: skip
    ax = plot_costs(table, references=["full"])
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["eager"].get_ydata().tolist() == [1, 4]
    assert ax.get_ylabel() == "time (ms, log scale)"
    assert list(lines["full"].get_ydata()) == [2, 2] and "flash" not in lines
    with pytest.raises(ValueError, match="lacks peak_mb"):
        plot_costs(table, "peak_mb")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_costs(table[table.mechanism == "flash"])
