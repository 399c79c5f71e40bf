"""CachePlayer, SoftmaxBench, AlibiFan, SinkBirth and PositionLab: traits, twins and pages."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from reference import tiny_classroom

from sinkviz.capturing import capture
from sinkviz.metrics import SINK_EPSILON
from sinkviz.models import assets_folder
from sinkviz.policies import (
    H2O,
    TOVA,
    Dense,
    Recompute,
    SinkWindow,
    Window,
    register_policy,
    visibility,
)
from sinkviz.positions import alibi_slopes, t5_bucket
from sinkviz.scoring import score
from sinkviz.widgets import AlibiFan, CachePlayer, PositionLab, SinkBirth, SoftmaxBench
from sinkviz.widgets.alibi_fan import MOST_BYTES
from sinkviz.widgets.cache_player import evicted_at
from sinkviz.widgets.position_lab import bucket_edges, checked_rows
from sinkviz.widgets.sink_birth import load_growth
from sinkviz.widgets.softmax_bench import PRESETS, VARIANTS

pytest_plugins = ["browser"]

HOSTILE = [
    "<script>alert(1)</script>",
    "<b id=injected onclick=alert(1)>x</b>",
    "\"quoted'",
    "\u202eright to left",
    "zero\u200bwidth",
    "$x^2$",
    "\U0001f600",
    "long" * 2500,
]
GROWTH = [
    {"step": 10, "tokens": 100, "loss": 4.1, "sink_rate": 0.0, "first_token": [[0.01, 0.02]]},
    {"step": 30, "tokens": 300, "loss": 3.2, "sink_rate": 0.5, "first_token": [[0.2, 0.52]]},
    {"step": 90, "tokens": 900, "loss": 3.0, "sink_rate": 1.0, "first_token": [[0.4, 0.9]]},
]
POLICIES = [Dense(), Window(6), SinkWindow(2, 5), SinkWindow(2, 5, "text"), Recompute(6)]


@register_policy("odd")
@dataclass(frozen=True)
class Odd:
    """The newest token and every second one before it: gaps anywhere."""

    cache_size: int = 9

    def keep(self, n: int) -> list[int]:
        return [*range(0, n - 1, 2), n - 1][-self.cache_size :]


def measured(lengths=(32, 64, 96), positions=("rope", "alibi", "t5")) -> list[dict]:
    """A table of ``train_short_test_long``, measured on random models of this moment."""
    ids = torch.randint(61, (max(lengths),), generator=torch.Generator().manual_seed(0))
    rows = []
    for position in positions:
        lm = tiny_classroom(torch.float32, position=position)
        for length in lengths:
            nll = score(lm, ids[:length], Dense()).mean_nll()
            row = {"model": f"tiny-{position}", "position": position, "length": length}
            rows.append({**row, "nll": nll, "perplexity": math.exp(nll), "train_length": 64})
    return rows


@pytest.fixture(scope="module")
def table() -> list[dict]:
    return measured()


@pytest.fixture(scope="module")
def trace():
    lm = tiny_classroom(torch.float32)
    ids = torch.randint(61, (24,), generator=torch.Generator().manual_seed(0))
    return capture(lm, ids, keep="maps", scores=True)


def numbers(data: bytes, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(data, kind)


def all_widgets(trace, table) -> list:
    return [
        CachePlayer(SinkWindow(4, 8), 24),
        SoftmaxBench(),
        AlibiFan(8, trace),
        SinkBirth({"tiny": GROWTH}),
        PositionLab(table),
    ]


# CachePlayer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [*POLICIES, Odd()], ids=str)
def test_a_token_is_held_until_the_step_it_leaves_at(policy):
    length = 30
    player, seen = CachePlayer(policy, length), visibility(policy, length)
    gone = numbers(player.gone)
    for step in range(1, length + 1):
        held = [i for i in range(step) if gone[i] > step]  # as the page does it
        assert held == seen[step - 1].nonzero().flatten().tolist()
        player.step = step
        assert player.kept == held
        before = seen[step - 2].nonzero().flatten().tolist() if step > 1 else []
        assert player.evicted == sorted({*before} - {*held})


def test_player_tells_the_page_what_it_needs():
    player = CachePlayer(SinkWindow(2, 5, "text"), ["a", "b\n", "c" * 99], step=2)
    assert (player.n_sink, player.cache_size, player.positions) == (2, 7, "text")
    assert player.tokens == ["a", "b↵", "c" * 23 + "…"] and player.step == 2
    assert CachePlayer(Dense(), 3).cache_size == 0 and CachePlayer(Recompute(6), 3).recompute
    assert repr(player) == (
        "CachePlayer(SinkWindow(n_sink=2, n_recent=5, positions='text'): step 2 of 3)"
    )


@pytest.mark.parametrize("policy", [H2O(4, 4), TOVA(8)], ids=str)
def test_player_sends_policies_by_attention_elsewhere(policy):
    with pytest.raises(ValueError, match="SideBySide"):
        CachePlayer(policy, 8)


def test_player_refuses_what_breaks_the_rules():
    class Forgetful:
        cache_size, n_sink, n_recent = 4, 0, None
        recompute, positions, by_attention = False, "cache", False

        def keep(self, n):
            return [0, n - 1] if n % 3 else [n - 1]

    with pytest.raises(ValueError, match="text order|the evicted are gone"):
        CachePlayer(Forgetful(), 8)
    with pytest.raises(ValueError, match="no policy 'x'"):
        CachePlayer("x", 8)
    assert CachePlayer("4+60", 8).policy == SinkWindow(4, 60)
    for tokens in ([], 1001):
        with pytest.raises(ValueError, match="tokens must be 1 to 1000"):
            CachePlayer(Dense(), tokens)
    player = CachePlayer(Dense(), 8)
    for step in (0, 9):
        with pytest.raises(ValueError, match=r"step must be in 1\.\.8"):
            player.step = step
    assert player.step == 8


def test_player_has_a_static_twin():
    figure = CachePlayer(SinkWindow(1, 2), ["a", "b", "c", "d", "e"], step=4).figure()
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == "SinkWindow 1+2, step 4: 3 tokens held, 1 evicted"
    # One line per token held, from its text position to its place in the cache.
    assert [list(line.get_xdata()) for line in ax.lines] == [[0, 0], [2, 1], [3, 2]]
    assert evicted_at(Dense(), 3).tolist() == [4, 4, 4]
    CachePlayer(Dense(), HOSTILE).figure().canvas.draw()
    CachePlayer(SinkWindow(4, 300), 700).figure().canvas.draw()


# SoftmaxBench -----------------------------------------------------------------------------------


def by_hand(logits, sink_logit, gate) -> dict[str, list[float]]:
    weights = [math.exp(one) for one in logits]
    total = sum(weights)
    rows = [
        [w / total for w in weights],
        [w / (total + 1) for w in weights],
        [w / (total + math.exp(sink_logit)) for w in weights],
        [gate * w / total for w in weights],
    ]
    return dict(zip(VARIANTS, rows, strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_share_out_the_mass(name):
    bench = SoftmaxBench()
    bench.preset(name)
    expected = by_hand(*PRESETS[name])
    assert list(bench.shares) == list(VARIANTS)
    for variant, row in bench.shares.items():
        np.testing.assert_allclose(row, expected[variant], rtol=1e-9)


def test_without_a_good_key_only_standard_softmax_must_choose():
    bench = SoftmaxBench()
    bench.preset("no good key")
    sums = {name: row.sum() for name, row in bench.shares.items()}
    assert sums.pop("standard") == pytest.approx(1)
    assert max(sums.values()) < 0.15
    bench.preset("one good key")
    assert min(row[2] for row in bench.shares.values()) > 0.75


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logits": [1.0]}, "2 to 12 keys, got 1"),
        ({"logits": [0.0] * 13}, "2 to 12 keys, got 13"),
        ({"logits": [0.0, 9.0]}, "logits must be in -8..8, got 9"),
        ({"logits": [0.0, math.nan]}, "logits must be in -8..8, got nan"),
        ({"sink_logit": -8.5}, "sink_logit must be in -8..8, got -8.5"),
        ({"gate": 1.5}, "gate must be in 0..1, got 1.5"),
        ({"gate": -3.0}, "gate must be in 0..1, got -3"),
        ({"gate": math.nan}, "gate must be in 0..1, got nan"),
    ],
)
def test_bench_says_what_is_out_of_range(change, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        SoftmaxBench(**change)
    bench = SoftmaxBench()
    with pytest.raises(ValueError, match=re.escape(said)):
        bench.set_trait(*change.popitem())
    assert repr(bench) == repr(SoftmaxBench())


def test_bench_knows_its_presets_and_has_a_twin():
    with pytest.raises(ValueError, match="known are one good key, no good key"):
        SoftmaxBench().preset("x")
    bench = SoftmaxBench([1.0, -1.0], sink_logit=0.5, gate=0.25)
    assert repr(bench) == "SoftmaxBench([1, -1], sink_logit=0.5, gate=0.25)"
    above, below = bench.figure().axes
    assert [bar.get_height() for bar in above.patches] == [1.0, -1.0]
    widths = [bar.get_width() for bar in below.patches]
    np.testing.assert_allclose(widths[:2], bench.shares["standard"])


# AlibiFan ---------------------------------------------------------------------------------------


def test_fan_adds_the_bias_to_the_scores(trace):
    fan = AlibiFan(6, trace)
    fan.head, fan.pair = 2, fan.pairs.index([1, 2])
    slope = float(alibi_slopes(6)[2])
    scores = trace.scores[1, 2]
    for query in (0, 5, 23):
        logits = [scores[query, key] - slope * (query - key) for key in range(query + 1)]
        weights = np.exp(np.array(logits) - max(logits))
        before, after = fan.maps
        np.testing.assert_allclose(before[query], trace.attention[1, 2, query], atol=1e-3)
        np.testing.assert_allclose(after[query, : query + 1], weights / weights.sum(), atol=1e-3)
    assert fan.slope == slope and fan.bias(10) == -10 * slope
    fan.biasing = False
    np.testing.assert_array_equal(*fan.maps)


def test_fan_of_maps_is_that_of_scores(trace):
    maps_only = AlibiFan(4, type(trace)(**{**vars(trace), "scores": None}))
    fan = AlibiFan(4, trace)
    for one in (fan, maps_only):
        one.head, one.pair = 1, 4
    np.testing.assert_allclose(maps_only.maps[1], fan.maps[1], atol=2e-3)


def test_fan_keeps_what_goes_nowhere():
    lm = tiny_classroom(torch.float32, softmax="sink_logit")
    trace = capture(lm, torch.arange(16), keep="maps", scores=True)
    fan = AlibiFan(4, trace)
    assert fan.nulls
    np.testing.assert_allclose(fan.maps[0], trace.attention[0, 0], atol=1e-3)
    # The bias makes keys cost more, so that more goes to nowhere.
    assert (fan.maps[1].sum(-1) <= fan.maps[0].sum(-1) + 1e-9).all()
    assert fan.maps[1].sum() < fan.maps[0].sum() - 0.1
    chosen = capture(lm, torch.arange(16), keep=[(1, 0), (2, 2)])
    assert AlibiFan(4, chosen).pairs == [[1, 0], [2, 2]]


def test_fan_shows_what_fits():
    lm = tiny_classroom(torch.float32, num_attention_heads=12, num_hidden_layers=2)
    trace = capture(lm, torch.arange(60), keep="maps")
    fan = AlibiFan(12, trace)
    strongest = int(trace.received[..., 0].mean(1).argmax())
    assert fan.pairs == [[strongest, head] for head in range(12)]
    assert len(fan.tokens) == 48 and len(fan.scores) <= MOST_BYTES
    np.testing.assert_allclose(fan.maps[0], trace.attention[strongest, 0, :48, :48], atol=2e-3)
    assert AlibiFan(4, trace, layer=-1).pairs[0] == [1, 0]
    with pytest.raises(IndexError, match=r"layer must be in 0\.\.1"):
        AlibiFan(4, trace, layer=2)


def test_fan_without_a_trace_shows_the_bias_alone():
    fan = AlibiFan(2)
    before, after = fan.maps
    np.testing.assert_allclose(before[3, :4], 0.25)
    weights = np.exp(-fan.slope * np.arange(3, -1, -1))
    np.testing.assert_allclose(after[3, :4], weights / weights.sum(), rtol=1e-6)
    fan.n_heads, fan.head = 8, 7
    fan.n_heads = 4
    assert fan.head == 3
    assert repr(fan) == "AlibiFan(4 heads)"


def test_fan_says_what_is_wrong(trace):
    with pytest.raises(ValueError, match=r"n_heads must be in 1\.\.32, got 33"):
        AlibiFan(33)
    bare = capture(tiny_classroom(torch.float32), torch.arange(9), keep="statistics")
    with pytest.raises(ValueError, match="keep='maps'"):
        AlibiFan(4, bare)
    fan = AlibiFan(4, trace)
    for name, value in (("head", 4), ("pair", 9), ("distance", 65)):
        with pytest.raises(ValueError, match=f"{name} must be in 0"):
            fan.set_trait(name, value)
    assert repr(fan) == "AlibiFan(4 heads, tiny: 24 tokens)"
    _, before, after = fan.figure().axes
    (bar,) = after.child_axes
    assert bar.get_ylabel().replace("\n", " ") == "attention (share, square-root scale)"
    for ax, weights in zip((before, after), fan.maps, strict=True):
        assert [one.get_text() for one in ax.texts] == [f"first token {weights[1:, 0].mean():.0%}"]
    assert not before.child_axes and before.images[0].get_clim() == after.images[0].get_clim()


# SinkBirth --------------------------------------------------------------------------------------


def test_birth_of_a_bundled_model_is_its_record():
    path = assets_folder() / "models" / "classroom-rope" / "growth.jsonl"
    lines = {one["step"]: one for one in map(json.loads, path.read_text().splitlines())}
    birth = SinkBirth("classroom-rope")
    model = birth.models[0]
    assert model["steps"] == sorted(lines)
    shares = numbers(birth.firsts[0], "<u2").reshape(-1, model["layers"], model["heads"]) / 65535
    losses, rates = numbers(birth.losses[0]), numbers(birth.rates[0])
    for nth, step in enumerate(model["steps"]):
        np.testing.assert_allclose(shares[nth], lines[step]["first_token"], atol=1e-5)
        assert losses[nth] == pytest.approx(lines[step]["loss"])
        assert rates[nth] == pytest.approx(lines[step]["sink_rate"])
    last = lines[birth.step]
    assert birth.sink_rate("classroom-rope") == last["sink_rate"] > 0.5
    assert (birth.first_token("classroom-rope") > SINK_EPSILON).mean() > 0.7
    birth.step = model["steps"][0]
    assert birth.sink_rate("classroom-rope") == 0
    for same in (path, path.parent, [path], {"classroom-rope": str(path)}):
        assert SinkBirth(same).models == birth.models


def test_birth_compares_models_at_one_step():
    later = [{**one, "step": 2 * one["step"]} for one in GROWTH]
    birth = SinkBirth({"one": GROWTH, "two": later}, step=30)
    assert (birth.sink_rate("one"), birth.sink_rate("two")) == (0.5, 0.0)
    assert repr(birth) == "SinkBirth(one: 3 snapshots, two: 3 snapshots)"
    assert [model["name"] for model in SinkBirth([GROWTH, later]).models] == ["model 1", "model 2"]
    with pytest.raises(ValueError, match="known are one, two"):
        birth.sink_rate("three")
    with pytest.raises(ValueError, match=r"step must be in 10\.\.180"):
        birth.step = 9
    with pytest.raises(ValueError, match=r"head must be in 0\.\.1"):
        birth.head = 2
    maps, curves = birth.figure().subfigs
    assert [ax.get_title(loc="left") for ax in maps.axes[:2]] == ["one: 50%", "two: 0%"]
    assert curves.axes[0].lines[0].get_ydata().tolist() == [4.1, 3.2, 3.0]


def test_long_growth_is_thinned_for_the_notebook():
    heads = [[0.1] * 32] * 32
    long = [{**GROWTH[0], "step": step, "first_token": heads} for step in range(1, 400)]
    birth = SinkBirth(long)
    steps = birth.models[0]["steps"]
    assert steps[0] == 1 and steps[-1] == 399 and len(steps) <= 21
    assert size_of(birth) < 100_000


@pytest.mark.parametrize(
    ("growth", "error", "said"),
    [
        ("classroom-none-such", FileNotFoundError, "bundled models are .*classroom-rope"),
        ([], ValueError, "1 to 6 models, got 0"),
        ({str(i): GROWTH for i in range(7)}, ValueError, "1 to 6 models, got 7"),
        ([{"step": 1, "loss": 2.0}], ValueError, "lacks sink_rate, first_token"),
        ([{**GROWTH[0], "first_token": [0.1]}], ValueError, r"\(layer, head\) throughout"),
    ],
)
def test_birth_says_what_is_wrong(growth, error, said):
    with pytest.raises(error, match=said):
        SinkBirth(growth)


def test_of_a_step_measured_twice_the_later_counts():
    again = {**GROWTH[1], "loss": 2.5}
    assert [one["loss"] for one in load_growth([*GROWTH, again])] == [4.1, 2.5, 3.0]


# PositionLab ------------------------------------------------------------------------------------


def test_lab_shows_the_table(table):
    lab = PositionLab(table, position="alibi", length=64)
    assert [curve["position"] for curve in lab.curves] == ["rope", "alibi", "t5"]
    points = numbers(lab.points).reshape(-1, 3)
    assert len(points) == len(table)
    for row in table:
        (index,) = [i for i, one in enumerate(lab.curves) if one["model"] == row["model"]]
        found = points[(points[:, 0] == index) & (points[:, 1] == row["length"]), 2]
        assert found == pytest.approx([row["nll"]], rel=1e-6)
    expected = [r for r in table if (r["position"], r["length"]) == ("alibi", 64)]
    assert lab.perplexity == pytest.approx(expected[0]["perplexity"])
    assert lab.lengths == [32, 64, 96] and lab.train_length == 64
    assert repr(lab) == "PositionLab(3 curves, 3 lengths: alibi, 64 tokens)"
    lab.position = "learned"
    assert lab.perplexity is None


def test_lab_takes_a_frame_and_means_over_repeats(table):
    frame = pd.DataFrame(table)
    assert checked_rows(frame) == checked_rows(table)
    others = [{**table[0], "kind": "speed", "nll": None}, {**table[0], "kind": "sliding"}]
    assert checked_rows([*table, *others]) == checked_rows(table)
    twice = [*table, *({**row, "nll": row["nll"] + 1} for row in table)]
    for one, other in zip(checked_rows(twice), checked_rows(table), strict=True):
        assert one["nll"] == pytest.approx(other["nll"] + 0.5)
        assert one["perplexity"] == pytest.approx(math.exp(one["nll"]))


def test_lab_reads_the_bundled_record_or_says_that_there_is_none(table, tmp_path, monkeypatch):
    monkeypatch.setattr("sinkviz.widgets.position_lab.assets_folder", lambda: tmp_path)
    bare = PositionLab()
    assert "no bundled record of train_short_test_long" in bare.notice
    assert bare.rows == [] and bare.perplexity is None and 128 in bare.lengths
    assert repr(bare) == "PositionLab(no table: rope, 2048 tokens)"
    bare.figure().canvas.draw()
    (tmp_path / "runs").mkdir()
    record = tmp_path / "runs" / "train_short_test_long.json"
    record.write_text(json.dumps({"rows": table}))
    lab = PositionLab()
    assert lab.notice == "" and lab.rows == checked_rows(table)


def test_lab_says_what_is_wrong(table):
    for rows, said in (
        ([], "1 to 2000 rows, got 0"),
        ([{"model": "x", "length": 3}], "lacks the columns position, nll"),
        ([{**table[0], "position": "kerple"}], "'kerple'; known are rope, alibi"),
        ([{**table[0], "nll": math.nan}, {**table[1], "nll": None}], "no finite nll"),
    ):
        with pytest.raises(ValueError, match=said):
            PositionLab(rows)
    lab = PositionLab(table)
    for name, value in (("position", "kerple"), ("length", 33)):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            lab.set_trait(name, value)


@pytest.mark.parametrize("position", ["rope", "alibi", "sinusoidal", "learned", "t5", "none"])
def test_lab_has_a_twin_for_every_scheme(table, position):
    figure = PositionLab(table, position=position).figure()
    figure.canvas.draw()
    curves = {line.get_label(): line for line in figure.axes[0].lines}
    assert not [text for text in figure.findobj(Text) if "$" in text.get_text()]
    rope = [row["perplexity"] for row in table if row["position"] == "rope"]
    np.testing.assert_allclose(curves["rotary"].get_ydata(), rope)


def test_edges_of_buckets_are_where_buckets_begin():
    edges = bucket_edges()
    for bucket, edge in enumerate(edges):
        assert t5_bucket(torch.tensor([edge]))[0] == bucket
        assert edge == 0 or t5_bucket(torch.tensor([edge - 1]))[0] == bucket - 1


# All of them ------------------------------------------------------------------------------------


def size_of(widget) -> int:
    """Bytes of a widget's state in a notebook, module and style sheet included."""
    state = widget.get_state()

    def size(value) -> int:
        if isinstance(value, bytes):
            return 4 * len(value) // 3
        if isinstance(value, list | tuple):
            return sum(map(size, value))
        return len(json.dumps(value))

    return sum(map(size, state.values()))


def test_state_is_small_a_picture_comes_along_and_figures_close(trace, table):
    import matplotlib.pyplot as plt

    for widget in all_widgets(trace, table):
        assert size_of(widget) < 100_000
        data, _ = widget._repr_mimebundle_()
        assert data["text/plain"] == repr(widget) and "0x" not in repr(widget)
        assert len(data["image/png"]) > 5_000
        assert "application/vnd.jupyter.widget-view+json" in data
    assert plt.get_fignums() == []


def test_largest_states_stay_small():
    lm = tiny_classroom(torch.float32, num_attention_heads=12, num_hidden_layers=12)
    large = capture(lm, torch.arange(60) % 61, keep="maps")
    many = [
        {"model": f"m{n % 12}", "position": "rope", "length": n, "nll": 1.0, "perplexity": 3.0,
         "train_length": 64}
        for n in range(2, 2002)
    ]  # fmt: skip
    widgets = [
        CachePlayer(SinkWindow(4, 60), ["token" * 9] * 1000),
        AlibiFan(12, large),
        SinkBirth(dict.fromkeys("abcdef", "classroom-rope")),
        PositionLab(many),
    ]
    assert {repr(one).split("(")[0]: size_of(one) for one in widgets if size_of(one) > 1e5} == {}


def test_colours_of_the_pages_are_those_of_the_figures():
    from matplotlib.figure import Figure

    from sinkviz.style import attention_map, contrast
    from sinkviz.widgets.teaching import RAMPS, STOPS

    ramps = json.loads(RAMPS.removeprefix("const RAMPS = ").rstrip(";\n"))
    ax = Figure(facecolor="white").subplots()
    light, dark = ramps["attention"]
    assert len(light) == len(dark) == STOPS
    assert contrast(light[0], attention_map(ax)(0.0)) == pytest.approx(1, abs=0.01)
    assert contrast(dark[0], "black") < 1.3 < contrast(dark[-1], "black")


# In the page ------------------------------------------------------------------------------------


def shares_in(page) -> dict[str, list[float]]:
    """What the bench's page computed: shares of the keys, then of nowhere, per variant."""
    found: dict[str, list[float]] = {}
    for variant, share in page.locator("[data-variant]").evaluate_all(
        "all => all.map(one => [one.dataset.variant, Number(one.dataset.share)])"
    ):
        found.setdefault(variant.lower(), []).append(share)
    return found


def hold_bench(page, bench: SoftmaxBench) -> None:
    for variant, expected in bench.shares.items():
        *found, nowhere = shares_in(page)[variant]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
        assert nowhere == pytest.approx(max(0.0, 1 - expected.sum()), abs=1e-9)


def first_and_far(fan: AlibiFan) -> list[float]:
    """Mean share of the first key and mean distance, before and after, of all but query 0."""
    found = []
    for weights in fan.maps:
        distance = np.subtract.outer(np.arange(len(weights)), np.arange(len(weights)))
        rows = weights[1:]
        far = (rows * distance[1:]).sum(1) / rows.sum(1)
        found.append((rows[:, 0].mean(), far.mean()))
    return [*np.array(found).T.ravel()]


def hold_fan(page, fan: AlibiFan) -> None:
    data = page.locator(".sinkviz").evaluate("one => ({...one.dataset})")
    found = [float(value) for name in ("first", "far") for value in data[name].split()]
    np.testing.assert_allclose(found, first_and_far(fan), atol=2e-5)


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


@pytest.mark.browser
@pytest.mark.parametrize("policy", [*POLICIES, Odd()], ids=str)
def test_page_of_the_player_holds_what_the_policy_keeps(open_file, policy):
    page = open_file(CachePlayer(policy, 30))
    slider = page.get_by_role("slider", name=re.compile("^Step"))
    slider.focus()
    press(page, "Home")
    for step in range(1, 31):
        page.wait_for_selector(f'[data-drawn="{step}"]')
        held = page.locator("[data-slot]").evaluate_all("all => all.map(one => +one.dataset.slot)")
        assert held == policy.keep(step)
        press(page, "ArrowRight")


@pytest.mark.browser
def test_page_of_the_bench_computes_as_null_softmax_does(open_file):
    bench = SoftmaxBench([3.0, -2.0, 0.5, 8.0, -8.0], sink_logit=1.5, gate=0.35)
    page = open_file(bench)
    hold_bench(page, bench)
    for name in PRESETS:
        page.get_by_role("button", name=name).click()
        bench.preset(name)
        page.wait_for_selector(
            f'.sinkviz[data-drawn^="{" ".join(f"{x:g}" for x in bench.logits)}"]'
        )
        hold_bench(page, bench)
    key = page.get_by_role("slider", name="Logit of key 1")
    key.focus()
    press(page, "PageUp", "ArrowUp", "ArrowUp", "ArrowLeft")
    bench.logits = [0.0, 1.1, *bench.logits[2:]]  # after "all alike"
    page.wait_for_selector('[data-drawn^="0 1.1 0"]')
    assert key.get_attribute("aria-valuenow") == "1.1"
    hold_bench(page, bench)
    gate = page.get_by_role("slider", name="Gate")
    gate.focus()
    press(page, "End")
    page.wait_for_selector('[data-drawn$=" 1"]')
    press(page, "ArrowLeft")
    page.wait_for_selector('[data-drawn$=" 0.99"]')
    assert gate.get_attribute("aria-valuetext") == "0.99"
    bench.gate = 0.99
    hold_bench(page, bench)


@pytest.mark.browser
def test_page_of_the_fan_computes_as_the_twin_does(open_file, trace):
    fan = AlibiFan(12, trace)
    page = open_file(fan)
    hold_fan(page, fan)
    page.get_by_role("combobox").select_option(label="layer 2, head 1")
    fan.pair = fan.pairs.index([2, 1])
    page.get_by_role("slider", name=re.compile("^Head:?$|^Head ?$")).focus()
    press(page, "ArrowRight", "ArrowRight")
    fan.head = 2
    page.wait_for_selector(f'[data-drawn="12 2 16 true {fan.pair}"]')
    hold_fan(page, fan)
    assert f"slope 1/{round(1 / fan.slope)}" in page.locator("[aria-live]").inner_text()
    for n_heads in (1, 2, 3, 6, 8, 12, 20, 32):
        page.get_by_role("slider", name="Heads").fill(str(n_heads))
        page.wait_for_selector(f'[data-drawn^="{n_heads} "]')
        slopes = page.locator("[data-slope]").evaluate_all("all => all.map(x => +x.dataset.slope)")
        expected = alibi_slopes(n_heads).double().numpy()
        np.testing.assert_allclose(sorted(slopes), sorted(expected), rtol=1e-6)
    lm = tiny_classroom(torch.float32, softmax="sink_logit")
    null = AlibiFan(4, capture(lm, torch.arange(16), keep="maps"))
    hold_fan(open_file(null), null)


OUTSIDE = """() => [...document.querySelectorAll("svg text")].filter((one) => {
  const [own, all] = [one, one.ownerSVGElement].map((x) => x.getBoundingClientRect());
  return own.left < all.left - 1 || own.right > all.right + 1;
}).map((one) => one.textContent)"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 480, 640, 900])
def test_nothing_of_the_fan_is_cut_off_on_a_narrow_page(open_file, trace, width):
    for fan in (AlibiFan(8, trace), AlibiFan(32)):
        page = open_file(fan, viewport={"width": width, "height": 900})
        assert page.evaluate(OUTSIDE) == []


@pytest.mark.browser
def test_page_of_the_birth_links_map_and_curves(open_file):
    birth = SinkBirth("classroom-rope")
    page = open_file(birth)

    def hold():
        page.wait_for_selector(f'[data-drawn="{birth.step} {birth.layer} {birth.head}"]')
        found = page.locator("[data-share]").evaluate_all("all => all.map(x => +x.dataset.share)")
        expected = birth.first_token("classroom-rope").ravel()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        chosen = page.locator('[aria-selected="true"]')
        assert chosen.count() == 1
        assert chosen.get_attribute("aria-label").startswith(
            f"layer {birth.layer}, head {birth.head}:"
        )
        curve = f"share on the first token: layer {birth.layer}, head {birth.head}"
        assert page.get_by_text(curve).count() == 1

    hold()
    page.get_by_role("slider").focus()
    for key, step in (("Home", birth.models[0]["steps"][0]), ("ArrowUp", 13), ("End", birth.step)):
        press(page, key)
        birth.step = step
        hold()
    page.get_by_role("grid").focus()
    press(page, "ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft")
    birth.layer, birth.head = 1, 1
    hold()
    page.get_by_role("gridcell", name="layer 3, head 0").click()
    birth.layer, birth.head = 3, 0
    hold()
    chart = page.locator("svg.scrub").first.bounding_box()
    page.mouse.click(chart["x"] + 60, chart["y"] + 80)
    page.wait_for_selector(f'.sinkviz:not([data-drawn^="{birth.step} "])')
    birth.step = int(page.locator(".sinkviz").get_attribute("data-drawn").split()[0])
    assert birth.step < 100
    hold()


@pytest.mark.browser
def test_page_of_the_lab_reads_the_table(open_file, table):
    lab = PositionLab(table)
    page = open_file(lab)
    page.get_by_role("button", name="ALiBi").focus()
    press(page, "Enter")
    slider = page.get_by_role("slider", name="Test length")
    for length, key in ((32, "Home"), (64, "ArrowRight"), (96, "ArrowRight")):
        slider.focus()
        press(page, key)
        page.wait_for_selector(f'[data-drawn="alibi {length}"]')
        lab.position, lab.length = "alibi", length
        shown = float(page.locator(".sinkviz").get_attribute("data-nll"))
        assert math.exp(shown) == pytest.approx(lab.perplexity, rel=1e-4)
    pictures = set()
    for name in ("RoPE", "ALiBi", "Sinusoidal", "Learned", "T5", "None"):
        page.get_by_role("button", name=name, exact=True).click()
        page.get_by_role("button", name=name, exact=True, pressed=True).wait_for()
        page.wait_for_timeout(50)
        pictures.add(page.locator(".pair svg").last.inner_html())
    assert len(pictures) == 6
    assert "not measured" in page.locator("[aria-live]").inner_text()


@pytest.mark.browser
def test_pages_follow_the_theme_and_keep_tokens_harmless(open_file, trace):
    hostile = type(trace)(**{**vars(trace), "tokens": tuple(HOSTILE * 3)})
    fills = []
    for scheme in ("light", "dark"):
        page = open_file(AlibiFan(4, hostile), color_scheme=scheme, reduced_motion="reduce")
        fills.append(page.locator("svg path[style]").last.evaluate("x => getComputedStyle(x).fill"))
        assert page.locator("#injected").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert fills[0] != fills[1]
    page = open_file(CachePlayer(SinkWindow(1, 4), HOSTILE))
    assert page.locator("#injected").count() == 0
    assert "<b id=in" in page.locator("svg").first.text_content()


SETUP = """\
import torch
from matplotlib.text import Text
from reference import tiny_classroom
from test_teaching_widgets import GROWTH, HOSTILE, Odd, first_and_far, measured
from sinkviz import AlibiFan, CachePlayer, PositionLab, SinkBirth, SoftmaxBench, SinkWindow, capture

trace = capture(tiny_classroom(torch.float32), torch.arange(20), keep="maps", scores=True)"""
CELLS = [
    "player = CachePlayer(SinkWindow(4, 8), HOSTILE * 4); player",
    "bench = SoftmaxBench(); bench",
    "fan = AlibiFan(8, trace); fan",
    "birth = SinkBirth({'a': GROWTH, 'b': GROWTH[:2]}); birth",
    "lab = PositionLab(measured()); lab",
    "odd = CachePlayer(Odd(), 20); odd",
    "player",
]


def widget_of(page, name: str):
    return page.locator(f'.sinkviz[aria-label^="{name}"]')


def at(page, name: str, drawn: str):
    page.wait_for_selector(f'.sinkviz[aria-label^="{name}"][data-drawn="{drawn}"]')


def heard(page, code: str, expected: str) -> None:
    """The page is ahead of its kernel; wait until that one says what is expected."""
    said = ""
    for _ in range(50):
        if (said := page.kernel(code)) == expected:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{code} says {said}, expected {expected}")


def drag(page, one, by: float) -> None:
    box = one.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + by / 2)
    page.mouse.move(x, y + by)
    page.mouse.up()


@pytest.mark.browser
@pytest.mark.timeout(400)
def test_all_in_jupyterlab_by_mouse_and_by_keyboard(open_page):  # noqa: F811
    page = open_page(SETUP, *CELLS, theme="dark", reduced_motion="reduce")
    page.wait_for_function("document.querySelectorAll('.sinkviz[data-drawn]').length === 7")
    ids = page.locator(".sinkviz [id]").evaluate_all("all => all.map(one => one.id)")
    assert len(ids) == len(set(ids)) > 10
    players = widget_of(page, "Cache player: SinkWindow")
    player, copy, odd = players.first, players.last, widget_of(page, "Cache player: Odd")
    # By keyboard alone: scrub, step, play; the other view of the same player follows.
    player.get_by_role("slider").focus()
    press(page, "Home")
    at(page, "Cache player: Sink", "1")
    player.get_by_role("button", name="Step").focus()
    press(page, "Enter", "Enter")
    at(page, "Cache player: Sink", "3")
    heard(page, "print(player.step, player.kept)", "3 [0, 1, 2]")
    player.get_by_role("button", name="Play").focus()
    press(page, "Space")
    page.wait_for_function("Number(document.querySelector('.sinkviz').dataset.drawn) > 5")
    press(page, "Space")
    assert player.get_by_role("button", name="Play").count() == 1
    copy.get_by_role("button", name="Back").click()
    page.kernel("player.step = 20")
    page.wait_for_function(
        "[...document.querySelectorAll('.sinkviz[aria-label*=SinkWindow]')]"
        ".every(one => one.dataset.drawn === '20')"
    )
    assert odd.get_attribute("data-drawn") == "20"
    slots = player.locator("[data-slot]").evaluate_all("all => all.map(x => +x.dataset.slot)")
    heard(page, "print(player.kept)", str(slots))
    assert "token 19" in player.locator("[aria-live]").inner_text()
    assert page.locator("#injected").count() == 0
    # The bench: keys, a preset, and a logit dragged by the mouse.
    bench = widget_of(page, "Softmax bench")
    bench.get_by_role("slider", name="Logit of key 2").focus()
    press(page, "Home", "PageUp", "ArrowUp")
    page.wait_for_function(
        "document.querySelector('[aria-label=\"Logit of key 2\"]').ariaValueNow === '-6.9'"
    )
    heard(page, "print(bench.logits[2])", "-6.9")
    handle = bench.get_by_role("slider", name="Logit of key 0")
    handle.scroll_into_view_if_needed()
    before = float(handle.get_attribute("aria-valuenow"))
    drag(page, handle.locator("circle"), -40)
    page.wait_for_timeout(200)
    dragged = float(handle.get_attribute("aria-valuenow"))
    assert dragged > before + 2
    heard(page, "print(bench.logits[0])", f"{dragged}")
    kernel = page.kernel("print(*bench.shares['sink logit'])").split()
    np.testing.assert_allclose(
        shares_in(bench)["sink logit"][:-1], [*map(float, kernel)], rtol=1e-6
    )
    bench.get_by_role("button", name="no good key").focus()
    press(page, "Enter")
    bench.get_by_role("button", name="no good key", pressed=True).wait_for()
    heard(page, "print(bench.logits[0], bench.gate)", "-4.0 0.05")
    # The fan.
    fan = widget_of(page, "ALiBi fan")
    fan.get_by_role("slider", name="Distance").focus()
    press(page, "End")
    at(page, "ALiBi fan", "8 0 64 true 0")
    fan.get_by_role("button", name="Add the bias").click()
    at(page, "ALiBi fan", "8 0 64 false 0")
    fan.get_by_role("combobox").focus()
    press(page, "ArrowDown")
    at(page, "ALiBi fan", "8 0 64 false 1")
    fan.get_by_role("button", name="Add the bias").focus()
    press(page, "Space")
    at(page, "ALiBi fan", "8 0 64 true 1")
    heard(page, "print(fan.pair, fan.biasing)", "1 True")
    expected = [float(one) for one in page.kernel("print(*first_and_far(fan))").split()]
    data = fan.evaluate("one => [one.dataset.first, one.dataset.far].join(' ')").split()
    np.testing.assert_allclose([*map(float, data)], expected, atol=2e-5)
    # The birth, of two models.
    birth = widget_of(page, "Sink birth")
    birth.get_by_role("slider").focus()
    press(page, "Home", "ArrowRight")
    at(page, "Sink birth", "30 0 1")
    birth.get_by_role("grid").first.focus()
    press(page, "ArrowLeft")
    at(page, "Sink birth", "30 0 0")
    birth.get_by_role("gridcell", name="head 1").last.click()
    at(page, "Sink birth", "30 0 1")
    heard(page, "print(birth.step, birth.layer, birth.head)", "30 0 1")
    assert "sink rate 50 %" in birth.locator("[aria-live]").inner_text()
    # The lab.
    lab = widget_of(page, "Position lab")
    lab.get_by_role("button", name="T5").focus()
    press(page, "Enter")
    lab.get_by_role("slider", name="Test length").focus()
    press(page, "Home")
    at(page, "Position lab", "t5 32")
    lab.get_by_role("button", name="ALiBi").click()
    at(page, "Position lab", "alibi 32")
    heard(page, "print(lab.position, lab.length)", "alibi 32")
    shown = math.exp(float(lab.get_attribute("data-nll")))
    assert shown == pytest.approx(float(page.kernel("print(lab.perplexity)")), rel=1e-4)
    # What has the focus says so.
    outline = lab.get_by_role("slider").evaluate(
        "one => { one.focus({focusVisible: true}); return getComputedStyle(one).outlineStyle; }"
    )
    assert outline == "solid"
    colour = lab.evaluate("one => getComputedStyle(one).color")
    assert max(map(int, re.findall(r"\d+", colour)[:3])) > 127  # light on dark
    # The kernel anew, and all cells again.
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.run_all()
    page.wait_for_function("document.querySelectorAll('.sinkviz[data-drawn]').length === 7")
    at(page, "Softmax bench", "0 -1 4 -0.5 0.5 -1 1 0.9")
    widget_of(page, "Softmax bench").get_by_role("button", name="all alike").click()
    at(page, "Softmax bench", "0 0 0 0 0 0 0 0.5")
    heard(page, "print(bench.gate)", "0.5")
