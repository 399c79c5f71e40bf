"""Caches and recall: tables against naive decoding, queries by hand, claims judged both ways."""

import dataclasses
import json
import math
import multiprocessing
import random
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from naive import naive_logits
from reference import tiny_classroom
from transformers import AutoTokenizer

from sinkviz.experiments import asking, caching, endless, limits, methods, queries, recall
from sinkviz.experiments.asking import beyond_chance, gone, share_right
from sinkviz.experiments.running import Setting, experiment, load_table, run, save_table
from sinkviz.experiments.scales import binned, mean_nll, position_edges
from sinkviz.models import LM, assets_folder
from sinkviz.plots import (
    plot_cache_sizes,
    plot_first_tokens,
    plot_forgetting,
    plot_method_costs,
    plot_nll_bins,
    plot_recall,
)
from sinkviz.policies import TOVA, Dense, Recompute, SinkWindow, Window, parse_policy
from sinkviz.records import StreamRun

FOUR = ("Dense", "0+16", "recompute 16", "4+12")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(assets_folder() / "models" / "classroom-rope")


@pytest.fixture(scope="module")
def exact(tokenizer) -> LM:
    """A random model of two layers in float64, trained on nothing, 32 tokens at a time."""
    lm = tiny_classroom(vocab_size=2048, max_position_embeddings=32, num_hidden_layers=2)
    return LM(lm.model, tokenizer, "tiny")


@pytest.fixture(scope="module")
def setting(exact) -> Setting:
    return Setting({"tiny": exact}, "stories", quick=True)


def naive_nll(lm: LM, ids: torch.Tensor, policy) -> np.ndarray:
    """Nll of each token, NaN for the first, by the definition of the policy."""
    table = naive_logits(lm, ids[:-1], policy).log_softmax(-1)
    found = [-float(row[token]) for row, token in zip(table, ids[1:].tolist(), strict=True)]
    return np.array([math.nan, *found])


# The tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", FOUR)
def test_four_methods_equal_naive_decoding(setting, exact, policy):
    cell = {"model": "tiny", "kind": "nll", "policy": policy, "tokens": 60}
    rows = methods.FOUR_METHODS.measure(setting, cell)
    expected = naive_nll(exact, setting.ids(exact, 60), parse_policy(policy))
    assert rows[0]["first"] == 1 and rows[-1]["stop"] == 60
    assert any(row["first"] == 17 for row in rows), "a stretch begins with the first eviction"
    for row in rows:
        part = expected[row["first"] : row["stop"]]
        assert row["nll"] == pytest.approx(part.mean(), abs=1e-9)


@pytest.mark.parametrize("policy", FOUR)
def test_costs_are_of_real_steps(setting, exact, policy):
    found = {}
    for length in (16, 48):
        cell = {"model": "tiny", "kind": "length", "policy": policy, "tokens": length}
        (found[length],) = methods.FOUR_METHODS.measure(setting, cell)
    assert all(row["ms_per_token"] > 0 for row in found.values())
    per_token = 2 * 2 * 3 * 16 * 8  # keys and values, layers, heads, coordinates, bytes
    if policy == "Dense":
        grown = found[48]["cache_bytes"] - found[16]["cache_bytes"]
        assert grown == 32 * per_token
    elif policy.startswith("recompute"):
        assert found[48]["cache_bytes"] == 0
    else:
        assert found[48]["cache_bytes"] == found[16]["cache_bytes"] >= 16 * per_token


@pytest.mark.parametrize("first_tokens", ["text", "newlines"])
def test_first_tokens_equal_naive_decoding(setting, exact, tokenizer, first_tokens):
    cell = {"model": "tiny", "policy": "4+12", "tokens": 60, "first_tokens": first_tokens}
    (row,) = caching.X_PLUS_Y.measure(setting, cell)
    ids = setting.ids(exact, 60)
    if first_tokens == "newlines":
        ids = torch.tensor([*[tokenizer.encode("a\n")[-1]] * 4, *ids[4:].tolist()])
    expected = naive_nll(exact, ids, SinkWindow(4, 12))[17:].mean()
    assert row["nll"] == pytest.approx(expected, abs=1e-9)
    assert row["perplexity"] == pytest.approx(math.exp(expected))
    assert (row["n_sink"], row["cache"]) == (4, 16)


def test_x_plus_y_asks_for_newlines_only_with_a_tokenizer(setting, exact):
    whole = caching.X_PLUS_Y.cells(setting)
    assert [cell["policy"] for cell in whole] == "0+16 1+15 2+14 4+12 8+8 4+12".split()
    bare = Setting({"bare": LM(exact.model, None, "bare")}, quick=True)
    assert {cell["first_tokens"] for cell in caching.X_PLUS_Y.cells(bare)} == {"text"}


def test_cache_sizes_are_judged_by_the_same_tokens(setting, exact):
    cells = caching.CACHE_SIZES.cells(setting)
    assert {cell["start"] for cell in cells} == {65} and cells[-1]["policy"] == "4+60"
    cell = {"model": "tiny", "policy": "4+8", "tokens": 50, "start": 33}
    (row,) = caching.CACHE_SIZES.measure(setting, cell)
    expected = naive_nll(exact, setting.ids(exact, 50), SinkWindow(4, 8))[33:].mean()
    assert row["nll"] == pytest.approx(expected, abs=1e-9)


def test_no_cache_is_longer_than_a_table_of_positions(tokenizer):
    model = tiny_classroom(position="learned", vocab_size=2048, max_position_embeddings=32).model
    setting = Setting({"learned": LM(model, tokenizer, "learned")}, quick=True)
    sizes = [parse_policy(cell["policy"]).cache_size for cell in caching.CACHE_SIZES.cells(setting)]
    assert max(sizes) == 32


# Stretches --------------------------------------------------------------------------------------


def test_stretches_add_up_to_the_whole():
    nll = np.random.default_rng(0).random(500)
    nll[0] = np.nan
    rows = pd.DataFrame(binned(nll, position_edges(64, 500)))
    assert mean_nll(rows) == pytest.approx(nll[1:].mean())
    assert mean_nll(rows, 65) == pytest.approx(nll[65:].mean())
    assert mean_nll(rows, 65, 129) == pytest.approx(nll[65:129].mean())
    assert math.isnan(mean_nll(rows, 501))


def test_a_short_text_ends_its_stretches():
    assert binned(np.array([np.nan, 1.0, 3.0]), [1, 2, 9, 20])[-1]["stop"] == 3


# Endless ----------------------------------------------------------------------------------------


def test_a_short_text_is_read_again(exact, tmp_path):
    (tmp_path / "short.txt").write_text("Ada had a dog.")
    setting = Setting({"tiny": exact}, str(tmp_path / "short.txt"))
    once = exact.encode("Ada had a dog.").tolist()
    ids, before = endless.endless_ids(setting, exact, 3 * len(once))
    assert before == len(once) and len(ids) == 3 * len(once)
    assert ids.tolist()[: 2 * len(once) - 1] == [*once, *once[1:]]
    assert endless.endless_ids(Setting({}, "stories"), exact, 50)[1] == 50


def test_reading_stops_where_a_method_breaks(exact, monkeypatch):
    asked = []

    def fake(explodes_at: float, memory: float = math.inf):
        def score(lm, ids, policy):
            asked.append(len(ids))
            if len(ids) > memory:
                raise MemoryError
            nll = np.where(np.arange(len(ids)) < explodes_at, 3.0, 9.0)
            return StreamRun(policy, ids.numpy(), nll)

        return score

    ids = torch.zeros(1000, dtype=torch.long)
    monkeypatch.setattr(endless, "score", fake(100))
    reading = endless.read_until_it_breaks(exact, ids, Window(16), 20)
    assert reading.ended == "nll exploded" and asked == [20, 80, 320]
    monkeypatch.setattr(endless, "score", fake(math.inf))
    assert endless.read_until_it_breaks(exact, ids, Window(16), 20).ended == "text"
    monkeypatch.setattr(endless, "score", fake(math.inf, memory=200))
    reading = endless.read_until_it_breaks(exact, ids, Dense(), 20)
    assert reading.ended == "memory" and len(reading.run.nll) == 80
    monkeypatch.setattr(endless, "score", fake(math.inf, memory=0))
    assert endless.read_until_it_breaks(exact, ids, Dense(), 20).run is None
    learned = LM(tiny_classroom(position="learned").model, None, "learned")
    monkeypatch.setattr(endless, "score", fake(math.inf))
    reading = endless.read_until_it_breaks(learned, ids, Dense(), 20)
    assert reading.ended == "positions" and len(reading.run.nll) == learned.train_length


def test_an_old_stream_is_as_good_as_a_fresh_one(setting, exact):
    cell = {"model": "tiny", "policy": "4+12", "tokens": 600, "asked": 600}
    table = pd.DataFrame(endless.ENDLESS.measure(setting, cell))
    checks = table["off"].dropna()
    assert len(checks) == 5 and checks.max() < 1e-9
    assert set(table["ended"]) == {"text"} and table["stop"].max() == 600
    # Sinks that fall behind are another matter: the check sees it.
    ids, policy = setting.ids(exact, 600), SinkWindow(4, 12, "text")
    nll = endless.score(exact, ids, policy).nll
    rows = endless._against_fresh(exact, ids, policy, nll)
    assert max(row["off"] for row in rows) > 1e-3


def test_broken_from():
    reference = pd.DataFrame({"first": [1, 5, 9], "stop": [5, 9, 13], "nll": [3.0, 3.0, 3.0]})
    worse = reference.assign(nll=[3.0, 4.0, 4.0])
    assert endless.broken_from(worse, reference) == 5
    assert endless.broken_from(reference, reference) is None
    assert endless.broken_from(reference.assign(nll=[4.0, 4.0, 3.0]), reference) is None
    assert endless.broken_from(reference.assign(nll=[4.0, 4.0, 4.0]), reference) == 1


# Queries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_lines_back", [1, 5, 10, 40])
def test_names_are_told_once_and_asked_for_later(n_lines_back):
    text, asked = queries.names_text(n_lines_back, 12, seed=3)
    assert len(asked) == 12 and queries.names_text(n_lines_back, 12, seed=3) == (text, asked)
    for query in asked:
        name = query.candidates[query.answer]
        assert len(set(query.candidates)) == 8
        for place in (query.told, query.start):
            assert text[place:].startswith(name)
        between = text[query.told + len(name) : query.start]
        # A query and a line may share their turn, so that there are a few lines more.
        assert n_lines_back <= between.count("\n") <= n_lines_back + 1 + n_lines_back // 10
        assert name not in between
        since = text[query.told : query.start]
        others = set(query.candidates) - {name}
        assert n_lines_back > 5 or not any(other in since for other in others)


@pytest.mark.parametrize("n_lines_back", [1, 7, 25])
def test_codes_belong_to_their_lines(n_lines_back):
    text, asked = queries.codes_text(n_lines_back, 12, seed=3)
    lines = text.splitlines()
    codes = dict(line.removesuffix(">.").split(" has the code <") for line in lines)
    assert len(asked) == 12
    for query in asked:
        code = query.candidates[query.answer]
        assert text[query.told :].startswith(code) and text[query.start :].startswith(code)
        stem = text[: query.start].splitlines()[-1]
        number = int(stem.split("line ")[1].split()[0])
        assert codes[f"Line {number}"] == code
        assert len({one[0] for one in query.candidates}) == 8, "first tokens must differ"


def test_another_seed_is_another_text():
    for make in (queries.names_text, queries.codes_text):
        assert make(3, 5, seed=1)[0] != make(3, 5, seed=2)[0]
        with pytest.raises(ValueError, match="n_lines_back"):
            make(0, 5)


@pytest.mark.parametrize("policy", [parse_policy(text) for text in FOUR], ids=FOUR)
def test_choices_equal_naive_decoding(exact, policy):
    asked = asking.ask_back(exact, "names", 1, 2, seed=1)
    row = asked.candidates[torch.arange(2), asked.answers]
    assert asked.ids[[p + 1 for p in asked.positions]].tolist() == row.tolist()
    logits = naive_logits(exact, asked.ids[: asked.positions[-1] + 1], policy)
    best = [
        max(range(8), key=lambda one, p=p, row=row: float(logits[p, row[one]]))
        for p, row in zip(asked.positions, asked.candidates, strict=True)
    ]
    assert asking.choose(exact, asked, policy).tolist() == best
    seen = [t in policy.keep(p + 1) for p, t in zip(asked.positions, asked.told, strict=True)]
    assert asked.seen(policy).tolist() == seen
    with pytest.raises(ValueError, match="tova:8 keeps depends on attention"):
        asked.seen(TOVA(8))
    counted = asking.answers(exact, asked, policy)
    right = [one == two for one, two in zip(best, asked.answers.tolist(), strict=True)]
    assert (counted["right"], counted["seen"]) == (sum(right), sum(seen))
    assert counted["right_seen"] == sum(a and b for a, b in zip(right, seen, strict=True))
    assert counted["chance"] == 1 / 8


def test_who_cannot_be_asked(exact):
    with pytest.raises(ValueError, match="no tokenizer that tells"):
        asking.ask_back(LM(exact.model, None, "bare"), "codes", 1, 2, seed=0)
    with pytest.raises(ValueError, match="known are names, codes"):
        asking.ask_back(exact, "riddles", 1, 2, seed=0)
    twins = queries.Query(14, ("Ada", "Ada"), 0)
    with pytest.raises(ValueError, match="same token"):
        asking.prepare(exact, "The dog saw  Ada.", [twins])


def arc_file(path, n: int = 6):
    """Write questions of ARC's form that we made up, with three or four options."""
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for nth in range(n):
            options = draw.sample(["rain", "soup", "sand", "wool"], 3 + nth % 2)
            labels = list("ABCD" if nth % 3 else "1234")[: len(options)]
            record = {
                "id": f"ours-{nth}",
                "question": "What falls from a cloud?",
                "choices": {"text": options, "label": labels},
                "answerKey": draw.choice(labels),
            }
            file.write(json.dumps(record) + "\n")
    return path


def test_multiple_choice_from_a_file(exact, tmp_path):
    path = arc_file(tmp_path / "arc.jsonl", 4)
    table = run("stream_eval", exact, quick=True, text=f"arc:{path}")
    assert set(table["task"]) == {"arc"} and len(table) == 4
    assert (table["queries"] == 4).all() and (table["seen"] == 0).all()
    assert table["chance"].iloc[0] == pytest.approx((1 / 3 + 1 / 4) / 2)
    asked = asking.prepare(exact, *queries.choices_text(queries.read_choices(str(path))))
    logits = naive_logits(exact, asked.ids[: asked.positions[-1] + 1], Window(16))
    right = 0
    for position, row, answer in zip(asked.positions, asked.candidates, asked.answers, strict=True):
        options = [float(logits[position, one]) for one in row.tolist() if one >= 0]
        right += options.index(max(options)) == answer
    assert table.set_index("method").loc["Window", "right"] == right
    (ax,) = recall.STREAM_EVAL.draw(table).axes
    assert [bar.get_height() for bar in ax.patches] == table["accuracy"].tolist()


def test_questions_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="ARC-Easy"):
        list(queries.read_choices(str(tmp_path / "absent.jsonl")))
    (tmp_path / "bad.jsonl").write_text("{}\n{")
    with pytest.raises(ValueError, match="line 2"):
        list(queries.read_choices(str(tmp_path / "bad.jsonl")))
    with pytest.raises(ValueError, match="question 0 is not of ARC's form"):
        queries.choices_text([{"question": "?"}])
    with pytest.raises(ValueError, match="at least one"):
        queries.choices_text([])


# Limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", FOUR)
def test_a_beginning_is_forgotten_to_the_bit(setting, exact, policy):
    caches = 2 if policy.startswith("recompute") else 3
    cell = {"model": "tiny", "kind": "beginning", "policy": policy, "caches": caches}
    table = pd.DataFrame(limits.LIMITS.measure(setting, cell))
    changes = table[table["most"].notna()]
    one, other = limits.two_beginnings(setting.ids(exact, 64 + 16 * caches), 32)
    assert torch.equal(one[32:], other[32:]) and torch.equal(one[:4], other[:4])
    assert not torch.equal(one[4:32], other[4:32])
    runs = [naive_nll(exact, part, parse_policy(policy)) for part in (one, other)]
    off = np.abs(runs[0] - runs[1])[32:].reshape(-1, 2).max(1)
    np.testing.assert_allclose(changes["most"], off, atol=1e-9)
    reach = {"Dense": math.inf, "recompute 16": 1}.get(policy, 2)
    gone = changes[changes["caches"] > reach + 0.1]["most"]
    assert (gone == 0).all() and (changes["most"].iloc[0] > 0)
    if policy == "Dense":
        assert changes["most"].iloc[-1] > 1e-6
    else:
        assert table["same"].dropna().tolist() == [1.0]


def test_limits_ask_only_who_can_be_asked(exact):
    bare = Setting({"bare": LM(exact.model, None, "bare")}, quick=True)
    assert {cell["kind"] for cell in limits.LIMITS.cells(bare)} == {"beginning"}


def test_chance_is_counted():
    rows = pd.DataFrame(
        {"queries": [50, 50], "right": [40, 10], "seen": [50, 10], "right_seen": [40, 5]}
    ).assign(chance=0.1)
    assert share_right(rows) == 0.5 and share_right(rows, seen=True) == 45 / 60
    assert share_right(rows, seen=False) == 5 / 40
    assert beyond_chance(rows, seen=False) == pytest.approx(0.025 / math.sqrt(0.09 / 40))
    assert math.isnan(share_right(rows.iloc[:1], seen=False))
    assert beyond_chance(rows.iloc[:1], seen=False) == 0


# Claims -----------------------------------------------------------------------------------------


def verdicts(experiment, table) -> list[bool | None]:
    return [claim.judge(table)[0] for claim in experiment.claims]


def nll_table(**nll: float) -> pd.DataFrame:
    """A table of ``four_methods``: the nll of each method after the first eviction, and costs."""
    rows = []
    for method, policy in zip(("Dense", "Window", "Recompute", "SinkWindow"), FOUR, strict=True):
        row = {"model": "m", "method": method, "policy": policy, "cache": 16, "train_length": 32}
        parts = zip([1, 17, 33, 65], [17, 33, 65, 129], strict=True)
        for first, stop in parts:
            value = nll.get(method, 3.0) if first > 16 else 3.0
            rows.append(row | {"kind": "nll", "first": first, "stop": stop, "nll": value})
        for length in (16, 64):
            slow = {"Recompute": 9.0, "Dense": length / 16}.get(
                method, nll.get("ms", {}).get(length, 1.0)
            )
            size = length * 10 if method == "Dense" else 160
            cost = {"kind": "length", "length": length, "ms_per_token": slow, "cache_bytes": size}
            rows.append(row | cost)
            again = slow * length if method == "Recompute" else slow
            rows.append(row | cost | {"kind": "cache", "cache": length, "ms_per_token": again})
    return pd.DataFrame(rows)


def test_four_methods_are_judged_both_ways():
    agree = nll_table(Dense=5.0, Window=4.0)
    assert verdicts(methods.FOUR_METHODS, agree) == [True] * 5
    flipped = nll_table(Recompute=3.2, ms={16: 1.0, 64: 40.0})
    assert verdicts(methods.FOUR_METHODS, flipped) == [False] * 5
    assert "2.00 nats" in methods.FOUR_METHODS.claims[0].judge(agree)[1]
    short = agree.assign(train_length=500)
    assert methods.FOUR_METHODS.claims[0].judge(short)[0] is None
    both = pd.concat([agree, flipped.assign(model="other")])
    agrees, said = methods.FOUR_METHODS.claims[1].judge(both)
    assert agrees is False and said.startswith("m: ") and "; other: " in said


def sums_table(nll: dict[int, float], newlines: float | None) -> pd.DataFrame:
    rows = [{"n_sink": n, "first_tokens": "text", "nll": value} for n, value in nll.items()]
    if newlines is not None:
        rows.append({"n_sink": 4, "first_tokens": "newlines", "nll": newlines})
    table = pd.DataFrame(rows).assign(model="m", cache=16)
    return table.assign(perplexity=np.exp(table["nll"]))


def test_x_plus_y_is_judged_both_ways():
    agree = sums_table({0: 8.0, 1: 2.5, 2: 2.3, 4: 2.0, 8: 1.99}, 2.1)
    assert verdicts(caching.X_PLUS_Y, agree) == [True] * 4
    flipped = sums_table({0: 3.0, 1: 2.0, 2: 2.0, 4: 2.0, 8: 1.5}, 3.0)
    assert verdicts(caching.X_PLUS_Y, flipped) == [True, False, False, False]
    flat = sums_table({0: 2.0, 1: 2.0, 2: 2.0, 4: 2.0, 8: 2.0}, None)
    assert verdicts(caching.X_PLUS_Y, flat)[:2] == [False, None]


def sizes_table(*perplexities: float) -> pd.DataFrame:
    table = pd.DataFrame({"cache": [8, 16, 32, 64], "perplexity": perplexities})
    return table.assign(model="m", train_length=32, nll=np.log(table["perplexity"]))


def test_cache_sizes_are_judged_both_ways():
    assert verdicts(caching.CACHE_SIZES, sizes_table(9, 8, 8.5, 20)) == [True, True]
    assert verdicts(caching.CACHE_SIZES, sizes_table(9, 8, 7, 6)) == [False, False]
    within = sizes_table(9, 8, 7, 6).iloc[:3]
    assert verdicts(caching.CACHE_SIZES, within) == [False, None]


def endless_table(window: float, off: float, ended: str) -> pd.DataFrame:
    rows = []
    for method, policy in zip(("Dense", "Window", "Recompute", "SinkWindow"), FOUR, strict=True):
        parts = zip([1, 17, 33, 65, 129], [17, 33, 65, 129, 257], strict=True)
        for first, stop in parts:
            worse = window if method in ("Dense", "Window") and first > 16 else 3.0
            rows.append(
                {
                    "model": "m", "method": method, "policy": policy, "cache": 16, "off": None,
                    "first": first, "stop": stop, "nll": worse, "repeats_after": None,
                    "ended": ended if method in ("Dense", "Window") else "text",
                }
            )  # fmt: skip
    rows.append(rows[-1] | {"nll": None, "off": off, "first": 200, "stop": 257})
    return pd.DataFrame(rows)


def test_endless_is_judged_both_ways():
    assert verdicts(endless.ENDLESS, endless_table(4.5, 1e-5, "nll exploded")) == [True, True]
    assert verdicts(endless.ENDLESS, endless_table(3.0, 0.5, "text")) == [False, False]
    said = endless.ENDLESS.claims[1].judge(endless_table(4.5, 0, "memory"))[1]
    assert "broken from token 17 on (memory ended at 257)" in said


def recall_table(window: float, evicted: float, names: float = 0.9) -> pd.DataFrame:
    rows = []
    for method, policy in zip(("Dense", "Window", "Recompute", "SinkWindow"), FOUR, strict=True):
        for task, lines, seen in [
            (t, n, s) for t in ("names", "codes") for n, s in ((1, 200), (9, 0))
        ]:
            share = {"Window": window, "Dense": window}.get(method, names)
            share = 0.1 if task == "codes" else share if seen or method == "Dense" else evicted
            rows.append(
                {
                    "model": "m", "task": task, "method": method, "policy": policy, "lines": lines,
                    "cache": None if method == "Dense" else 16, "distance": 10.0 * lines,
                    "queries": 200, "right": 200 * share, "seen": seen, "tokens": 500,
                    "right_seen": 200 * share if seen else 0, "accuracy": share, "chance": 0.1,
                    "kind": "recall", "layers": 2, "most": None,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_stream_eval_is_judged_both_ways():
    assert verdicts(recall.STREAM_EVAL, recall_table(0.2, 0.1)) == [True, True, True, None]
    assert verdicts(recall.STREAM_EVAL, recall_table(0.9, 0.8)) == [False, False, False, None]
    assert verdicts(recall.STREAM_EVAL, recall_table(0.9, 0.8, names=0.1)) == [None] * 4
    said = recall.STREAM_EVAL.claims[0].judge(recall_table(0.2, 0.1))[1]
    assert "cannot do the task" in said and "90% with sinks, 20% with the window" in said
    arc = recall_table(0.2, 0.9).assign(task="arc")
    assert recall.STREAM_EVAL.claims[3].judge(arc)[0] is True
    assert recall.STREAM_EVAL.claims[3].judge(arc.assign(right=180))[0] is False
    assert recall.STREAM_EVAL.claims[3].judge(arc.assign(right=20))[0] is None


def limits_table(late: float, evicted: float) -> pd.DataFrame:
    lines = recall_table(0.2, evicted).query("task == 'names'")
    rows = [
        {
            "model": "m", "kind": "beginning", "method": method, "policy": policy, "layers": 2,
            "cache": 16, "caches": caches, "most": late if caches > reach else 1.0,
        }
        for method, policy, reach in (("Dense", "Dense", 9), ("Recompute", "recompute 16", 1.2),
                                      ("SinkWindow", "4+12", 2))
        for caches in (0.5, 1.5, 2.5, 3.5)
    ]  # fmt: skip
    rows += [{**rows[-1], "most": None, "same": 0.5 if late else 1.0}]
    return pd.concat([pd.DataFrame(rows), lines])


def test_limits_are_judged_both_ways():
    assert verdicts(limits.LIMITS, limits_table(0.0, 0.1)) == [True] * 4
    flipped = limits_table(0.3, 0.6)
    flipped.loc[flipped["method"] == "Dense", "most"] = 0.0
    assert verdicts(limits.LIMITS, flipped) == [False] * 4
    bare = limits_table(0.0, 0.1).query("kind == 'beginning' and method != 'Dense'")
    assert verdicts(limits.LIMITS, bare) == [None, True, True, None]


# Figures ----------------------------------------------------------------------------------------


def curve(ax, label: str) -> list[float]:
    return next(line for line in ax.lines if line.get_label() == label).get_ydata().tolist()


def test_figures_show_the_tables():
    table = nll_table(Dense=5.0, Window=4.0)
    ax = plot_nll_bins(table[table["kind"] == "nll"])
    assert curve(ax, "Window 0+16") == [3.0, 4.0, 4.0, 4.0]
    assert {"first eviction (16)", "training length (32)"} <= {text.get_text() for text in ax.texts}
    costs = plot_method_costs(table[table["kind"] == "cache"], against="cache")
    assert curve(costs, "Recompute") == [9.0 * 16, 9.0 * 64]
    assert costs.get_ylabel() == "time per token (ms, log scale)"
    assert len(methods.FOUR_METHODS.draw(table).axes) == 4
    sums = sums_table({0: 8.0, 1: 2.5, 4: 2.0}, 2.1)
    assert plot_first_tokens(sums).lines[0].get_ydata() == pytest.approx(np.exp([8.0, 2.5, 2.0]))
    labels = [tick.get_text() for tick in plot_first_tokens(sums).get_xticklabels()]
    assert labels == ["0+16", "1+15", "4+12", "4 × ↵\n+12"]
    sizes = plot_cache_sizes(sizes_table(9, 8, 7, 60))
    assert [line.get_ydata().tolist() for line in sizes.lines[:2]] == [[9, 8, 7, 60], [60]]
    assert sizes.get_ylabel() == "perplexity (log scale)"


def test_figures_of_recall_show_the_tables():
    table = recall_table(0.2, 0.1)
    ax = plot_recall(table[table["task"] == "names"])
    assert curve(ax, "SinkWindow 4+12") == pytest.approx([0.9, 0.1])
    texts = {text.get_text(): text for text in ax.texts}
    assert "cache (16 tokens)" in texts
    # Beside the Axes, where no curve is.
    assert texts["chance"].get_window_extent().x0 > ax.get_window_extent().x1
    assert len(recall.STREAM_EVAL.draw(table).axes) == 2
    limit = limits_table(0.0, 0.1)
    ax = plot_forgetting(limit[limit["most"].notna()])
    assert curve(ax, "SinkWindow 4+12") == [1.0, 1.0, 0.0, 0.0]
    assert ax.get_ylabel() == "largest change of nll (nats, log scale)"
    assert len(limits.LIMITS.draw(limit).axes) == 2


def test_an_early_end_is_named():
    table = endless_table(4.5, 0, "nll exploded")
    table = table[(table["method"] != "Dense") | (table["stop"] < 100)]
    (ax,) = endless.ENDLESS.draw(table).axes
    assert "nll exploded" in {text.get_text() for text in ax.texts}


def test_figures_refuse_what_is_no_such_table():
    empty = pd.DataFrame({"model": []})
    for plot in (plot_nll_bins, plot_cache_sizes, plot_first_tokens, plot_recall, plot_forgetting):
        with pytest.raises(ValueError, match="the table lacks"):
            plot(empty)
    with pytest.raises(ValueError, match="cost must be one of"):
        plot_method_costs(nll_table(), cost="euros")


# Runs -------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """``x_plus_y`` on a grid of four cells of 60 tokens."""
    cells = [
        {"model": "tiny", "policy": policy, "tokens": 60, "first_tokens": "text"}
        for policy in ("0+16", "1+15", "4+12", "8+8")
    ]
    asked = dataclasses.replace(caching.X_PLUS_Y, cells=lambda setting: cells)
    monkeypatch.setattr(caching, "X_PLUS_Y", asked)
    return asked


def test_a_run_goes_on_after_a_kill(small, exact, tmp_path, monkeypatch):
    whole = run("x_plus_y", exact, text="stories")
    measured = []

    def mortal(setting, cell):
        measured.append(cell["policy"])
        if len(measured) == 3:
            raise KeyboardInterrupt
        return small.measure(setting, cell)

    monkeypatch.setattr(caching, "X_PLUS_Y", dataclasses.replace(small, measure=mortal))
    with pytest.raises(KeyboardInterrupt):
        run("x_plus_y", exact, text="stories", folder=tmp_path)
    table = run("x_plus_y", exact, text="stories", folder=tmp_path)
    assert measured == ["0+16", "1+15", "4+12", "4+12", "8+8"]
    pd.testing.assert_frame_equal(table, whole)
    assert not list(tmp_path.iterdir()), "the finished cells are no longer needed"
    again = load_table(save_table(table, tmp_path / "record.json"))
    pd.testing.assert_frame_equal(again, table, check_exact=False, atol=1e-6)
    assert verdicts(caching.X_PLUS_Y, again) == verdicts(caching.X_PLUS_Y, table)


class Client:
    """What Dask's client looks like from here: ``submit`` gives a future."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


class Ray:
    """What the module ``ray`` looks like from here."""

    @staticmethod
    def remote(function):
        class Task:
            @staticmethod
            def remote(*arguments):
                return lambda: function(*arguments)

        return Task

    @staticmethod
    def get(reference):
        return reference()


@pytest.mark.parametrize("kind", ["dask", "ray", "processes"])
def test_a_run_spreads_over_an_executor(small, exact, kind):
    expected = run("x_plus_y", exact, text="stories")
    if kind == "processes":
        # Spawned, as on macOS and Windows: nothing of this process is there but what is sent.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            table = run("x_plus_y", exact, text="stories", executor=pool)
    else:
        executor = Client() if kind == "dask" else Ray
        table = run("x_plus_y", exact, text="stories", executor=executor)
    pd.testing.assert_frame_equal(table, expected)


def test_threads_are_refused(small, exact):
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="threads"):
        run("x_plus_y", exact, executor=pool, text="stories")


@pytest.mark.parametrize("name", ["four_methods", "cache_sizes", "endless", "limits"])
def test_grids_are_plain_and_for_every_model(name, exact):
    setting = Setting({"a": exact, "b": exact}, "stories", quick=True)
    cells = experiment(name).cells(setting)
    assert json.loads(json.dumps(cells)) == cells
    assert {cell["model"] for cell in cells} == {"a", "b"}


def test_policies_of_cells_are_read_back():
    for policy in (Dense(), Window(16), Recompute(16), SinkWindow(4, 12)):
        assert parse_policy(str(policy)) == policy


def test_what_is_gone_is_judged_over_all_distances():
    rows = pd.DataFrame(
        {"queries": [100] * 4, "right": [90, 25, 12, 10], "seen": [100, 0, 0, 0]}
    ).assign(chance=0.125, right_seen=[90, 0, 0, 0], distance=[30.0, 80.0, 120.0, 200.0])
    agrees, said = gone(rows)
    assert agrees is True and "furthest from it 25% at 80 tokens (+3.8)" in said
    assert gone(rows.assign(right=[90, 40, 30, 30]))[0] is False
    assert gone(rows.iloc[:1])[0] is None
