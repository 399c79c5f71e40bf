"""The bundled model really has sinks, and really shows the cliff."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from sinkviz.capturing import capture
from sinkviz.experiments import forgetting_from, measure, tidy, x_plus_y
from sinkviz.metrics import sink_rate
from sinkviz.models import assets_folder, bundled, load
from sinkviz.policies import Dense, Recompute, SinkWindow, Window
from sinkviz.recipes import recipe_of
from sinkviz.scoring import score
from sinkviz.streaming import stream
from sinkviz.text import books_folder, read_text

pytestmark = pytest.mark.models
CACHE = 64


@pytest.fixture(scope="module")
def lm():
    return load("classroom-rope")


def after_eviction(lm, ids, policies) -> dict[str, float]:
    """Mean nll from where every limited cache has evicted, by policy."""
    return {row["policy"]: row["nll_forgetting"] for row in tidy(measure(lm, ids, policies))}


def test_it_is_small_and_half_precision_changes_nothing(lm):
    assert sum(p.numel() for p in lm.model.parameters()) < 8e6
    assert lm.train_length == 2 * CACHE


@pytest.mark.parametrize("name", bundled())
def test_every_model_of_the_zoo_says_what_it_is(name):
    folder = assets_folder() / "models" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    lm, recipe = load(name), recipe_of(name)
    assert {key: getattr(lm.model.config, key) for key in recipe.model} == recipe.model
    assert json.loads((folder / "recipe.json").read_text()) == json.loads(
        json.dumps(dataclasses.asdict(recipe))
    )
    first = lm.tokens(lm.encode("Once"))[: recipe.config.n_sink_tokens + 1]
    begins = ("<|begin|>",) if recipe.begin_share else ("O",)
    assert first == ("<|sink|>",) * recipe.config.n_sink_tokens + begins
    lines = [json.loads(line) for line in (folder / "growth.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) >= (20 if recipe.n_steps > 3000 else 15)
    assert lines[-1]["step"] == recipe.n_steps
    card = (folder / "card.md").read_text()
    assert card.startswith(f"# {name}\n") and f"`sinkviz train {name}` repeats it" in card


def test_many_heads_lean_on_the_first_token(lm):
    ids = lm.encode(read_text("stories", n_characters=100_000, seed=11))
    traces = [
        capture(lm, torch.cat((ids[:1], ids[start : start + lm.train_length - 1])), n_sink=1)
        for start in range(1, 4000, 400)
    ]
    received = torch.stack([torch.from_numpy(trace.received) for trace in traces]).mean(0)
    assert sink_rate(received) >= 0.4
    assert max(trace.mass_of("sink").max() for trace in traces) > 0.8


def test_stories_show_the_cliff_and_the_rescue(lm):
    ids = lm.encode(read_text("stories", n_characters=30_000, seed=11))[:4000]
    after = after_eviction(lm, ids, [Dense(), *x_plus_y(CACHE, (0, 1, 4))])
    assert after["0+64"] - after["4+60"] > 0.1
    assert abs(after["1+63"] - after["4+60"]) < 0.02
    assert after["Dense"] - after["4+60"] > 0.5


@pytest.mark.skipif(books_folder() is None, reason="no books here: set SINKVIZ_BOOKS")
def test_held_out_books_show_what_the_card_says(lm):
    ids = lm.encode(read_text("books:valid", n_characters=160_000))[:20_000]
    runs = measure(lm, ids, [Dense(), *x_plus_y(CACHE)])
    after = {row["policy"]: row["nll_forgetting"] for row in tidy(runs)}
    assert forgetting_from(runs) == CACHE + 1
    assert after["0+64"] - after["4+60"] > 0.5
    assert after["Dense"] - after["4+60"] > 0.5
    for one in ("1+63", "2+62", "8+56"):
        assert abs(after[one] - after["4+60"]) < 0.03
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for run in runs[:2]:
        assert f" {run.perplexity:.0f}: " in readme
    assert f" {runs[4].perplexity:.1f}: " in readme
    short = ids[:3000]
    recomputed = score(lm, short, Recompute(CACHE)).mean_nll(CACHE + 1)
    assert abs(score(lm, short, SinkWindow(4, 60)).mean_nll(CACHE + 1) - recomputed) < 0.03


def test_a_stream_goes_on_and_on(lm):
    """Fifty caches long: bytes and time stay, and the text does not fall apart."""
    steps = list(
        stream(lm, SinkWindow(4, 60), "Once upon a time", max_new_tokens=3200, temperature=1.0)
    )
    assert {step.cache_bytes for step in steps} == {steps[-1].cache_bytes}
    written = [step.token_id for step in steps]
    late = lm.encode(torch.tensor([0, *written[-100:]]))
    assert score(lm, late, Window(CACHE)).perplexity < lm.model.config.vocab_size / 4
    thirds = [sum(s.entropy for s in steps[i : i + 1000]) / 1000 for i in (200, 1200, 2200)]
    assert max(thirds) - min(thirds) < 0.5
