"""Every family streams exactly: one token at a time, in chunks, alone or in a padded batch."""

from __future__ import annotations

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
