"""The widgets' traits in plain Python: what a front end would be told, and what it can ask for."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import traitlets
from reference import tiny_classroom

from sinkviz.metrics import ROLES
from sinkviz.models import LM
from sinkviz.policies import H2O, TOVA, Dense, Recompute, SinkWindow, Window, register_policy
from sinkviz.scoring import score
from sinkviz.streaming import Step, compare
from sinkviz.widgets import SideBySide, SinkSlider, sink_slider
from sinkviz.widgets.common import HERE
from sinkviz.widgets.lanes import POINTS, TAIL
from sinkviz.widgets.token_labels import prose

LANES = [Dense(), Window(16), SinkWindow(4, 12), Recompute(16)]


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_classroom(torch.float32)


def text(n: int = 200) -> torch.Tensor:
    return torch.randint(61, (n,), generator=torch.Generator().manual_seed(3))


def numbers(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")


def marked(state: dict) -> list[int]:
    """Text positions that a lane is told to strike out."""
    flags = np.frombuffer(state["evicted"], np.uint8)
    return (np.flatnonzero(flags) + state["end"] - len(flags)).tolist()


# The sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(HERE.glob("*.*s")), ids=lambda file: file.name)
def test_sources_reach_for_nothing_and_parse_nothing(file):
    source = file.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w+\.\w|@import|url\(", source)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source)


def test_source_of_a_widget_is_one_module():
    for widget in (SinkSlider, SideBySide):
        assert widget._esm.count("export default") == 1
        assert not re.search(r"^\s*import\b", widget._esm, re.M)
    assert "--sinkviz-sink: #D55E00" in SinkSlider._css


# SinkSlider -------------------------------------------------------------------------------------


def test_slider_answers_with_the_scored_run(lm):
    slider = SinkSlider(lm, text(), n_sink=2, n_recent=30, n_tokens=150)
    slider.n_sink = 4
    run = score(lm, text()[:150], SinkWindow(4, 30), mass=True)
    start = 30 + slider.max_sink
    assert slider.shown == [4, 30] and slider.start == start
    assert slider.perplexity == pytest.approx(np.exp(run.mean_nll(start)))
    curve = numbers(slider.curve)
    assert len(curve) == 150 and np.isnan(curve[0])
    assert curve[-1] == pytest.approx(run.nll[-slider.window :].mean(), rel=1e-5)
    mass = dict(zip(slider.roles, numbers(slider.mass), strict=True))
    assert sum(mass.values()) == pytest.approx(1, abs=1e-5)
    assert mass["sink"] == pytest.approx(
        np.nanmean(run.mass[start:, ROLES.index("sink")]), rel=1e-4
    )
    seen = numbers(slider.seen)
    assert np.flatnonzero(np.isfinite(seen)).tolist() == [2, 4]
    np.testing.assert_array_equal(
        numbers(slider.first_curve), slider._curve(slider._runs[2, 30]).astype(np.float32)
    )
    low, high = slider.limits
    assert low < np.nanmin(curve[slider.window :]) + 1e-6 and high > np.nanmax(curve[20:]) - 1e-6


def test_slider_without_sinks_is_window_attention(lm):
    slider = SinkSlider(lm, text(), n_sink=0, n_recent=30)
    assert slider.policy == Window(30)
    np.testing.assert_array_equal(slider.run.nll, score(lm, text(), Window(30), mass=True).nll)
    assert numbers(slider.mass)[slider.roles.index("sink")] == 0


def test_slider_scores_a_setting_once(lm, monkeypatch):
    slider, asked = SinkSlider(lm, text(), n_recent=30), []
    monkeypatch.setattr(
        "sinkviz.widgets.sink_slider.score", lambda *a, **k: asked.append(a[2]) or score(*a, **k)
    )
    for n_sink in (5, 4, 5, 4):
        slider.n_sink = n_sink
    assert asked == [SinkWindow(5, 30)]


def test_slider_of_a_short_text_counts_all_of_it(lm):
    slider = SinkSlider(lm, text(40))
    assert slider.start == 0
    assert slider.perplexity == pytest.approx(slider.run.perplexity)


def test_slider_refuses_a_model_without_windows():
    lm = tiny_classroom(torch.float32, position="learned")
    with pytest.raises(ValueError, match="sinkviz_classroom has learned positions.*use Dense"):
        SinkSlider(lm, text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_sink": 9}, "n_sink must be in 0..8, got 9"),
        ({"n_recent": 0}, "n_recent must be in 1..256, got 0"),
        ({"n_tokens": 1}, "two tokens"),
        ({"max_recent": 20}, "n_recent must be in 1..20, got 60"),
    ],
)
def test_slider_says_what_is_out_of_range(lm, options, said):
    with pytest.raises(ValueError, match=said):
        SinkSlider(lm, text(), **options)


def test_slider_stays_where_it_was_after_a_wrong_value(lm):
    slider = SinkSlider(lm, text(), n_recent=30)
    with pytest.raises(traitlets.TraitError, match="n_sink must be in 0..8"):
        slider.n_sink = 99
    assert slider.n_sink == 4 and slider.shown == [4, 30]


def test_slider_shows_an_error_and_recovers(lm, monkeypatch):
    slider = SinkSlider(lm, text(), n_recent=30)
    with monkeypatch.context() as patch:
        patch.setattr("sinkviz.widgets.sink_slider.score", lambda *a, **k: 1 / 0)
        slider.n_sink = 3
    assert slider.error == "division by zero." and slider.shown == [4, 30]
    slider.n_sink = 2
    assert slider.error == "" and slider.shown == [2, 30]


def test_slider_has_a_static_twin(lm):
    slider = SinkSlider(lm, text(), n_recent=30)
    slider.n_sink = 1
    figure = slider.figure()
    nll, mass, sizes = figure.axes[0], figure.axes[1], figure.axes[2]
    assert [len(line.get_xdata()) for line in nll.lines[:3]] == [199, 199, 199]
    assert sum(bar.get_width() for bar in mass.patches) == pytest.approx(1, abs=2e-3)
    assert [bar.get_x() + bar.get_width() / 2 for bar in sizes.patches] == [1, 4]


def test_curves_of_a_long_text_are_thinned(lm, monkeypatch):
    whole = SinkSlider(lm, text(), n_recent=30)
    monkeypatch.setattr(sink_slider, "POINTS", 40)
    slider = SinkSlider(lm, text(), n_recent=30)
    assert (whole.every, slider.every) == (1, 5)
    for name in ("curve", "first_curve", "dense_curve"):
        # The last point is the last token's.
        np.testing.assert_array_equal(
            numbers(getattr(slider, name)), numbers(getattr(whole, name))[4::5]
        )
    assert slider.limits == whole.limits and slider.perplexity == whole.perplexity


def test_the_page_of_a_slider_has_every_answer(lm):
    slider = SinkSlider(lm, text(), n_sink=2, n_recent=30, max_sink=3)
    slider.n_recent = 40
    state = slider.page_state(n_recent=[16, 40])
    assert state["stops"] == [16, 30, 40]
    settings = [(n_sink, n_recent) for n_recent in (16, 30, 40) for n_sink in range(4)]
    assert list(state["frames"]) == [f"{a}+{b}" for a, b in settings]
    live = SinkSlider(lm, text(), n_sink=2, n_recent=30, max_sink=3)
    for n_sink, n_recent in settings:
        live.n_sink, live.n_recent = n_sink, n_recent
    for n_sink, n_recent in settings:
        live.n_sink, live.n_recent = n_sink, n_recent
        frame = state["frames"][f"{n_sink}+{n_recent}"]
        live._answer()  # again, now that all the others have been tried
        assert {name: getattr(live, name) for name in frame} == frame
    assert state["limits"] == live.limits
    # The widget itself stands as it stood.
    assert (slider.n_sink, slider.n_recent, slider.shown) == (2, 40, [2, 40])
    assert np.isfinite(numbers(slider.seen)).sum() == 1


def test_stops_beyond_the_slider_are_refused(lm, tmp_path):
    slider = SinkSlider(lm, text(60), n_recent=30, max_recent=40)
    for stop in (0, 41):
        with pytest.raises(ValueError, match=rf"n_recent must be in 1..40, got \[{stop}\]"):
            slider.to_html(tmp_path / "page.html", n_recent=[stop])
    assert list(tmp_path.iterdir()) == []


# SideBySide -------------------------------------------------------------------------------------


def test_lanes_are_those_of_compare(lm):
    lanes = SideBySide(lm, LANES, prompt=text(8), seed=5, temperature=1.0)
    lanes.advance(40)
    steps = list(compare(lm, LANES, prompt=text(8), max_new_tokens=40, seed=5, temperature=1.0))
    for index, run in enumerate(lanes.runs):
        assert run.policy == LANES[index]
        assert run.token_ids.tolist() == text(8).tolist() + [s[index].token_id for s in steps]
        assert np.isnan(run.nll[:8]).all()
        np.testing.assert_allclose(run.nll[8:], [s[index].nll for s in steps], rtol=1e-6)
        assert run.cache_bytes == steps[-1][index].cache_bytes
    state = lanes.get_state("tail")["tail"][2]
    assert state["end"] == 48 and len(state["tokens"]) == 48
    assert state["head"] == state["tokens"][:4]
    assert marked(state) == [n for step in steps for n in step[2].evicted]
    assert state["perplexity"] == pytest.approx(lanes.runs[2].perplexity, rel=1e-5)


def test_reading_lanes_measure_the_text(lm):
    lanes = SideBySide(lm, LANES[:2], text=text(60))
    lanes.advance(1000)
    assert lanes.finished and lanes.n_tokens == 59
    for run, policy in zip(lanes.runs, LANES, strict=False):
        expected = score(lm, text(60), policy)
        np.testing.assert_array_equal(run.token_ids, expected.token_ids)
        np.testing.assert_allclose(run.nll[1:], expected.nll[1:], atol=1e-4)


def test_a_tick_tells_only_what_is_new(lm):
    lanes = SideBySide(lm, LANES, prompt=text(8))
    lanes.advance(30)
    lanes.advance(1)
    assert [len(state["tokens"]) for state in lanes.tick] == [1] * 4
    assert [state["end"] for state in lanes.tick] == [39] * 4
    assert len(numbers(lanes.tick[0]["nll"])) == 1


def test_state_stays_small_and_history_whole(lm):
    lanes = SideBySide(lm, [Window(4), SinkWindow(1, 3)], prompt=text(3), max_new_tokens=None)
    lanes.advance(900)
    assert [len(run.nll) for run in lanes.runs] == [903, 903]
    for state, evicted in zip(lanes.get_state("tail")["tail"], (898, 899), strict=True):
        assert len(state["tokens"]) == TAIL
        assert POINTS // 2 <= len(numbers(state["points"])) <= POINTS
        assert state["bin"] == 8
        # The newest of the 903 is not in the cache yet.
        assert marked(state) == list(range(903 - TAIL, evicted))
    assert all(len(record.evicted) <= TAIL for record in lanes._records)


@register_policy("alternate")
@dataclass(frozen=True)
class Alternate:
    """Every second token, and the newest."""

    cache_size: int = 12

    def keep(self, n: int) -> list[int]:
        return [*range(0, n - 1, 2), n - 1][-self.cache_size :]


def test_policies_of_any_kind_have_a_lane(lm):
    policies = [SinkWindow(4, 12), H2O(8, 8), TOVA(16), SinkWindow(4, 12, "text"), Alternate()]
    lanes = SideBySide(lm, policies, prompt=text(8), temperature=1.0)
    lanes.advance(60)
    assert [lane["kind"] for lane in lanes.lanes] == [
        "sinkwindow", "other", "other", "sinkwindow", "other",
    ]  # fmt: skip
    assert [lane["by_attention"] for lane in lanes.lanes] == [False, True, True, False, False]
    assert [lane["evicts"] for lane in lanes.lanes] == [16, 16, 16, 16, 2]
    for kind in {lane["kind"] for lane in lanes.lanes}:
        assert f".sinkviz .{kind} {{ --lane:" in SideBySide._css
    steps = list(compare(lm, policies, prompt=text(8), max_new_tokens=60, temperature=1.0))
    for index, state in enumerate(lanes.get_state("tail")["tail"]):
        gone = sorted(n for step in steps for n in step[index].evicted)
        assert marked(state) == gone and len(gone) > 20
        assert len(state["evicted"]) == state["end"] == 68
    # The gaps are where the policy leaves them: those of an H2O are no stretch from the beginning.
    heavy = marked(lanes.get_state("tail")["tail"][1])
    assert heavy != list(range(heavy[0], heavy[-1] + 1))
    lanes.figure().canvas.draw()


def test_same_seed_same_text_other_seed_other_text(lm):
    lanes = SideBySide(lm, [SinkWindow(4, 12)], prompt=text(8), temperature=1.0)
    written = []
    for seed in (0, 1, 0):
        lanes.seed = seed
        lanes.reset()
        lanes.advance(20)
        written.append(lanes.runs[0].token_ids.tolist())
    assert written[0] == written[2] != written[1]


def test_limit_ends_the_lanes(lm):
    lanes = SideBySide(lm, LANES, prompt=text(8), max_new_tokens=10)
    lanes.advance(25)
    assert lanes.finished and lanes.n_tokens == 10
    lanes.reset()
    assert not lanes.finished and lanes.n_tokens == 0


def test_play_goes_on_in_the_background_and_pause_stops_it(lm):
    async def main():
        lanes = SideBySide(lm, LANES, prompt=text(8), max_new_tokens=None, speed=0)
        lanes.play()
        while lanes.n_tokens < 20:
            await asyncio.sleep(0.01)
        lanes.pause()
        paused = lanes.n_tokens
        await asyncio.sleep(0.1)
        assert lanes.n_tokens == paused and not lanes.playing
        lanes.speed = 50
        lanes.play()
        while lanes.n_tokens == paused:
            await asyncio.sleep(0.01)
        lanes.reset()
        assert lanes.n_tokens == 0 and not lanes.playing
        lanes.play()
        await asyncio.sleep(0.05)
        lanes.close()
        await asyncio.sleep(0.05)
        assert not [task for task in asyncio.all_tasks() if "SideBySide" in repr(task)]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_play_keeps_its_speed(lm):
    async def main():
        lanes = SideBySide(lm, LANES[1:2], prompt=text(8), max_new_tokens=None, speed=20)
        lanes.play()
        await asyncio.sleep(1)
        lanes.pause()
        assert 5 <= lanes.n_tokens <= 24

    asyncio.run(asyncio.wait_for(main(), 60))


def test_play_stops_where_nobody_looks(lm, monkeypatch):
    monkeypatch.setattr("sinkviz.widgets.playing.PATIENCE", 2)
    monkeypatch.setattr("sinkviz.widgets.side_by_side.TICK", 0.001)

    async def main():
        lanes = SideBySide(lm, LANES[1:2], prompt=text(8), max_new_tokens=None, speed=0)
        lanes.play()
        while lanes.playing:
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_play_needs_an_event_loop(lm):
    lanes = SideBySide(lm, LANES, prompt=text(8))
    with pytest.raises(RuntimeError, match="event loop"):
        lanes.play()
    assert not lanes.playing and "event loop" in lanes.error
    lanes.advance(1)
    assert lanes.error == ""


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken("no memory left"), KeyboardInterrupt()])
def test_an_error_is_said_and_leaves_the_model_as_it_was(lm, monkeypatch, error):
    lanes = SideBySide(lm, LANES, prompt=text(8), temperature=1.0)
    lanes.advance(5)
    lm.model.train()
    implementation = lm.model.config._attn_implementation
    with monkeypatch.context() as patch:
        patch.setattr(type(lm.model.model), "forward", lambda *a, **k: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            lanes.advance(5)
    assert lm.model.training and lm.model.config._attn_implementation == implementation
    lm.model.eval()
    said = "no memory left." if isinstance(error, Broken) else "it was interrupted."
    assert lanes.error == f"Stopped after 5 tokens: {said} Reset begins again."
    lanes.advance(3)
    assert lanes.error == "" and lanes.n_tokens == 3


def test_an_error_while_playing_is_said(lm, monkeypatch):
    async def main():
        lanes = SideBySide(lm, LANES, prompt=text(8))
        with monkeypatch.context() as patch:
            patch.setattr(type(lm.model.model), "forward", lambda *a, **k: 1 / 0)
            lanes.play()
            while lanes.playing:
                await asyncio.sleep(0.01)
        assert lanes.error == "Stopped after 0 tokens: division by zero. Reset begins again."

    asyncio.run(asyncio.wait_for(main(), 60))


def test_messages_of_the_front_end(lm):
    lanes = SideBySide(lm, LANES, prompt=text(8))
    for todo, n_tokens in (("step", 1), ("step", 2), ("seen", 2), ("?", 2), ("reset", 0)):
        lanes._on_message(lanes, {"do": todo}, [])
        assert lanes.n_tokens == n_tokens


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either a prompt"),
        ({"prompt": [1], "text": [1, 2]}, "either a prompt"),
        ({"prompt": [1], "policies": []}, "at least one policy"),
        ({"prompt": []}, "empty"),
        ({"text": [1]}, "at least two tokens"),
        ({"prompt": [1], "temperature": -1.0}, "temperature"),
        ({"prompt": [1], "max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_bad_lanes_are_refused(lm, options, said):
    with pytest.raises(ValueError, match=said):
        SideBySide(lm, **{"policies": LANES, **options})


class Bytes:
    """A tokenizer of UTF-8 bytes: characters beyond ASCII take two tokens or more."""

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode(errors="replace")


def test_a_character_of_several_tokens_comes_whole():
    lm = tiny_classroom(torch.float32, vocab_size=256)
    lm = LM(lm.model, Bytes(), "bytes")
    lanes = SideBySide(lm, [Window(8)], text=torch.tensor(list("a “$” é".encode())))
    lanes.advance(100)
    assert "".join(lanes.get_state("tail")["tail"][0]["tokens"]) == "a “$” é"
    written = SideBySide(lm, [Window(8)], prompt=torch.tensor(list("漢$x$_^ ".encode())))
    written.advance(1)
    plt.figure()
    written.figure().canvas.draw()


# Both -------------------------------------------------------------------------------------------


def test_repr_is_stable_and_a_picture_comes_along(lm):
    slider = SinkSlider(lm, text(), n_recent=30)
    lanes = SideBySide(lm, LANES[1:3], prompt=text(8))
    assert repr(slider) == "SinkSlider(tiny: 200 tokens, SinkWindow(n_sink=4, n_recent=30))"
    assert repr(lanes) == (
        "SideBySide(tiny: Window(n_recent=16), SinkWindow(n_sink=4, n_recent=12))"
    )
    assert "image/png" not in lanes._repr_mimebundle_()[0]
    lanes.advance(20)
    for widget in (slider, lanes):
        data, _ = widget._repr_mimebundle_()
        assert data["text/plain"] == repr(widget)
        assert "application/vnd.jupyter.widget-view+json" in data
        assert len(data["image/png"]) > 10_000
    assert plt.get_fignums() == []


def test_lanes_have_a_static_twin(lm):
    lanes = SideBySide(lm, LANES, prompt=text(8))
    with pytest.raises(ValueError, match="advance"):
        lanes.figure()
    lanes.advance(30)
    figure = lanes.figure()
    assert len(figure.axes) == 5
    assert figure.axes[1].get_title(loc="left") == "Dense"


def saved(widget) -> int:
    """Bytes of a widget's state in a notebook."""
    state = widget.get_state()
    written = json.dumps(
        state, default=lambda one: base64.b64encode(one).decode(), ensure_ascii=False
    )
    return len(written.encode())


@pytest.mark.parametrize("word", [" the", " wonderful", "\U0001f600" * 40, "<b>" * 400])
def test_a_saved_notebook_stays_small(lm, word):
    class Same:
        def decode(self, ids, skip_special_tokens=False):
            return word * len(ids)

    policies = [SinkWindow(n, 8) for n in range(1, 9)]
    lanes = SideBySide(LM(lm.model, Same(), "same"), policies, prompt=text(3))
    for n in range(450):
        for record in lanes._records:
            record.add(
                Step(
                    n + 3,
                    7,
                    word,
                    2.0,
                    1.0,
                    0.01,
                    9,
                    10**6,
                    tuple(range(max(0, n - 9), max(0, n - 8))),
                )
            )
    lanes.tick = lanes._states()  # the largest that there can be
    assert saved(lanes) < 100_000
    for state in lanes.get_state("tail")["tail"]:
        shown = len(state["tokens"])
        assert state["end"] == 453 and set(state["tokens"]) == {prose(word)}
        assert len(numbers(state["nll"])) == shown >= 5 and len(state["evicted"]) == TAIL


def test_a_saved_slider_stays_small_however_long_the_text(lm):
    assert saved(SinkSlider(lm, text(4000), n_tokens=4000, max_sink=64)) < 100_000
