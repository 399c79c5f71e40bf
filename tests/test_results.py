"""The records in assets/runs: still what the shipped weights give, and what RESULTS.md says."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from sinkviz.experiments import EXPERIMENTS, Setting, experiment, load_table
from sinkviz.experiments.results import results_page
from sinkviz.models import bundled, load
from sinkviz.recipes import VARIANTS
from sinkviz.text import books_folder

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "assets" / "runs"
RECORDS = sorted(path.stem for path in RUNS.glob("*.json"))

# Cells that take seconds and carry the headline: words of each, what tells their rows apart, and
# what must be as recorded.
HEADLINES = {
    "x_plus_y": (('"0+64"', '"1+63"'), ("policy",), ("nll",)),
    "token_or_position": (('"as it is"', '"newline instead"'), ("edit",), ("position_0", "nll")),
    "train_short_test_long": (('"position-alibi"',), ("kind", "length"), ("nll",)),
}


def test_records_are_of_experiments_and_small():
    assert set(RECORDS) <= set(EXPERIMENTS) and len(RECORDS) >= 8
    for name in RECORDS:
        path = RUNS / f"{name}.json"
        assert path.stat().st_size < 300_000
        said = json.loads(path.read_text())["provenance"]
        # Whoever wants a variant itself trains it: sinkviz train NAME.
        assert set(said["models"]) <= {*bundled(), *VARIANTS} and not said["quick"]


def test_the_page_of_results_is_what_the_records_say():
    assert (ROOT / "docs" / "RESULTS.md").read_text() == results_page(RUNS), "run: make results"


@pytest.mark.parametrize("name", RECORDS)
def test_every_claim_is_judged(name):
    table, asked = load_table(name), experiment(name)
    assert asked.claims
    for claim in asked.claims:
        agrees, here = claim.judge(table)
        assert agrees in (True, False, None) and here


@pytest.mark.models
@pytest.mark.skipif(books_folder() is None, reason="no books here: set SINKVIZ_BOOKS")
@pytest.mark.parametrize("name", HEADLINES)
def test_the_shipped_weights_still_give_the_recorded_numbers(name):
    recorded, asked = load_table(name), experiment(name)
    said = recorded.attrs["provenance"]
    setting = Setting({one: load(one) for one in said["models"]}, said["text"], seed=said["seed"])
    words, keys, numbers = HEADLINES[name]
    cells = [cell for cell in asked.cells(setting) if any(w in json.dumps(cell) for w in words)]
    assert len(cells) == len(words)
    measured = pd.DataFrame([row for cell in cells for row in asked.measure(setting, cell)])
    both = measured.merge(recorded, on=["model", *keys], suffixes=("", " recorded"))
    assert len(both) == len(measured)
    for number in numbers:
        assert both[number].tolist() == pytest.approx(
            both[f"{number} recorded"].tolist(), rel=1e-3, abs=2e-3
        )
