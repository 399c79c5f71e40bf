"""All widgets in one notebook, at the first Run All, in JupyterLab and in Notebook 7."""

from __future__ import annotations

import pytest

import sinkviz.widgets

pytest_plugins = ["browser"]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

SETUP = """\
import sinkviz as sv
from reference import tiny_llama
lm, ids = tiny_llama(), [(7 * i) % 61 for i in range(60)]"""
MADE = {
    "SinkSlider": "sv.SinkSlider(lm, ids, n_sink=2, n_recent=30)",
    "SideBySide": "sv.SideBySide(lm, [sv.Dense(), sv.SinkWindow(2, 10)], text=ids)",
    "AttentionExplorer": "sv.AttentionExplorer(sv.capture(lm, ids, keep='maps'), layer=0, head=0)",
    "CachePlayer": "sv.CachePlayer(sv.SinkWindow(2, 6), 20)",
    "SoftmaxBench": "sv.SoftmaxBench()",
    "AlibiFan": "sv.AlibiFan()",
    "SinkBirth": "sv.SinkBirth('classroom-rope')",
    "PositionLab": "sv.PositionLab()",
}


def test_every_widget_draws_and_answers_the_keyboard(front_end, open_page):
    assert set(MADE) == set(sinkviz.widgets.__all__)
    cells = [f"w{i} = {made}; w{i}" for i, made in enumerate(MADE.values())]
    page = open_page(SETUP, *cells)
    widgets = page.locator(".sinkviz")
    drawn = "document.querySelectorAll('.sinkviz[data-drawn]').length === %d"
    page.wait_for_function(drawn % len(MADE))
    assert widgets.count() == len(MADE)
    names = list(MADE)
    for i, name in enumerate(names):
        widget = widgets.nth(i)
        widget.scroll_into_view_if_needed()
        ranges = widget.locator("input[type=range]:visible")
        control = ranges.first if ranges.count() else widget.get_by_role("button", name="Step")
        before = widget.evaluate("one => one.outerHTML")
        control.focus()
        for key in ("Enter", "ArrowLeft", "ArrowRight"):  # one moves it, wherever it stands
            page.keyboard.press(key)
            page.wait_for_timeout(500)
            if widget.evaluate("one => one.outerHTML") != before:
                break
        else:
            pytest.fail(f"{name} does not answer the keyboard")
        assert widget.evaluate("one => one.contains(document.activeElement)"), name
    # The kernel has heard of it and has answered: another head, with its exact map.
    explorer = widgets.nth(names.index("AttentionExplorer"))
    explorer.get_by_role("gridcell").first.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function(
        "one => one.dataset.drawn === '1.0' && one.dataset.cell === '1'",
        arg=explorer.element_handle(),
    )
    told = f"print(w{names.index('AttentionExplorer')}.layer)"
    page.wait_for_timeout(500)
    assert page.kernel(told) == "1"
