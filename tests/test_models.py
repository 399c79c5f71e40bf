"""Loading models, the classroom model itself, its training, and what bad input gets."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
import torch
from reference import tiny_classroom, tiny_llama
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, T5Config
from transformers import T5ForConditionalGeneration as T5

from sinkviz.capturing import capture
from sinkviz.cards import write_card
from sinkviz.classroom import POSITIONS, SOFTMAXES, ClassroomConfig, ClassroomForCausalLM
from sinkviz.corpus import draw_batch, train_tokenizer
from sinkviz.experiments import first_token_sinks, measure, tidy, x_plus_y
from sinkviz.models import LM, load
from sinkviz.policies import H2O, Dense, SinkWindow, Window
from sinkviz.recipes import RECIPES, Recipe
from sinkviz.report import write_report
from sinkviz.scoring import score
from sinkviz.text import stories, story_text
from sinkviz.training import train

IDS = torch.arange(40) % 61


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("position", POSITIONS)
def test_classroom_variants_are_causal_and_cache_exactly(position, softmax):
    lm = tiny_classroom(position=position, softmax=softmax)
    with torch.no_grad():
        whole = lm.model(IDS[None]).logits
        prefix = lm.model(IDS[None, :17], use_cache=True)
        rest = lm.model(IDS[None, 17:], past_key_values=prefix.past_key_values).logits
    torch.testing.assert_close(prefix.logits, whole[:, :17])
    torch.testing.assert_close(rest, whole[:, 17:])


@pytest.mark.parametrize("position", POSITIONS)
def test_fused_and_textbook_attention_agree(position):
    lm = tiny_classroom(position=position)
    assert lm.model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        fused = lm.model(IDS[None]).logits
        lm.model.config._attn_implementation = "eager"
        textbook = lm.model(IDS[None]).logits
    torch.testing.assert_close(fused, textbook)


def test_a_null_logit_has_no_fused_attention():
    assert tiny_classroom(softmax="off_by_one").model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": "absolute"}, "position='absolute' is none of rope, alibi"),
        ({"softmax": "sparse"}, "softmax='sparse' is none of standard"),
        ({"hidden_size": 50}, "must be an even multiple"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(Exception, match=message):
        tiny_classroom(**changes)


def test_learned_positions_end_with_a_clear_error():
    lm = tiny_classroom(position="learned", max_position_embeddings=16)
    with pytest.raises(ValueError, match="learned positions end at 15, got 39"):
        lm.model(IDS[None])


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_positions_in_the_keys_are_refused_by_the_name_of_the_model(position, tmp_path):
    made = tiny_classroom(torch.float32, position=position)
    with pytest.raises(ValueError, match=f"^sinkviz_classroom has {position} positions"):
        made.cache(SinkWindow(4, 28))
    made.model.save_pretrained(tmp_path / "our-model")
    loaded = load(str(tmp_path / "our-model"))
    for policy in (SinkWindow(4, 28), Window(32), H2O(4, 28)):
        with pytest.raises(ValueError, match=f"^our-model has {position} .* use Dense or Recomp"):
            loaded.cache(policy)


def test_a_saved_model_comes_back_the_same(tmp_path):
    lm = tiny_classroom(torch.float32)
    lm.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, ClassroomForCausalLM)
    with torch.no_grad():
        assert torch.equal(again.eval()(IDS[None]).logits, lm.model(IDS[None]).logits)
    loaded = load(str(tmp_path))
    assert loaded.tokenizer is None
    assert loaded.name == tmp_path.name
    assert score(loaded, IDS, Dense()).perplexity > 1


def test_learnable_sink_tokens_come_first():
    model = tiny_classroom(torch.float32, n_sink_tokens=2, vocab_size=600).model
    tokenizer = train_tokenizer(islice(stories(), 50), 598)
    ids = LM(model, tokenizer).encode("hello")
    assert ids[:3].tolist() == [598, 599, 0]


def test_unknown_names_list_what_is_known():
    with pytest.raises(ValueError, match="no model 'classroom-rop': bundled are .*classroom-rope"):
        load("classroom-rop")


def test_a_folder_without_safetensors_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config.json is missing"):
        load(str(tmp_path))
    tiny_llama(torch.float32).model.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"found pytorch_model.bin\); sinkviz loads only safetens"):
        load(str(tmp_path))


def test_encoders_and_sequence_to_sequence_models_are_refused(tmp_path):
    tiny = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 61}
    bert = BertModel(BertConfig(**tiny, intermediate_size=8))
    with pytest.raises(TypeError, match="predict no next token"):
        LM(bert)
    t5 = T5(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=61))
    with pytest.raises(TypeError, match="encoder-decoder"):
        LM(t5)
    t5.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 't5' model, which does not predict the next token"):
        load(str(tmp_path))
    bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert' model"):
        load(str(tmp_path))


def test_a_head_that_is_not_there_is_not_made_up(tmp_path):
    model = tiny_llama(torch.float32).model
    model.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks weights of a causal language model.*lm_head"):
        load(str(tmp_path))
    model.save_pretrained(tmp_path)
    assert load(str(tmp_path)).model.num_parameters() == model.num_parameters()


def test_no_network_is_said_plainly(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="cannot fetch 'nobody/nothing' from the Hub.*classroom-rope"):
        load("nobody/nothing")


PLAIN = {"bfloat16": False, "compiled": False}
SMOKE = dataclasses.replace(RECIPES["smoke"], phases=((1280, 1e-3, 0.1),))


@pytest.fixture
def no_books(monkeypatch, tmp_path):
    monkeypatch.setenv("SINKVIZ_BOOKS", str(tmp_path / "nowhere"))


def test_training_resumes_where_it_stopped_and_repeats_itself(tmp_path, no_books, monkeypatch):
    whole = train("smoke", tmp_path / "whole", recipe=SMOKE, **PLAIN)

    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return draw_batch(*args)

    monkeypatch.setattr("sinkviz.training.draw_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("smoke", tmp_path / "parts", recipe=SMOKE, **PLAIN)
    monkeypatch.undo()
    monkeypatch.setenv("SINKVIZ_BOOKS", str(tmp_path / "nowhere"))
    parts = train("smoke", tmp_path / "parts", recipe=SMOKE, **PLAIN)

    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    log = (tmp_path / "whole" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[-1]["step"] == SMOKE.n_steps == 10
    assert np.array(lines[-1]["first_token"]).shape == (2, 2)
    assert 0 <= lines[-1]["sink_rate"] <= 1
    snapshot = load_file(tmp_path / "whole" / "snapshots" / "0000010.safetensors")
    assert snapshot["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert not list(tmp_path.rglob("*.partial"))
    lm = load(str(tmp_path / "whole" / "model"))
    assert lm.tokens(lm.encode("Once"))[0] == "<|begin|>"

    card = write_card(tmp_path / "whole" / "model", n_tokens=300).read_text()
    assert "On 300 tokens of `stories`, with caches of 16 tokens" in card
    assert f"{score(lm, lm.encode(story_text(2400))[:300], Window(16)).perplexity:.3f}" in card
    assert "`sinkviz train whole` repeats it" in card


def test_a_card_needs_the_record_of_the_training(tmp_path):
    tiny_llama(torch.float32).model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no recipe.json; train the model"):
        write_card(tmp_path)


def test_the_learning_rate_follows_its_phases():
    recipe = Recipe(
        model={"max_position_embeddings": 10},
        phases=((1000, 1.0, 0.1), (1000, 0.0, 0.5)),
        batch=10,
        learning_rate=1.0,
        warmup_steps=2,
    )
    assert [recipe.at(step)[0] for step in (0, 1, 10, 15)] == [0.5, 1.0, 1.0, 0.5]
    assert recipe.at(15)[1] == 0.5
    assert recipe.n_steps == 20
    tokens = np.arange(500, dtype=np.uint16)
    first = draw_batch(tokens, recipe, 3)
    assert torch.equal(first, draw_batch(tokens, recipe, 3))
    assert (first[:, 0] == 0).all()
    anywhere = dataclasses.replace(recipe, begin_share=0.0)
    assert not (draw_batch(tokens, anywhere, 3)[:, 0] == 0).all()


def test_an_unknown_recipe_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no recipe 'x'; known are classroom-rope"):
        train("x", tmp_path)


def test_tables_of_runs_are_tidy():
    lm = tiny_llama()
    runs = measure(lm, IDS, [Dense(), *x_plus_y(8, (0, 2))])
    rows = tidy(runs)
    assert [row["policy"] for row in rows] == ["Dense", "0+8", "2+6"]
    assert rows[1]["nll_forgetting"] == pytest.approx(float(runs[1].nll[9:].mean()))
    assert rows[1]["drift"] == pytest.approx(
        float(runs[1].nll[30:].mean() - runs[1].nll[10:20].mean())
    )


def test_a_report_is_one_file_that_needs_nothing_else(tmp_path):
    lm = tiny_llama(torch.float32)
    bad = LM(lm.model, None, "<script>alert(1)</script>")
    path = write_report(bad, torch.arange(60) % 61, tmp_path / "report.html", policies=[
        Dense(), SinkWindow(2, 10)
    ])  # fmt: skip
    page = path.read_text()
    assert page.count("<img alt=") == 5
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    with pytest.raises(ValueError, match="nothing would be evicted"):
        write_report(lm, IDS, tmp_path / "r.html", policies=[SinkWindow(4, 60)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html"]


def test_configs_keep_their_choices(tmp_path):
    config = ClassroomConfig(position="alibi", softmax="off_by_one", n_sink_tokens=1)
    config.save_pretrained(tmp_path)
    again = ClassroomConfig.from_pretrained(tmp_path)
    assert (again.position, again.softmax, again.n_sink_tokens) == ("alibi", "off_by_one", 1)


def test_sinks_are_measured_over_stretches_of_the_text():
    lm = tiny_llama()
    sinks = first_token_sinks(lm, IDS, n_texts=3, longest=10)
    traces = [capture(lm, IDS[start : start + 10], n_sink=1) for start in (0, 15, 30)]
    mean = sum(torch.from_numpy(trace.attention[..., 0]).mean(-1) for trace in traces) / 3
    torch.testing.assert_close(sinks.received, mean)
    assert sinks.rate == float((mean > 0.3).double().mean())
    assert f"sink rate {sinks.rate:.0%}" in str(sinks)
    assert first_token_sinks(lm, [3, 4]).n_texts == 1
    with pytest.raises(ValueError, match="at least two tokens"):
        first_token_sinks(lm, [3])


def test_sinks_are_measured_behind_what_stands_in_front_of_every_text():
    lm = load("classroom-rope")
    ids = lm.encode(story_text(2_000))
    sinks = first_token_sinks(lm, ids, n_texts=2, longest=32)
    starts = (1, len(ids) - 31)
    traces = [capture(lm, torch.cat((ids[:1], ids[s : s + 31])), n_sink=1) for s in starts]
    mean = sum(torch.from_numpy(trace.attention[..., 0]).mean(-1) for trace in traces) / 2
    torch.testing.assert_close(sinks.received, mean, atol=1e-5, rtol=0)
