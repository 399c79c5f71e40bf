"""The widgets in JupyterLab, in a real browser: drawn, driven by keyboard, and silent otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["browser"]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SETUP = """\
import torch
from reference import tiny_classroom
from sinkviz.models import LM
from sinkviz.policies import H2O, Dense, Recompute, SinkWindow, Window
from sinkviz.widgets import SideBySide, SinkSlider

class Markup:
    def decode(self, ids, **options):
        return "<b id=injected onclick=alert(1)>x</b> "

lm = tiny_classroom(torch.float32)
ids = torch.randint(61, (300,), generator=torch.Generator().manual_seed(0))"""
SLIDER = "slider = SinkSlider(lm, ids, n_sink=2, n_recent=30); slider"
LANES = """\
if "lanes" in globals():
    first = lanes
lanes = SideBySide(lm, [Dense(), Window(16), SinkWindow(4, 12), Recompute(16)],
                   prompt=ids[:8], max_new_tokens=None, speed=0)
lanes"""
READING = """\
reading = SideBySide(LM(lm.model, Markup()), [Window(16), SinkWindow(4, 12), H2O(8, 8)], text=ids)
reading.advance(60)
reading"""


def drawing(page) -> str:
    return page.locator(".sinkviz .plot svg").inner_html()


def spoken(page) -> str:
    return page.locator(".sinkviz [aria-live]").first.inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_slider_by_keyboard(open_page, theme):
    page = open_page(SETUP, SLIDER, theme=theme, reduced_motion="reduce")
    page.wait_for_selector('[data-drawn="2+30"]')
    assert "2 tokens as sinks, 30 recent" in spoken(page)
    sinks, recent = page.get_by_role("slider", name="Sinks"), page.get_by_role("slider", name="Rec")
    sinks.focus()
    pictures, said = [drawing(page)], [spoken(page)]
    for key, drawn in (("ArrowRight", "3+30"), ("Home", "0+30"), ("ArrowUp", "1+30")):
        page.keyboard.press(key)
        page.wait_for_selector(f'[data-drawn="{drawn}"]')
        pictures.append(drawing(page))
        said.append(spoken(page))
    assert len(set(pictures)) == len(set(said)) == 4
    page.keyboard.press("Tab")
    page.keyboard.press("PageUp")
    page.wait_for_function("!document.querySelector('[data-drawn=\"1+30\"]')")
    assert recent.get_attribute("aria-valuetext") == f"{recent.input_value()} tokens"
    # Bars of 0, 1, 2 and 3 sinks were drawn for 30 recent tokens; now one is.
    assert page.locator(".sinkviz .bar").count() == 1
    # The kernel's side is heard as well.
    page.kernel("slider.n_recent = 30; slider.n_sink = 8")
    page.wait_for_selector('[data-drawn="8+30"]')
    assert sinks.input_value() == "8" and page.locator(".sinkviz .bar").count() == 5
    colour = page.locator(".sinkviz .verdict strong").evaluate("one => getComputedStyle(one).color")
    assert (max(map(int, re.findall(r"\d+", colour)[:3])) > 127) == (theme == "dark")


def test_fast_moves_are_coalesced(open_page):
    page = open_page(SETUP, SLIDER)
    page.wait_for_selector('[data-drawn="2+30"]')
    page.kernel("import time; run = slider._run")
    page.kernel("slider._run = lambda *a: (time.sleep(0.3), run(*a))[1]")
    page.get_by_role("slider", name="Recent").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector('[data-drawn="2+50"]')
    assert int(page.kernel("print(len(slider._runs))")) < 12


def drawn(page, index: int = 0) -> int:
    return int(page.locator(".sinkviz").nth(index).get_attribute("data-drawn"))


def test_lanes_play_pause_step_reset(open_page):
    page = open_page(SETUP, LANES)
    page.wait_for_selector('[data-drawn="0"]')
    page.get_by_role("button", name="Play").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.sinkviz').dataset.drawn > 60")
    page.keyboard.press("Space")  # the same button, now Pause
    page.wait_for_function("document.querySelector('.sinkviz button').textContent === 'Play'")
    paused = int(page.kernel("print(lanes.n_tokens, lanes.playing)").split()[0])
    page.wait_for_selector(f'[data-drawn="{paused}"]')
    assert page.kernel("print(lanes.n_tokens, lanes.playing)") == f"{paused} False"
    assert f"Paused at token {paused:,}" in spoken(page)
    lanes = page.locator(".sinkviz .lane")
    assert lanes.count() == 4
    assert [lanes.nth(i).locator(".kept .sink").count() for i in range(4)] == [0, 0, 4, 1]
    kept = min(paused + 7, 400)
    for index in range(4):
        spans = lanes.nth(index).locator(".text span span, .text > span:not(.gap) > span")
        assert lanes.nth(index).locator(".text .new").count() == 1
        assert kept - 5 <= spans.count() <= kept + 1
    gone = [lanes.nth(i).locator(".text .evicted").count() for i in range(4)]
    assert gone[0] == 0 and min(gone[1:]) > 20
    page.get_by_role("button", name="Step").click()
    page.wait_for_selector(f'[data-drawn="{paused + 1}"]')
    page.get_by_role("button", name="Play").click()
    page.wait_for_function(f"document.querySelector('.sinkviz').dataset.drawn > {paused + 9}")
    page.execute("notebook:interrupt-kernel")
    page.get_by_role("button", name="Play").wait_for()
    seed = page.get_by_label("Seed")
    seed.fill("7")
    seed.press("Enter")
    page.wait_for_selector('[data-drawn="0"]')
    assert page.kernel("print(lanes.seed, lanes.n_tokens)") == "7 0"
    page.get_by_label("Speed").select_option("50")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.sinkviz').dataset.drawn > 5")
    page.get_by_role("button", name="Reset").click()
    page.wait_for_selector('[data-drawn="0"]')
    assert page.kernel("print(lanes.playing, lanes.speed)") == "False 50.0"


def test_lanes_survive_a_reload_and_stop_when_run_again(open_page):
    page = open_page(SETUP, LANES, READING)
    page.wait_for_selector('.sinkviz[data-drawn="60"]')
    # Tokens are text, whatever they look like.
    assert page.locator("#injected").count() == 0
    assert "<b id=injected" in page.locator(".sinkviz .text").last.inner_text()
    # What goes by attention leaves gaps, and has a colour like any other.
    heavy = page.locator(".sinkviz .lane.other")
    gone = page.kernel("print(*sorted(reading._records[2].evicted))").split()
    assert "kept by attention" in heavy.locator(".kept").inner_text()
    assert heavy.locator(".text .evicted").count() == len(gone) > 10
    stroke = heavy.locator(".curve").evaluate("one => getComputedStyle(one).stroke")
    assert stroke == heavy.evaluate("one => getComputedStyle(one).color")
    page.kernel("lanes.error = 'no <i>memory</i> left.'")
    page.get_by_role("alert").filter(has_text="no <i>memory</i> left.").wait_for()
    page.get_by_role("button", name="Play").first.click()
    page.wait_for_function("document.querySelector('.sinkviz').dataset.drawn > 30")
    page.execute("docmanager:save")
    page.wait_for_selector(".jp-mod-dirty", state="detached")
    page.reload()
    # Rebuilt from the kernel's state, with all its tokens.
    page.wait_for_function("document.querySelector('.sinkviz')?.dataset.drawn > 30", timeout=60_000)
    written = "document.querySelectorAll('.sinkviz .lane')[0].querySelectorAll('.text span span')"
    assert page.evaluate(f"{written}.length") > 30
    page.get_by_role("button", name=re.compile("Play|Pause")).first.wait_for()
    if page.get_by_role("button", name="Pause").count() == 0:
        page.get_by_role("button", name="Play").first.click()
    page.get_by_role("button", name="Pause").first.wait_for()
    page.run_all()
    page.wait_for_selector('.sinkviz[data-drawn="0"]')
    assert page.kernel("print(first.playing, lanes.playing)") == "False False"


ROOT = Path(__file__).parent.parent


@pytest.fixture
def open_chapter(run_notebook):
    """``open_chapter(name)`` runs all of a notebook of the course; it must do so cleanly."""

    def run(name):
        page = run_notebook(ROOT / "notebooks" / name)
        assert page.failed_cells() == []
        return page

    return run


def move_the_sinks(page, before: str, after: str) -> None:
    """Move the first notebook slider to no sink at all, by keyboard, and see that all changes."""
    page.wait_for_selector(f'[data-drawn="{before}"]')
    picture, said = drawing(page), spoken(page)
    slider = page.get_by_role("slider", name="Sinks")
    slider.scroll_into_view_if_needed()
    slider.focus()
    page.keyboard.press("Home" if after.startswith("0") else "End")
    page.wait_for_selector(f'[data-drawn="{after}"]')
    assert drawing(page) != picture
    assert spoken(page) != said


@pytest.mark.models
def test_the_first_notebook_as_a_student_would(open_chapter):
    page = open_chapter("00_start_here.ipynb")
    move_the_sinks(page, "4+60", "0+60")
    page.wait_for_selector('.sinkviz[data-drawn="300"]')
    page.get_by_role("button", name="Play").click()
    page.wait_for_function(
        "[...document.querySelectorAll('.sinkviz')].some(one => one.dataset.drawn > 310)"
    )
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Play").wait_for()
    assert page.errors == []
    assert page.hosts <= {"127.0.0.1", None}


@pytest.mark.models
def test_the_cliff_notebook_as_a_student_would(open_chapter):
    page = open_chapter("08_cliff_and_rescue.ipynb")
    move_the_sinks(page, "0+64", "8+64")
    assert page.errors == []
    assert page.hosts <= {"127.0.0.1", None}


OTHERS = sorted(p.name for p in ROOT.glob("notebooks/*.ipynb") if p.name[:2] not in ("00", "08"))


@pytest.mark.models
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_notebook_runs_and_its_widget_answers(open_chapter, name):
    page = open_chapter(name)
    widget = page.locator(".sinkviz").first
    widget.scroll_into_view_if_needed()
    step = widget.get_by_role("button", name="Step", exact=True)
    control = step if step.count() else widget.locator("input[type=range]").first
    control.wait_for()
    before = widget.evaluate("one => one.outerHTML")
    control.focus()
    for key in ("Enter", "ArrowLeft", "ArrowRight"):  # one of them moves it, wherever it stands
        page.keyboard.press(key)
        page.wait_for_timeout(2000)
        if widget.evaluate("one => one.outerHTML") != before:
            break
    else:
        pytest.fail("the widget does not answer the keyboard")
    assert page.errors == []
    assert page.hosts <= {"127.0.0.1", None}
