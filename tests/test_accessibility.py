"""axe-core finds no serious fault in what we show: each widget as a page, the report, a deck."""

from __future__ import annotations

import re

import pytest
from reference import tiny_llama

import sinkviz as sv
import sinkviz.widgets
from sinkviz.report import write_report

pytestmark = pytest.mark.browser
IDS = [(7 * i) % 61 for i in range(60)]


def side_by_side(lm):
    lanes = sv.SideBySide(lm, [sv.Dense(), sv.SinkWindow(2, 10)], text=IDS, capture=True)
    lanes.advance(40)
    return lanes


def widget_pages(folder):
    """Write every widget to a page of its own; yield the paths."""
    lm = tiny_llama()
    made = {
        "SinkSlider": lambda: sv.SinkSlider(lm, IDS),
        "SideBySide": lambda: side_by_side(lm),
        "AttentionExplorer": lambda: sv.AttentionExplorer(sv.capture(lm, IDS, keep="maps")),
        "CachePlayer": lambda: sv.CachePlayer(sv.SinkWindow(2, 6), 20),
        "SoftmaxBench": lambda: sv.SoftmaxBench(),
        "AlibiFan": lambda: sv.AlibiFan(),
        "SinkBirth": lambda: sv.SinkBirth("classroom-rope"),
        "PositionLab": lambda: sv.PositionLab(),
    }
    assert set(made) == set(sinkviz.widgets.__all__)
    for name, make in made.items():
        yield name, make().to_html(folder / f"{name}.html")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    found = dict(widget_pages(folder))
    report = write_report(
        tiny_llama(), IDS, folder / "report.html", policies=[sv.Dense(), sv.SinkWindow(2, 10)]
    )
    return found | {"report": report}


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*sinkviz.widgets.__all__, "report"])
def test_axe_finds_no_serious_fault(name, scheme, pages, browser):
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(color_scheme=scheme, offline=True)
    complaints = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(pages[name].as_uri())
    page.wait_for_timeout(500)
    found = Axe().run(page).response["violations"]
    page.close()
    serious = [
        (fault["id"], fault["help"], [re.sub(r"\s+", " ", n["html"])[:120] for n in fault["nodes"]])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert not serious
    assert not complaints
