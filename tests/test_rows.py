"""While a stream is decoded, each step tells where its attention went, exactly."""

from __future__ import annotations

import pytest
import torch
from naive import naive_logits
from zoo import zoo_model

from sinkviz.lanes import Lane
from sinkviz.metrics import ROLES
from sinkviz.policies import H2O, Dense, Recompute, SinkWindow, Window
from sinkviz.rows import LastRows
from sinkviz.scoring import score
from sinkviz.streaming import compare, stream

POLICIES = [Dense(), Window(12), SinkWindow(4, 8), SinkWindow(4, 8, "text")]


def text(n: int) -> torch.Tensor:
    return torch.randint(3, 61, (n,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", ["llama", "classroom-sink-logit", "gemma2", "gptj", "mpt"])
def test_rows_of_a_step_are_those_of_the_parallel_scorer(name, policy):
    with zoo_model(name) as lm:
        ids = text(60)
        run = score(lm, ids, policy, mass=True, block=17)
        steps = list(compare(lm, [policy], text=ids, capture=True))
        for (step,), expected in zip(steps, run.mass[:-1], strict=True):
            assert list(step.mass) == list(ROLES)
            assert list(step.mass.values()) == pytest.approx(expected, abs=1e-5)
            assert sum(step.mass.values()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("policy", [H2O(4, 4), Recompute(8), *POLICIES], ids=str)
def test_watching_changes_no_prediction(policy):
    with zoo_model("llama") as lm:
        ids = text(40)
        expected = None
        if not policy.by_attention:
            in_text = policy.positions == "text" and policy.cache_size is not None
            expected = naive_logits(lm, ids, policy, text_positions=in_text)
        lane, watched = Lane(lm, policy), Lane(lm, policy)
        for i in range(len(ids)):
            rows = LastRows()
            found = watched.feed(ids[i : i + 1], rows=rows)
            torch.testing.assert_close(found, lane.feed(ids[i : i + 1]), atol=1e-9, rtol=0)
            if expected is not None:
                torch.testing.assert_close(found, expected[i], atol=1e-9, rtol=0)
            assert sum(rows.by_role().values()) == pytest.approx(1.0, abs=1e-5)
            assert int(max(position.max() for position in rows.key_position)) == i


def test_the_row_says_which_tokens_it_is_about():
    with zoo_model("llama") as lm:
        lane, rows = Lane(lm, SinkWindow(2, 6)), LastRows()
        lane.feed(text(30), rows=rows)
        position, attention = rows.key_position[0], rows.attention[0][0]
        assert sorted(position[attention > 0].tolist()) == SinkWindow(2, 6).keep(30)


def test_a_stream_can_be_watched():
    with zoo_model("llama") as lm:
        plain = list(stream(lm, SinkWindow(2, 6), text(5), max_new_tokens=20))
        watched = list(stream(lm, SinkWindow(2, 6), text(5), max_new_tokens=20, capture=True))
        assert [s.token_id for s in plain] == [s.token_id for s in watched]
        assert plain[0].mass is None
        assert watched[-1].mass["sink"] > 0


@pytest.mark.parametrize("policy", [H2O(4, 4), Recompute(8), *POLICIES], ids=str)
def test_a_step_has_the_rows_of_every_head_where_they_are_asked_for(policy):
    with zoo_model("llama") as lm:
        steps = list(stream(lm, policy, text(5), max_new_tokens=20, capture="rows"))
        plain = next(stream(lm, policy, text(5), max_new_tokens=1, capture=True))
    assert plain.rows is None
    for step in steps:
        assert step.rows.query == step.position - 1
        assert step.rows.by_role() == step.mass
        assert len(step.rows.attention) == 2
        for attention in step.rows.attention:
            torch.testing.assert_close(attention.sum(-1), torch.ones(4).to(attention))
    with pytest.raises(ValueError, match="capture must be True, False or 'rows'"):
        stream(lm, policy, text(5), capture="maps")


def test_eager_falcon_with_alibi_is_refused_where_it_would_be_wrong():
    with zoo_model("falcon-alibi") as lm:
        with pytest.raises(ValueError, match="applies its ALiBi bias twice"):
            Lane(lm, Dense()).feed(text(3), rows=LastRows())
        rows = LastRows()
        Lane(lm, SinkWindow(2, 6)).feed(text(20), rows=rows)
        assert sum(rows.by_role().values()) == pytest.approx(1.0, abs=1e-5)
