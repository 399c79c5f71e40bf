"""The same numbers on a CUDA device as on the CPU."""

from __future__ import annotations

import pytest
import torch
from reference import tiny_classroom, tiny_llama

from sinkviz.capturing import capture
from sinkviz.policies import Dense, Recompute, SinkWindow, Window
from sinkviz.scoring import score
from sinkviz.streaming import stream

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
IDS = torch.arange(90) % 61
MODELS = {
    "rope": tiny_classroom,
    "alibi": lambda: tiny_classroom(position="alibi"),
    "llama": tiny_llama,
}


@pytest.mark.parametrize("policy", [Dense(), Window(12), SinkWindow(4, 8), Recompute(12)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_scores_agree_with_the_cpu(name, policy):
    lm = MODELS[name]()
    expected = score(lm, IDS, policy).nll[1:]
    lm.model.to("cuda")
    for engine in ("parallel", "stepwise"):
        found = score(lm, IDS, policy, engine=engine).nll[1:]
        assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_capture_and_stream_agree_with_the_cpu(name):
    lm = MODELS[name]()
    trace = capture(lm, IDS)
    steps = [step.token_id for step in stream(lm, SinkWindow(2, 6), IDS[:5], max_new_tokens=40)]
    lm.model.to("cuda")
    assert capture(lm, IDS).attention == pytest.approx(trace.attention, abs=1e-6)
    assert steps == [
        step.token_id for step in stream(lm, SinkWindow(2, 6), IDS[:5], max_new_tokens=40)
    ]


def test_half_precision_streams_stay_close():
    lm = tiny_llama()
    expected = score(lm, IDS, SinkWindow(4, 8)).mean_nll()
    lm.model.to("cuda", torch.bfloat16)
    assert score(lm, IDS, SinkWindow(4, 8)).mean_nll() == pytest.approx(expected, rel=0.05)
