"""Bad input gets a clear error, and a broken pass or a full disk loses nothing."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from naive import naive_logits
from zoo import zoo_float32, zoo_model

from sinkviz import scoring
from sinkviz.caches import SinkCache
from sinkviz.families import FAMILIES
from sinkviz.fingerprints import weights_of
from sinkviz.lanes import Lane
from sinkviz.models import LM, untouched
from sinkviz.policies import TOVA, Dense, Recompute, SinkWindow, Window
from sinkviz.ranked import RankedCache
from sinkviz.records import load_tensors, save_tensors
from sinkviz.scoring import score
from sinkviz.streaming import stream
from sinkviz.trial import try_rotary

POLICY = SinkWindow(3, 9)


def text(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 61, (n,), generator=torch.Generator().manual_seed(seed))


# Sizes, masks, models ---------------------------------------------------------------------------


def test_a_cache_longer_than_the_table_of_positions_is_refused():
    lm = zoo_float32("gptj")
    with pytest.raises(ValueError, match="positions for 256 tokens, the policy needs 300"):
        score(lm, text(20), SinkWindow(4, 296))
    with pytest.raises(ValueError, match="256 positions apart.*the cache has 256"):
        SinkCache(lm.model, 4, 252)
    with pytest.raises(
        ValueError, match="positions for 256 tokens, and full attention has reached"
    ):
        score(lm, text(400), Dense())
    run = score(lm, text(600), SinkWindow(4, 60))
    assert run.nll[1:].max() < 100


def test_a_block_with_more_positions_than_the_model_is_refused_or_divided():
    lm = zoo_float32("codegen")
    with pytest.raises(ValueError, match="a block of 300 tokens after 0 has more"):
        lm.model(text(300)[None], past_key_values=SinkCache(lm.model, 4, 60))
    lane = Lane(lm, SinkWindow(4, 60))
    lane.feed(text(300))
    assert lane.seen == 300


@pytest.mark.parametrize(
    ("mask", "row"),
    [([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], 0), ([[0, 1, 1, 1, 1], [0, 1, 0, 1, 1]], 1)],
)
def test_padding_on_the_wrong_side_is_refused(mask, row):
    lm = zoo_float32("llama")
    with pytest.raises(ValueError, match=f"padding must be on the left: stream {row}"):
        lm.model(
            text(10).view(2, 5),
            attention_mask=torch.tensor(mask),
            past_key_values=SinkCache(lm.model, 2, 6),
        )


def test_a_mask_of_another_shape_is_refused():
    lm = zoo_float32("llama")
    with pytest.raises(ValueError, match="must be .batch, token., got 4 axes"):
        lm.model(
            text(5)[None],
            attention_mask=torch.ones(1, 1, 5, 5),
            past_key_values=SinkCache(lm.model, 2, 6),
        )


def test_an_attention_that_takes_no_mask_is_refused_where_one_is_needed():
    lm = zoo_float32("llama")
    cache = SinkCache(lm.model, 2, 6)
    lm.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 takes no mask of ours"):
        lm.model(text(20)[None], past_key_values=cache)
    cache.reset()
    assert cache.begin(1, 5, None)["attention_mask"] is None


def scaled(rope_type: str) -> LM:
    """A model whose rotary frequencies change after 40 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    factors = (
        {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8} if rope_type != "dynamic" else {}
    )
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0, **factors}
    options = {"original_max_position_embeddings": 40} if rope_type == "longrope" else {}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        initializer_range=0.3,
        rope_parameters=rope | options,
        bos_token_id=0,
        eos_token_id=None,
    )
    return LM(LlamaForCausalLM(config).double().eval(), name=rope_type)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_stay_where_rotary_scaling_does_not_change(rope_type):
    lm = scaled(rope_type)
    with pytest.raises(ValueError, match="40 positions apart.*frequencies change.*has 40"):
        SinkCache(lm.model, 4, 36)
    expected = naive_logits(lm, text(200), POLICY)
    for size in (1, 25):
        lane = Lane(lm, POLICY)
        found = torch.cat([lane.read(part) for part in text(200).split(size)])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_full_attention_does_not_cross_a_change_of_frequencies(rope_type):
    """Keys in the cache would keep the old ones, and the result follow the cut of the text."""
    lm, ids = scaled(rope_type), text(60)
    with torch.no_grad():
        whole = lm.model(ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(Lane(lm, Dense()).read(ids), whole)
    for options in ({"engine": "stepwise"}, {"block": 25}):
        with pytest.raises(ValueError, match="frequencies of .* change after 40 tokens"):
            score(lm, ids, Dense(), **options)
    lane = Lane(lm, Dense())
    lane.feed(ids[:50])  # long from the first token on
    if rope_type == "longrope":
        torch.testing.assert_close(lane.feed(ids[50:]), whole[-1])
    else:
        with pytest.raises(ValueError, match="change after 40 tokens"):
            lane.feed(ids[50:])


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
@pytest.mark.parametrize("size", [30, 50])
def test_windows_run_afresh_grow_past_a_change_of_frequencies(rope_type, size):
    lm, ids = scaled(rope_type), text(70)
    found, expected = (score(lm, ids, Recompute(size), engine=e) for e in ("parallel", "stepwise"))
    np.testing.assert_allclose(found.nll[1:], expected.nll[1:], atol=1e-4)


def test_a_model_that_attends_in_chunks_of_the_text_is_refused_a_cache_that_moves_keys():
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=32,
        intermediate_size_mlp=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=2,
        no_rope_layers=[1, 1],
        attention_chunk_size=8,
        layer_types=["chunked_attention", "full_attention"],
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    lm = LM(Llama4ForCausalLM(config).eval(), name="llama4")
    for policy in (SinkWindow(2, 4), TOVA(6)):
        with pytest.raises(ValueError, match="within chunks of 8 tokens .* use Dense or Recompute"):
            Lane(lm, policy)
    found, expected = (score(lm, text(40), Dense(), engine=e) for e in ("parallel", "stepwise"))
    np.testing.assert_allclose(found.nll[1:], expected.nll[1:], atol=1e-3)


def test_a_cache_belongs_to_its_model():
    lm, other = zoo_float32("llama"), zoo_float32("qwen2")
    cache = SinkCache(lm.model, 2, 6)
    lm.model(text(5)[None], past_key_values=cache)
    with pytest.raises(ValueError, match="this cache belongs to another model"):
        other.model(text(1)[None], past_key_values=cache)
    for stranger in (other, zoo_float32("mpt")):
        for used in (SinkCache(lm.model, 2, 6), RankedCache(lm.model, TOVA(6))):
            with untouched(lm.model, "eager"):
                for _ in range(6):
                    lm.model(text(1)[None], past_key_values=used)
            for prompt in (text(3), text(9)):  # shorter than what the cache has read, or longer
                with pytest.raises(ValueError, match="this cache belongs to another model"):
                    stranger.model.generate(
                        prompt[None], past_key_values=used, use_cache=True, max_new_tokens=2
                    )
    with pytest.raises(ValueError, match="was not called itself"):
        lm.model.model(text(1)[None], past_key_values=cache)
    with pytest.raises(ValueError, match=r"keys of \(2, 2, 1, 16\).*do not fit this cache"):
        lm.model(text(2)[:, None], past_key_values=cache)


def test_sizes_and_conventions_are_checked():
    lm = zoo_float32("llama")
    for sizes, message in (((-1, 4), "n_sink >= 0"), ((2, 0), "n_recent >= 1")):
        with pytest.raises(ValueError, match=message):
            SinkCache(lm.model, *sizes)
    with pytest.raises(ValueError, match="'cache' or 'text', got 'slot'"):
        SinkCache(lm.model, 2, 6, positions="slot")
    with pytest.raises(ValueError, match="only Window and SinkWindow can be compiled"):
        Lane(lm, Dense(), compiled=True)


# Families that the table does not know ----------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "cohere", "phi", "gpt_neox", "gemma", "qwen3"])
def test_an_unknown_rotary_family_is_found_by_trial(name, monkeypatch):
    """The row that the trial finds streams as exactly as the row of the table."""
    with zoo_model(name) as lm:
        expected = naive_logits(lm, text(60), POLICY)
        known = lm.family
        monkeypatch.delitem(FAMILIES, lm.model.config.model_type)
        tried = LM(lm.model, name="unknown")
        assert tried.family.interleaved == known.interleaved
        assert tried.family.attention == known.attention
        lane = Lane(tried, POLICY)
        found = torch.cat([lane.read(part) for part in text(60).split(7)])
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "shows no rotary frequencies"),
        ("falcon-alibi", "do not turn with the positions"),
        ("smollm3", "do not turn with the positions"),
    ],
)
def test_an_unknown_family_that_fails_its_trial_is_refused(name, message):
    lm = zoo_float32(name)
    with pytest.raises(ValueError, match=message):
        try_rotary(lm.model)


# Broken passes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gptj", "mpt"])
@pytest.mark.parametrize("policy", [Dense(), Window(12), POLICY, Recompute(12)], ids=str)
def test_a_pass_that_breaks_off_between_layers_never_happened(name, policy, error, monkeypatch):
    """While the cache fills, when it is full, and in a block that passes its end; re-based too."""
    import sinkviz.caches as caches

    monkeypatch.setattr(caches, "REBASE_AT", 16)
    with zoo_model(name) as lm:
        ids = text(90)
        expected = naive_logits(lm, ids, policy)
        lane, start = Lane(lm, policy), 0
        layers = next(m for m in lm.model.modules() if isinstance(m, torch.nn.ModuleList))

        def break_off(*args):
            raise error

        for size in (1, 1, 5, 20, 1, 1, 30, 1, 30):
            part = ids[start : start + size]
            handle = layers[1].register_forward_hook(break_off)
            with pytest.raises(error):
                lane.feed(part)
            handle.remove()
            assert lane.seen == start
            start += size
            torch.testing.assert_close(lane.feed(part), expected[start - 1], atol=1e-9, rtol=0)


def test_two_streams_take_turns_on_one_model():
    with zoo_model("llama") as lm:
        texts = [text(60, seed) for seed in (1, 2)]
        lanes = [Lane(lm, POLICY), Lane(lm, Window(7))]
        expected = [
            naive_logits(lm, ids, lane.policy) for ids, lane in zip(texts, lanes, strict=True)
        ]
        for i in range(60):
            for lane, ids, logits in zip(lanes, texts, expected, strict=True):
                torch.testing.assert_close(lane.feed(ids[i : i + 1]), logits[i], atol=1e-9, rtol=0)


def test_threads_that_share_a_model_wait_for_each_other():
    """Or one would run under the attention that another has asked for, and leave it behind."""
    lm, ids, policy = zoo_float32("llama"), text(120), SinkWindow(3, 9)
    expected = score(lm, ids, policy, block=16).nll[1:]
    written = [step.token_id for step in stream(lm, Dense(), ids[:9], max_new_tokens=40)]

    def work(turn: int) -> bool:
        if turn % 2:
            steps = stream(lm, Dense(), ids[:9], max_new_tokens=40, capture=True)
            return [step.token_id for step in steps] == written
        return bool(np.allclose(score(lm, ids, policy, block=16).nll[1:], expected, atol=1e-4))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert lm.model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in lm.attention_modules)


def test_logits_that_are_not_numbers_are_reported():
    lm = zoo_float32("llama")
    lm.model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(FloatingPointError, match="not numbers after 5 tokens under 3.9"):
        list(stream(lm, POLICY, text(5), max_new_tokens=3))
    with pytest.raises(FloatingPointError, match="not numbers between tokens 0 and"):
        score(lm, text(30), POLICY)


# Saving -----------------------------------------------------------------------------------------

SAVED = [Dense(), Window(12), POLICY, SinkWindow(3, 9, "text"), Recompute(12)]


@pytest.mark.parametrize("policy", SAVED, ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "bloom"])
def test_a_saved_stream_goes_on_as_if_nothing_had_happened(name, policy, tmp_path):
    lm, options = zoo_float32(name), {"temperature": 1.0, "seed": 3}
    whole = [s.token_id for s in stream(lm, policy, text(9), max_new_tokens=60, **options)]
    found, path = [], tmp_path / "stream.safetensors"
    for n_new in (1, 20, 39):
        steps = stream(lm, policy, text(9), max_new_tokens=None, state=path, **options)
        found += [next(steps).token_id for _ in range(n_new)]
        steps.close()
    assert found == whole
    (step,) = stream(lm, policy, "", max_new_tokens=1, state=path)  # nothing is left to begin with
    assert step.position == 9 + 60
    lane = Lane.load(lm, path)
    assert lane.seen == 9 + 60


def test_a_saved_lane_goes_on_and_knows_what_it_belongs_to(tmp_path):
    lm, lane = zoo_float32("llama"), None
    lane = Lane(lm, POLICY)
    lane.feed(text(40))
    path = lane.save(tmp_path / "lane.safetensors")
    again = Lane.load(lm, path)
    assert torch.equal(again.feed(text(2)), lane.feed(text(2)))
    with pytest.raises(ValueError, match="saved with model llama, not qwen2"):
        Lane.load(zoo_float32("qwen2"), path)
    with pytest.raises(ValueError, match="saved with policy 3.9, not 0.5"):
        stream(lm, Window(5), text(3), state=stream_file(lm, tmp_path))
    with pytest.raises(FileNotFoundError):
        Lane.load(lm, tmp_path / "none")
    wider = LM(zoo_float32("falcon-new").model, name="llama")  # of the same name
    with pytest.raises(ValueError, match=r"saved with parameters \d+, not \d+"):
        Lane.load(wider, path)
    trained = zoo_float32("llama")
    for weight in trained.model.parameters():
        weight.data *= 1 + 1e-6  # as little as float32 can tell
    with pytest.raises(ValueError, match=r"saved with weights \w{16}, not \w{16}; load it with"):
        Lane.load(trained, path)
    with pytest.raises(ValueError, match="saved with weights"):
        stream(trained, POLICY, text(3), state=stream_file(lm, tmp_path))
    tensors, plain = load_tensors(path, "lane")
    del plain["weights"], plain["parameters"]  # as older files are
    older = save_tensors(tmp_path / "older", "lane", tensors, plain)
    assert torch.equal(Lane.load(lm, older).feed(text(2)), Lane.load(lm, path).feed(text(2)))


def test_a_fingerprint_is_of_all_weights_and_of_nothing_else():
    lm = zoo_float32("llama")
    before = weights_of(lm.model)
    lm.model(text(5)[None])
    assert weights_of(lm.model.eval()) == before == weights_of(zoo_float32("llama").model)
    for weight in lm.model.parameters():
        kept = weight.data.clone()
        weight.data += 0.5
        assert weights_of(lm.model) != before
        weight.data = kept.T.contiguous().T if kept.ndim == 2 else kept  # the same, laid out anew
        assert weights_of(lm.model) == before
    assert weights_of(lm.model.to("meta")) is None


@pytest.mark.parametrize("policy", [Dense(), POLICY], ids=str)
def test_a_saved_lane_goes_back_to_where_each_layer_computes(policy, tmp_path):
    lm = zoo_float32("llama")
    lane = Lane(lm, policy)
    lane.feed(text(20))
    path = lane.save(tmp_path / "lane")
    # As accelerate leaves a layer whose weights lie on a disk; "meta" stands for a second device.
    lm.attention_modules[1].to("meta")
    lm.attention_modules[1].o_proj._hf_hook = SimpleNamespace(execution_device="meta")
    found = [layer.keys.device.type for layer in Lane.load(lm, path).cache.layers]
    assert found == ["cpu", "meta"]
    ranked = RankedCache(lm.model, SinkWindow(2, 6))
    ranked.restore({f"layers.{i}.keys": torch.zeros(1, 2, 5, 16) for i in range(2)}, {"seen": 5})
    assert [layer.keys.device.type for layer in ranked.layers] == ["cpu", "meta"]


def test_a_state_that_could_not_be_written_is_refused_before_anything_is_computed(tmp_path):
    lm = zoo_float32("llama")
    places = {tmp_path / "gone" / "a": "there is no folder .*gone; make it first"}
    for place, message in (places | {tmp_path: "is a folder; name a file in it"}).items():
        with pytest.raises(ValueError, match=message):
            stream(lm, POLICY, text(5), state=place)
        with pytest.raises(ValueError, match=message):
            score(lm, text(5), POLICY, state=place)


def stream_file(lm, folder):
    path = folder / "stream.safetensors"
    list(stream(lm, POLICY, text(5), max_new_tokens=3, state=path))
    return path


def test_a_full_disk_keeps_the_file_of_before(tmp_path, monkeypatch):
    import sinkviz.records as records

    lm = zoo_float32("llama")
    path = stream_file(lm, tmp_path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "save_torch_file", full)
    with pytest.raises(OSError, match="No space left"):
        list(stream(lm, POLICY, text(5), max_new_tokens=3, state=path))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("place", ["a layer", "after the model"])
@pytest.mark.parametrize(
    "policy, engine, mass",
    [
        *itertools.product([Dense(), POLICY, Recompute(12)], ["parallel", "stepwise"], [False]),
        # Mass is summed in parallel only, and not where every window is computed anew.
        *itertools.product([Dense(), POLICY], ["parallel"], [True]),
    ],
    ids=str,
)
def test_a_score_that_breaks_off_goes_on_from_its_state(
    policy, engine, mass, place, tmp_path, monkeypatch
):
    lm, ids, path = zoo_float32("llama"), text(150), tmp_path / "score.safetensors"
    options = {"block": 20, "mass": mass, "engine": engine}
    whole = score(lm, ids, policy, **options)
    calls, nll = 0, scoring._nll

    def break_off(*args):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    def nll_of_the_first(*args):
        break_off()
        return nll(*args)

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patched:
        if place == "a layer":
            hooks = lm.model.model.layers[1]._forward_hooks
            patched.setitem(hooks, "break off", break_off)
        else:
            patched.setattr(scoring, "_nll", nll_of_the_first)
        score(lm, ids, policy, **options, state=path)
    again = score(lm, ids, policy, **options, state=path)
    assert again.nll[1:] == pytest.approx(whole.nll[1:], abs=1e-5)
    if mass:
        assert again.mass[:-1] == pytest.approx(whole.mass[:-1], abs=1e-5)
    with pytest.raises(ValueError, match="belongs to another text"):
        score(lm, text(150, 9), policy, mass=mass, engine=engine, state=path)
