"""Text as an attack: tokens and names that would be markup, that turn lines around, or never end.

Every widget is shown with them, in a page of its own; a new widget has to join.
"""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest
import torch
from reference import tiny_classroom

import sinkviz.widgets
from sinkviz import widgets
from sinkviz.capturing import capture
from sinkviz.models import LM
from sinkviz.policies import SinkWindow, Window
from sinkviz.widgets.token_labels import prose

pytest_plugins = ["browser"]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

MARKUP = "<b id=hurt>x</b>"
HOSTILE = (
    MARKUP,
    "<script>window.hurt = 1</script>",
    "</script><script>window.hurt = 2</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" \'`${alert(2)}`',
    "\u202eturned around\u202c\u2066",
    "zero\u200bwidth\u200d\ufeff\u2060",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600",
    "\x00\x1b[31m\x07",
    "a\r\nb\u2028c",
    "العربية",
    "x" * 10_000,
)
# Turn the line around or are not seen; none of them may come into a page.
UNSEEN = (
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u200d\u2060\ufeff\x00\x07\x1b"
)
NAME = MARKUP + "<script>window.hurt = 3</script>"


class Hostile:
    """A tokenizer whose tokens are the hostile ones in turn."""

    def decode(self, ids, skip_special_tokens=False):
        return "".join(HOSTILE[int(n) % len(HOSTILE)] for n in ids)

    def convert_ids_to_tokens(self, ids, **options):
        return [HOSTILE[int(n) % len(HOSTILE)] for n in ids]


def hostile_lm() -> LM:
    return LM(tiny_classroom(torch.float32).model, Hostile(), NAME)


def hostile_trace():
    trace = capture(tiny_classroom(torch.float32), torch.arange(24), keep="maps", scores=True)
    return dataclasses.replace(trace, tokens=HOSTILE * 2, provenance={"model": NAME})


def hostile_lanes(**given):
    lanes = widgets.SideBySide(hostile_lm(), [Window(8), SinkWindow(2, 6)], **given)
    lanes.advance(23)
    return lanes


def hostile_lab():
    row = {"position": "rope", "nll": 1.0, "perplexity": 2.7, "train_length": 8}
    return widgets.PositionLab([{**row, "model": NAME, "length": n} for n in (8, 16)])


def hostile_birth():
    growth = [
        {"step": n, "tokens": n, "loss": 4.0 - n, "sink_rate": 0.1 * n, "first_token": [[0.2, 0.3]]}
        for n in (1, 2, 3)
    ]
    return widgets.SinkBirth({NAME: growth, "x" * 200: growth})


MADE = {
    "AttentionExplorer": lambda: widgets.AttentionExplorer(hostile_trace()),
    "SinkSlider": lambda: widgets.SinkSlider(hostile_lm(), torch.arange(30) % 61, max_sink=4),
    "SideBySide": lambda: hostile_lanes(text=torch.arange(24)),
    "CachePlayer": lambda: widgets.CachePlayer(SinkWindow(2, 6), HOSTILE),
    "SoftmaxBench": lambda: widgets.SoftmaxBench(),  # takes no text but the title of its page
    "AlibiFan": lambda: widgets.AlibiFan(4, hostile_trace()),
    "SinkBirth": hostile_birth,
    "PositionLab": hostile_lab,
}
SHOWS_TOKENS = {"AttentionExplorer", "SideBySide", "CachePlayer", "AlibiFan"}


def saved(widget) -> int:
    """Characters of a widget's state in a notebook."""
    state = widget.get_state()
    return len(json.dumps(state, default=lambda one: base64.b64encode(one).decode()))


def everything_said(page) -> str:
    """All text of the page, and all that a screen reader is told instead."""
    return page.evaluate(
        """() => [...document.querySelectorAll("body *:not(script, noscript)")].flatMap(one => [
          ...[...one.childNodes].filter(node => node.nodeType === 3).map(node => node.data),
          one.getAttribute("aria-label") ?? "", one.getAttribute("title") ?? "",
        ]).join("\\n")"""
    )


def test_every_widget_is_here():
    assert set(MADE) == set(sinkviz.widgets.__all__)


@pytest.mark.parametrize("name", MADE)
def test_text_stays_text(open_file, name):
    widget = MADE[name]()
    assert saved(widget) < 100_000
    page = open_file(
        widget, page={"title": f"A {MARKUP} title"}, viewport={"width": 900, "height": 700}
    )
    assert page.title() == f"A {MARKUP} title"
    said = everything_said(page)
    assert page.evaluate("window.hurt") is None
    assert (
        page.locator("#hurt, [onerror], [onmouseover], .sinkviz script, .sinkviz img").count() == 0
    )
    assert not set(UNSEEN) & set(said)
    assert max(map(len, said.splitlines())) < 2000
    if name in SHOWS_TOKENS:
        assert MARKUP in said or MARKUP[:9] in said, "it is shown, as it is"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    page.keyboard.press("Tab")  # and it still answers
    assert page.evaluate("document.activeElement.closest('.sinkviz') !== null")


def test_lanes_that_write_and_figures_take_it_too(open_file, tmp_path):
    lanes = hostile_lanes(prompt=torch.arange(12), temperature=0.0)
    path = lanes.save(tmp_path / "run.json")
    again = widgets.SideBySide.load(path)
    # The file keeps tokens as they are; what is shown is cut and cleaned.
    assert set(again.recording.spelled[0]) <= set(HOSTILE)
    shown = again.get_state("tail")["tail"][0]["tokens"]
    assert shown[:12] == [prose(token) for token in HOSTILE]
    assert max(map(len, shown)) <= 40 and saved(again) < 100_000
    for make in ("SideBySide", "SinkSlider", "CachePlayer", "AlibiFan"):
        assert len(MADE[make]().picture()) > 1000
    page = open_file(again)
    page.get_by_role("slider", name="Token").press("Home")
    page.wait_for_selector('[data-drawn="0"]')
    assert MARKUP in page.locator(".lane .text").first.text_content()
