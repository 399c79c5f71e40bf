"""Every family streams exactly: one token at a time, in chunks, alone or in a padded batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from naive import naive_logits
from zoo import ZOO, zoo_float32, zoo_model

from sinkviz.families import FAMILIES
from sinkviz.forward import forward
from sinkviz.policies import Dense, Recompute, SinkWindow, Window
from sinkviz.streaming import Lane

POLICIES = [Dense(), Window(12), SinkWindow(4, 8), Recompute(12)]
ABSOLUTE = ("gpt2", "opt")
LENGTH = 110  # nine windows
CHUNKS = (1, 2, 30, 7, 45, 25)


def text(n: int = LENGTH, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 61, (n,), generator=torch.Generator().manual_seed(seed))


def moving(name: str, policy) -> bool:
    return policy.cache_size is not None and not policy.recompute


def fed(lm, policy, ids, chunks, mask=None) -> torch.Tensor:
    """Logits after every token, (batch, token, vocabulary); only the last of a recompute chunk."""
    lane, parts, start = Lane(lm, policy), [], 0
    for size in chunks:
        part = slice(start, start + size)
        start += size
        part_mask = None if mask is None else mask[:, part]
        if lane.cache is None:
            parts.append(lane.feed(ids[:, part], part_mask)[:, None])
        else:
            parts.append(forward(lm, lane.cache, ids[:, part], attention_mask=part_mask))
    return torch.cat(parts, 1)


def test_every_family_of_the_table_is_in_the_zoo():
    found = set()
    for make in ZOO.values():
        found.add(make().model.config.model_type)
    assert found == set(FAMILIES)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_streams_and_batches_equal_the_naive_definition(name, policy):
    with zoo_model(name) as lm:
        if moving(name, policy) and lm.family.positions == "absolute":
            with pytest.raises(ValueError, match="use Dense or Recompute"):
                Lane(lm, policy)
            return
        ids = text()
        expected = naive_logits(lm, ids, policy)
        steps = [1] * LENGTH
        close = {"atol": 1e-9, "rtol": 0}
        torch.testing.assert_close(fed(lm, policy, ids[None], steps)[0], expected, **close)
        if not policy.recompute:
            found = fed(lm, policy, ids[None], CHUNKS)[0]
            torch.testing.assert_close(found, expected, **close)

        lengths = (LENGTH, 71, 40)
        batch = torch.stack([torch.cat((0 * ids[: LENGTH - n], ids[:n])) for n in lengths])
        mask = torch.stack([(torch.arange(LENGTH) >= LENGTH - n).long() for n in lengths])
        for chunks in (steps, CHUNKS):
            if policy.recompute and chunks is not steps:
                continue
            found = fed(lm, policy, batch, chunks, mask)
            for row, n in enumerate(lengths):
                torch.testing.assert_close(found[row, LENGTH - n :], expected[:n], **close)


@pytest.mark.parametrize("name", ZOO)
def test_float32_logits_are_within_1e4_of_float64(name):
    policy, ids = SinkWindow(4, 8), text()
    with zoo_model(name) as lm:
        if lm.family.positions == "absolute":
            policy = Dense()
        expected = naive_logits(lm, ids, policy)
    lm = zoo_float32(name)
    scale = max(1.0, float(expected.abs().max()))
    for chunks in ([1] * LENGTH, CHUNKS):
        found = fed(lm, policy, ids[None], chunks)[0].double()
        torch.testing.assert_close(found / scale, expected / scale, atol=1e-4, rtol=0)


ROTARY = ["llama", "gptj", "gpt_neox", "gemma3_text", "smollm3", "falcon-new"]


@pytest.mark.parametrize("name", [*ROTARY, "classroom-rope", "classroom-alibi", "classroom-t5"])
def test_text_positions_leave_the_sinks_behind(name):
    policy, ids = SinkWindow(4, 8, "text"), text()
    with zoo_model(name) as lm:
        expected = naive_logits(lm, ids, policy, text_positions=True)
        for chunks in ([1] * LENGTH, CHUNKS):
            found = fed(lm, policy, ids[None], chunks)[0]
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
        moved = naive_logits(lm, ids, SinkWindow(4, 8))
        assert (moved - expected)[12:].abs().max() > 1e-3  # the convention matters
        torch.testing.assert_close(moved[:12], expected[:12], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["llama", "classroom-alibi", "gptj", "gemma2"])
def test_rebasing_and_text_positions_agree(name, monkeypatch):
    """Positions restart many times, in both conventions, and no prediction moves."""
    import sinkviz.caches as caches

    monkeypatch.setattr(caches, "REBASE_AT", 20)
    with zoo_model(name) as lm:
        for policy in (SinkWindow(4, 8), SinkWindow(4, 8, "text"), Window(12)):
            expected = naive_logits(lm, text(), policy, text_positions="text" in str(policy))
            for chunks in ([1] * LENGTH, CHUNKS):
                found = fed(lm, policy, text()[None], chunks)[0]
                torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gptj", "phi"])
def test_a_key_is_rounded_once_in_bfloat16_not_once_per_step(name):
    """Sinks that were rotated on by every step would lose a little of themselves each time."""
    policy = SinkWindow(4, 28)
    ids = text(32 * 11)
    exact, single = zoo_float32(name), zoo_float32(name)
    single.model.to(torch.bfloat16)
    for name, buffer in exact.model.named_buffers():  # as from_pretrained leaves them
        module, _, last = name.rpartition(".")
        setattr(single.model.get_submodule(module), last, buffer.clone())
    lanes = Lane(exact, policy), Lane(single, policy)
    errors = []
    for i in range(len(ids)):
        for lane in lanes:
            lane.feed(ids[i : i + 1])
        if i + 1 in (33, 32 * 11):
            keys = [lane.cache.layers[0].keys[:, :, :4].float() for lane in lanes]
            errors.append(float((keys[0] - keys[1]).abs().max()))
    first, last = errors
    assert 0 < last < 2 * first


COMPILED = """
import sys, torch
torch._dynamo.config.error_on_recompile = True
from zoo import zoo_float32
from sinkviz.lanes import Lane
from sinkviz.policies import SinkWindow
for name in sys.argv[1:]:
    lm, ids = zoo_float32(name), torch.arange(150) % 50 + 5
    lanes = [Lane(lm, SinkWindow(4, 20), compiled=compiled) for compiled in (True, False)]
    error = 0.0
    for i in range(len(ids)):
        a, b = (lane.feed(ids[i : i + 1]) for lane in lanes)
        error = max(error, float((a - b).abs().max()))
    counts = torch._dynamo.utils.counters
    assert not counts["graph_break"], counts["graph_break"]
    assert counts["stats"]["unique_graphs"] == 1, counts["stats"]
    assert error < 1e-3, error
    torch._dynamo.reset()
    counts.clear()
"""


@pytest.mark.parametrize("names", ["classroom-rope llama", "gemma3_text gpt_neox"])
def test_the_step_compiles_into_one_graph_that_serves_every_token(names):
    """Whole, without a recompilation; in a process of its own, without the checks of shapes."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, *names.split()],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
