"""SinkSlider and SideBySide in the browser, where no kernel is and where one is; hostile text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import tiny_classroom
from test_recording import LANES, played
from test_widgets import numbers, text

from sinkviz.models import LM
from sinkviz.widgets import SideBySide, SinkSlider
from sinkviz.widgets.lanes import POINTS

pytest_plugins = ["browser"]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_classroom(torch.float32)


# SinkSlider -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_slider_by_keyboard_and_by_mouse(open_file, lm, scheme):
    slider = SinkSlider(lm, text(), n_sink=2, n_recent=30, max_sink=3)
    page = open_file(slider, page={"n_recent": [16]}, color_scheme=scheme, reduced_motion="reduce")

    def hold(n_sink, n_recent):
        page.wait_for_selector(f'[data-drawn="{n_sink}+{n_recent}"]')
        slider.n_sink, slider.n_recent = n_sink, n_recent
        slider._answer()  # all of its bars, now that the page has had them scored
        found = page.locator(".verdict strong").inner_text()
        assert found == f"{slider.perplexity:.0f}"
        bars = page.locator(".below svg text").all_text_contents()[::2]
        assert bars == [f"{value:.0f}" for value in numbers(slider.seen)]
        share = dict(zip(slider.roles, numbers(slider.mass), strict=True))["sink"]
        legend = page.locator(".legend li", has_text="sinks").all_inner_texts()
        assert len(legend) == (share >= 5e-4)
        assert f"{n_recent} recent: perplexity {found}" in page.locator("[aria-live]").inner_text()
        return page.locator(".plot svg").inner_html()

    pictures = [hold(2, 30)]
    page.get_by_role("slider", name="Sinks").focus()
    for key, n_sink in (("ArrowRight", 3), ("Home", 0), ("ArrowUp", 1)):
        page.keyboard.press(key)
        pictures.append(hold(n_sink, 30))
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    pictures.append(hold(1, 16))
    recent = page.get_by_role("slider", name="Recent")
    assert recent.get_attribute("aria-valuetext") == "16 tokens"
    assert recent.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    box = page.get_by_role("slider", name="Sinks").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    pictures.append(hold(3, 16))
    assert len(set(pictures)) == 6
    assert "for 16, 30 recent tokens" in page.locator("small").last.inner_text()
    alone = open_file(slider)
    assert alone.get_by_role("slider", name="Recent").is_enabled()  # 16, and where it began


# A run that is over -----------------------------------------------------------------------------


def shown(page) -> list[dict]:
    """What each lane of a page says."""
    return page.locator(".sinkviz .lane").evaluate_all(
        """lanes => { const texts = (lane, what) =>
          [...lane.querySelectorAll(what)].map(one => one.textContent);
        return lanes.map(lane => ({
          stats: texts(lane, ".stat:not([hidden]) b"),
          text: texts(lane, ".text > span:not(.gap) > span"),
          evicted: lane.querySelectorAll(".text .evicted").length,
          just: texts(lane, ".text .just"),
          sinks: texts(lane, ".kept .sink"),
          curve: lane.querySelector(".curve").getAttribute("d"),
        })); }"""
    )


def told(lanes: SideBySide) -> list[dict]:
    """The same, worked out from the widget's own records."""
    found = []
    for record in lanes._records:
        state, n_sink = record.state(), record.policy.n_sink
        first = state["end"] - len(state["tokens"])
        body = list(range(max(first, n_sink), state["end"]))
        gone = {n: state["evicted"][n - first] for n in body}
        just = [n for n in body if gone[n] == 2]
        found.append(
            {
                "perplexity": f"{state['perplexity']:.1f}",
                "cache": f"{state['cache_size']} tokens",
                "text": [state["tokens"][n - first] for n in body],
                "evicted": sum(map(bool, gone.values())),
                "just": [state["tokens"][n - first] for n in just],
                "sinks": state["head"],
                "points": sum(np.isfinite(np.frombuffer(state["points"], "<f4"))),
            }
        )
    return found


def hold(page, lanes: SideBySide) -> None:
    page.wait_for_selector(f'.sinkviz[data-drawn="{lanes.n_tokens}"]')
    for one, other in zip(shown(page), told(lanes), strict=True):
        assert one["stats"][0] == other.pop("perplexity")
        assert one["stats"][3] == other.pop("cache")
        assert len(one["curve"].split()[1:]) == other.pop("points")
        assert {name: one[name] for name in other} == other


def wait_until(page, right: Callable[[int], bool]) -> int:
    """Return how much is drawn, once it is right; the pages forbid strings that are evaluated."""
    for _ in range(200):
        drawn = int(page.locator(".sinkviz").get_attribute("data-drawn"))
        if right(drawn):
            return drawn
        page.wait_for_timeout(50)
    raise AssertionError(f"{drawn} drawn after ten seconds")


@pytest.mark.parametrize("steps", [60, POINTS + 31])
def test_the_page_of_a_run_shows_what_the_kernel_would(open_file, lm, tmp_path, steps):
    lanes = played(lm, steps, LANES if steps == 60 else LANES[1:3], capture=steps == 60)
    twin = SideBySide.load(lanes.save(tmp_path / "run.json"))
    page = open_file(lanes)
    hold(page, twin)
    token = page.get_by_role("slider", name="Token")
    token.focus()
    # By keyboard: one back, to the beginning, one on; by mouse: a step, the middle, the end.
    for key, n in (("ArrowLeft", steps - 1), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        if n:
            twin.seek(n)
            hold(page, twin)
    page.get_by_role("button", name="Step").click()
    twin.seek(2)
    hold(page, twin)
    box = token.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    middle = wait_until(page, lambda drawn: drawn > 9)
    assert abs(middle - steps / 2) < 3
    twin.seek(middle)
    hold(page, twin)
    assert f"Paused at token {middle}" in page.locator("[aria-live]").inner_text()
    assert token.get_attribute("aria-valuetext") == f"{middle} of {steps} tokens"
    page.get_by_label("Speed").select_option("0")
    play = page.get_by_role("button", name="Play")
    play.focus()
    page.keyboard.press("Enter")
    page.get_by_text("Finished at token").wait_for()
    twin.seek(steps)
    hold(page, twin)
    assert page.get_by_role("button", name="Step").is_disabled()
    # What is over plays again from its beginning, and can be stopped.
    page.get_by_label("Speed").select_option("50")
    play.click()
    wait_until(page, lambda drawn: drawn < 20)
    page.keyboard.press("Space")
    play.wait_for()
    # The counter knows at once where the run stopped, the picture a frame later.
    place = int(page.locator(".counter").inner_text().split()[0])
    wait_until(page, lambda drawn: drawn == place)
    page.wait_for_timeout(200)
    assert int(page.locator(".sinkviz").get_attribute("data-drawn")) == place < steps
    page.get_by_role("button", name="Reset").click()
    page.wait_for_selector('.sinkviz[data-drawn="0"]')
    assert page.get_by_role("button", name="Save").count() == 0


def test_a_page_of_the_end_of_a_run_says_where_it_begins(open_file, lm, tmp_path):
    lanes = played(lm, 250, LANES[1:3])
    twin = SideBySide.load(lanes.save(tmp_path / "run.json"))
    page = open_file(lanes, page={"last": 40}, color_scheme="dark", reduced_motion="reduce")
    assert "This page begins at token 210." in page.locator("small").all_inner_texts()[-1]
    token = page.get_by_role("slider", name="Token")
    token.focus()
    page.keyboard.press("Home")
    page.wait_for_selector('.sinkviz[data-drawn="210"]')
    twin.seek(210)
    for one, other in zip(shown(page), told(twin), strict=True):
        assert (one["stats"][0], one["text"]) == (other["perplexity"], other["text"])
        assert (one["evicted"], one["just"]) == (other["evicted"], other["just"])
    moving = page.locator(".text .evicted").first
    assert moving.evaluate("one => getComputedStyle(one).transitionDuration") == "0s"


# With a kernel ----------------------------------------------------------------------------------

SETUP = """\
import os, pathlib, torch
from reference import tiny_classroom
from sinkviz.policies import Dense, SinkWindow, Window
from sinkviz.widgets import SideBySide, SinkSlider

lm = tiny_classroom(torch.float32)
ids = torch.randint(61, (200,), generator=torch.Generator().manual_seed(0))
policies = [Dense(), Window(16), SinkWindow(4, 12)]"""
LIVE = """\
lanes = SideBySide(lm, policies, prompt=ids[:8], capture=True, speed=50)
lanes.advance(40)
lanes"""
AGAIN = """\
again = SideBySide.load(lanes.save("run.json"))
again"""
SLIDER = "slider = SinkSlider(lm, ids, n_sink=2, n_recent=30); slider"
RESTART = "() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()"


def at(page, index: int, drawn) -> None:
    page.wait_for_function(
        "([i, drawn]) => document.querySelectorAll('.sinkviz')[i]?.dataset.drawn === drawn",
        arg=[index, str(drawn)],
    )


def test_two_copies_a_saved_run_and_a_restart(open_page):
    page = open_page(SETUP, LIVE, "lanes", AGAIN, SLIDER, "slider", reduced_motion="reduce")
    for index, drawn in enumerate((40, 40, 40, "2+30", "2+30")):
        at(page, index, drawn)
    ids = page.locator(".sinkviz [id]").evaluate_all("all => all.map(one => one.id)")
    assert len(ids) == len(set(ids)) >= 4
    first, copy, again = (page.locator(".sinkviz").nth(index) for index in range(3))
    # A step by mouse shows in both copies, with what it evicted; the saved run stays where it is.
    first.get_by_role("button", name="Step").click()
    at(page, 0, 41)
    at(page, 1, 41)
    just = page.kernel("print([''.join(record.tail[n - len(record.ids)][0] for n in record.just)"
                       " for record in lanes._records])")  # fmt: skip
    for one in (first, copy):
        marks = [lane.locator(".just") for lane in one.locator(".lane").all()]
        assert str(["".join(mark.all_text_contents()) for mark in marks]) == just
        assert "to the sinks" in one.locator(".lane").first.inner_text()
    at(page, 2, 40)
    # By keyboard: save, and go through the saved run.
    first.get_by_role("button", name="Save").focus()
    page.keyboard.press("Enter")
    first.locator("[aria-live]", has_text="Saved to side-by-side-1.json.").wait_for()
    assert page.kernel("print(SideBySide.load('side-by-side-1.json').n_tokens)") == "41"
    assert again.get_by_label("Seed").count() == 0
    token = again.get_by_role("slider", name="Token")
    token.focus()
    for key, n in (("ArrowLeft", 39), ("Home", 0), ("ArrowRight", 1), ("End", 40)):
        page.keyboard.press(key)
        at(page, 2, n)
    again.get_by_role("button", name="Play").press("Enter")
    page.wait_for_function("document.querySelectorAll('.sinkviz')[2].dataset.drawn < 30")
    again.get_by_role("button", name="Pause").press("Space")
    again.get_by_role("button", name="Play").wait_for()
    box = token.bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    at(page, 2, 0)
    assert page.kernel("print(again.n_tokens, again.playing)") == "0 False"
    # The other copy of the slider follows.
    page.get_by_role("slider", name="Sinks").first.press("ArrowRight")
    at(page, 3, "3+30")
    at(page, 4, "3+30")
    page.evaluate(RESTART)
    page.run_all()
    for index, drawn in enumerate((40, 40, 40, "2+30", "2+30")):
        at(page, index, drawn)
    assert page.locator(".sinkviz").count() == 5
