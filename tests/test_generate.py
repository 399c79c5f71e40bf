"""``SinkCache`` as a drop-in: the model's own ``generate`` streams exactly in all it offers."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from naive import naive_logits
from transformers import DynamicCache, TextStreamer
from zoo import ZOO, zoo_float32, zoo_model

from sinkviz.caches import SinkCache
from sinkviz.lanes import Lane
from sinkviz.models import LM, load
from sinkviz.policies import TOVA, SinkWindow
from sinkviz.scoring import score

POLICY = SinkWindow(2, 8)
GREEDY = {"do_sample": False, "pad_token_id": 0, "use_cache": True}


def text(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 61, (n,), generator=torch.Generator().manual_seed(seed))


def sink_cache(lm: LM) -> SinkCache:
    return SinkCache(lm.model, POLICY.n_sink, POLICY.n_recent)


def greedy(lm: LM, ids: torch.Tensor, n_new: int) -> list[int]:
    """The next tokens by the naive definition, each from the whole text so far."""
    ids = ids.clone()
    for _ in range(n_new):
        ids = torch.cat((ids, naive_logits(lm, ids, POLICY)[-1:].argmax(-1)))
    return ids.tolist()


FAMILIES = [name for name in ZOO if name not in ("gpt2", "opt")]


@pytest.mark.parametrize("name", FAMILIES)
def test_generate_equals_the_naive_definition(name):
    """A prompt longer than the cache, in one block; then one token at a time."""
    with zoo_model(name) as lm:
        ids = text(25)
        found = lm.model.generate(
            ids[None], past_key_values=sink_cache(lm), max_new_tokens=12, **GREEDY
        )
        assert found[0].tolist() == greedy(lm, ids, 12)


@pytest.mark.parametrize("name", ["llama", "gptj", "smollm3"])
def test_a_long_prompt_is_fed_in_parts(name):
    with zoo_model(name) as lm:
        ids, sizes = text(150), []
        cache = sink_cache(lm)
        begin = cache.begin
        cache.begin = lambda *args: sizes.append(args[1]) or begin(*args)
        found = lm.model.generate(ids[None], past_key_values=cache, max_new_tokens=3, **GREEDY)
        assert found[0].tolist() == greedy(lm, ids, 3)
        assert sizes == [10, 64, 64, 12, 1, 1]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gptj", "bloom", "mpt", "classroom-alibi"])
def test_a_padded_batch_generates_what_each_row_generates_alone(name):
    with zoo_model(name) as lm:
        rows = [text(25), text(14, 2), text(3, 3)]
        batch = torch.stack([torch.cat((torch.zeros(25 - len(r)).long(), r)) for r in rows])
        mask = torch.stack([(torch.arange(25) >= 25 - len(r)).long() for r in rows])
        found = lm.model.generate(
            batch,
            attention_mask=mask,
            past_key_values=sink_cache(lm),
            max_new_tokens=15,
            **GREEDY,
        )
        for row, alone in zip(found, rows, strict=True):
            assert row[25 - len(alone) :].tolist() == greedy(lm, alone, 15)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gptj", "mpt", "falcon-alibi"])
def test_turns_of_a_conversation_go_on_with_the_same_cache(name):
    with zoo_model(name) as lm:
        cache, ids = sink_cache(lm), text(9)
        first = lm.model.generate(ids[None], past_key_values=cache, max_new_tokens=6, **GREEDY)
        whole = torch.cat((first[0], text(11, 5)))
        second = lm.model.generate(whole[None], past_key_values=cache, max_new_tokens=6, **GREEDY)
        assert second[0].tolist() == greedy(lm, whole, 6)
        assert cache.seen == len(second[0]) - 1


@pytest.mark.parametrize("name", ["llama", "bloom", "gemma3_text"])
def test_beams_keep_their_own_pasts(name):
    """The score of the best beam is the sum that the scorer finds for its text."""
    with zoo_model(name) as lm:
        ids = text(6)
        found = lm.model.generate(
            ids[None],
            past_key_values=sink_cache(lm),
            max_new_tokens=30,
            num_beams=3,
            num_return_sequences=3,
            output_scores=True,
            return_dict_in_generate=True,
            length_penalty=0.0,
            **GREEDY,
        )
        for sequence, total in zip(found.sequences, found.sequences_scores, strict=True):
            nll = score(lm, sequence, POLICY).nll[len(ids) :]
            assert float(total) == pytest.approx(-nll.sum(), abs=1e-8)


def test_several_answers_per_prompt_share_its_past():
    lm = zoo_float32("llama")
    torch.manual_seed(0)
    found = lm.model.generate(
        text(5)[None],
        past_key_values=sink_cache(lm),
        max_new_tokens=20,
        do_sample=True,
        use_cache=True,
        num_return_sequences=4,
        pad_token_id=0,
    )
    assert len({tuple(row.tolist()) for row in found}) == 4


def test_positions_stay_small_however_long_generate_goes_on(monkeypatch):
    import sinkviz.caches as caches

    monkeypatch.setattr(caches, "REBASE_AT", 20)
    with zoo_model("llama") as lm:
        seen = []
        hook = lm.model.model.rotary_emb.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(int(kwargs["position_ids"].max())),
            with_kwargs=True,
        )
        ids = text(5)
        found = lm.model.generate(
            ids[None], past_key_values=sink_cache(lm), max_new_tokens=90, **GREEDY
        )
        hook.remove()
        assert max(seen) <= 20 + 10
        assert found[0].tolist() == greedy(lm, ids, 90)


def test_text_streams_as_it_is_written(capsys):
    lm = load("classroom-rope", device="cpu")
    ids = lm.encode("Once upon a time")[None]
    options = {"max_new_tokens": 90, **GREEDY}
    found = lm.model.generate(
        ids,
        past_key_values=SinkCache(lm.model, 4, 28),
        streamer=TextStreamer(lm.tokenizer, skip_prompt=True),
        **options,
    )
    printed = capsys.readouterr().out
    assert lm.tokenizer.decode(found[0, ids.shape[1] :]).strip() == printed.strip()
    assert len(printed) > 100


def test_one_line_is_enough():
    lm = load("classroom-rope", device="cpu", policy="4+28")
    assert lm.policy == SinkWindow(4, 28)
    written = lm.generate("Once upon a time", max_new_tokens=60, **GREEDY)
    cache = SinkCache(lm.model, 4, 28)
    ids = lm.encode("Once upon a time")[None]
    found = lm.model.generate(ids, past_key_values=cache, max_new_tokens=60, **GREEDY)
    assert written == lm.decode(found[0, ids.shape[1] :])
    with pytest.raises(ValueError, match="policy"):
        load("classroom-rope", device="cpu").generate("Once")


@pytest.mark.parametrize("name", ["llama", "mpt", "gemma3_text"])
def test_a_copy_of_a_cache_goes_on_from_the_same_beginning(name):
    """As transformers' guides reuse a prompt: ``copy.deepcopy(prompt_cache)``."""
    with zoo_model(name) as lm:
        begin, ends, cache = text(25), (text(6, 2), text(4, 3)), sink_cache(lm)
        lm.model(begin[None], past_key_values=cache, use_cache=True)
        for ids in (torch.cat((begin, end)) for end in ends):
            found = lm.model.generate(
                ids[None], past_key_values=deepcopy(cache), max_new_tokens=5, **GREEDY
            )
            assert found[0].tolist() == greedy(lm, ids, 5)
        assert cache.seen == 25


def test_a_copy_of_a_cache_by_attention_goes_on_too():
    lm, ids = zoo_float32("llama"), text(20)
    lane, twin = Lane(lm, TOVA(6)), Lane(lm, TOVA(6))
    lane.feed(ids[:15])
    twin.cache = deepcopy(lane.cache)
    for i in range(15, 20):
        assert torch.equal(lane.feed(ids[i : i + 1]), twin.feed(ids[i : i + 1]))


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_gradients_through_a_cache_are_refused(name):
    lm, ids = zoo_float32(name), text(12)
    cache = sink_cache(lm)
    lm.model(ids[None, :10], past_key_values=cache, use_cache=True).logits.sum().backward()
    with pytest.raises(ValueError, match=r"overwritten in place.*torch\.no_grad"):
        lm.model(ids[None, 10:11], past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_text_that_the_cache_has_read_already_is_refused(name):
    """As when the cell of a notebook is run again."""
    lm = zoo_float32(name)
    options = {"past_key_values": sink_cache(lm), "max_new_tokens": 20, **GREEDY}
    lm.model.generate(text(9)[None], **options)
    with pytest.raises(ValueError, match="this cache has read 28 tokens already"):
        lm.model.generate(text(9)[None], **options)
    few = {"past_key_values": sink_cache(lm), "max_new_tokens": 6, **GREEDY}
    lm.model.generate(text(9)[None], **few)  # of which generate would leave out 14 of 9
    for prompt in (text(9), text(14)):
        with pytest.raises(ValueError, match="this cache has read 14 tokens already"):
            lm.model.generate(prompt[None], **few)
    with pytest.raises(ValueError, match="does not go on from there"):
        mask = torch.ones(1, 9, dtype=torch.long)  # of five tokens, or of thirty-three
        lm.model(text(5)[None], attention_mask=mask, past_key_values=options["past_key_values"])


def test_what_generate_cannot_do_is_said():
    lm = zoo_float32("mpt")  # whose config says use_cache=False
    with pytest.raises(ValueError, match="pass use_cache=True"):
        lm.model.generate(text(5)[None], past_key_values=sink_cache(lm), max_new_tokens=3)
    lm = zoo_float32("llama")
    with pytest.raises(ValueError, match="cannot go back"):
        lm.model.generate(
            text(30)[None],
            past_key_values=sink_cache(lm),
            prompt_lookup_num_tokens=3,
            max_new_tokens=20,
            **GREEDY,
        )
    phi3 = LM(zoo_float32("phi3").model, name="phi3")
    phi3.model.config.original_max_position_embeddings = 30
    phi3 = LM(phi3.model, name="phi3", policy=POLICY)
    with pytest.raises(ValueError, match=r"throws its cache away.*sinkviz\.stream"):
        phi3.generate(text(20), max_new_tokens=20)


def test_a_cache_leaves_no_hook_behind():
    lm = zoo_float32("mpt")
    modules = list(lm.model.modules())
    before = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)
    cache = sink_cache(lm)
    lm.model.generate(text(5)[None], past_key_values=cache, max_new_tokens=20, **GREEDY)
    other = lm.model.generate(
        text(5)[None], past_key_values=DynamicCache(), max_new_tokens=20, **GREEDY
    )
    del cache
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules) == before
    again = lm.model.generate(text(5)[None], max_new_tokens=20, **GREEDY)
    assert torch.equal(other, again)
