"""Experiments on sinks: what the tables hold is what slow references say, and so do the figures."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from reference import tiny_classroom
from tokenizers import processors
from transformers import AutoTokenizer

from sinkviz import plots
from sinkviz.capturing import capture
from sinkviz.experiments import Setting, experiment, load_table, run, save_table
from sinkviz.experiments.probing import nll_of_ends, probes, shares_of
from sinkviz.experiments.sinks import edited
from sinkviz.experiments.sinks_claims import CHANGES, COPIED, EDITS, PLAIN, REMOVED, SWAPPED
from sinkviz.experiments.softmaxes import growth_of, record_of
from sinkviz.experiments.softmaxes_claims import NO_BEGIN, OFF_BY_ONE, SOFTMAXES, TOKEN
from sinkviz.experiments.stretches import n_front
from sinkviz.metrics import ROLES
from sinkviz.models import LM, assets_folder, load
from sinkviz.policies import SinkWindow
from sinkviz.recipes import Recipe
from sinkviz.scoring import score

LENGTH = 48


def tokenizer(begin: bool = True):
    found = AutoTokenizer.from_pretrained(assets_folder() / "models" / "classroom-rope")
    if not begin:
        found.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return found


def tiny(name: str = "tiny", begin: bool = True, **changes) -> LM:
    """A random classroom model that can read."""
    size = 2048 + changes.get("n_sink_tokens", 0)
    lm = tiny_classroom(vocab_size=size, max_position_embeddings=LENGTH, **changes)
    return LM(lm.model, tokenizer(begin), name)


def setting(*lms: LM) -> Setting:
    return Setting({lm.name: lm for lm in lms}, "stories", quick=True)


# What is read off texts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "begin", "front"),
    [({}, True, [0]), ({"n_sink_tokens": 2}, True, [2048, 2049, 0]), ({}, False, [])],
)
def test_probes_begin_as_training_texts_do(changes, begin, front):
    lm = tiny(begin=begin, **changes)
    texts = probes(setting(lm), lm, 5, room=4)
    ids = setting(lm).ids(lm, 5 * LENGTH)
    assert n_front(lm, ids) == len(front)
    assert all(len(text) == LENGTH - 4 and text[: len(front)].tolist() == front for text in texts)
    body = torch.cat([text[len(front) :] for text in texts])
    assert torch.equal(body, ids[len(front) : len(front) + len(body)])


def test_nll_of_ends_equals_one_token_at_a_time():
    lm = tiny()
    texts = probes(setting(lm), lm, 2)
    for text, found in zip(texts, nll_of_ends(lm, texts, 7), strict=True):
        slow = []
        for at in range(LENGTH - 7, LENGTH):
            with torch.no_grad():
                logits = lm.model(text[None, :at]).logits[0, -1]
            slow.append(-float(logits.log_softmax(-1)[text[at]]))
        assert found == pytest.approx(np.mean(slow), abs=1e-9)


@pytest.mark.parametrize("softmax", ["standard", "off_by_one"])
def test_shares_equal_loops_over_the_map(softmax):
    lm = tiny(softmax=softmax)
    text = probes(setting(lm), lm, 1)[0]
    trace = capture(lm, text, keep="maps", statistics=())
    places = {"begin": [0], "two": [3, 5], "none": []}
    shares = shares_of(trace, places, 10)
    layer, head = 1, 2
    rows = [trace.attention[layer, head, query] for query in range(LENGTH - 10, LENGTH)]
    assert shares["begin"][layer, head] == pytest.approx(np.mean([row[0] for row in rows]))
    assert shares["two"][layer, head] == pytest.approx(np.mean([row[3] + row[5] for row in rows]))
    assert shares["none"].max() == 0
    assert np.allclose(sum(shares.values()), 1, atol=1e-6)
    assert (shares["null"].min() > 1e-4) == (softmax == "off_by_one")


# The token or the position ------------------------------------------------------------------------


@pytest.mark.parametrize("edit", EDITS)
def test_edits_say_where_the_first_token_went(edit):
    ids = torch.arange(100, 140)
    found, stands = edited(ids, edit, newline=7)
    assert [at for at in range(len(found)) if found[at] == 100 and at > 0] == stands
    assert torch.equal(found[-20:], ids[-20:])
    assert (found[0] == 100) == (edit in (PLAIN, COPIED))
    assert torch.equal(ids, torch.arange(100, 140))


def test_token_or_position_rows_equal_captures_by_hand():
    lm = tiny()
    table = run("token_or_position", lm, quick=True, text="stories").set_index("edit")
    assert list(table.index) == list(EDITS)
    parts = table[["position_0", "first_token", "rest", "null"]]
    assert np.allclose(parts.sum(axis=1), 1, atol=1e-6)
    assert table.loc[PLAIN, ["nll_change", "nll_error"]].tolist() == [0, 0]
    texts = probes(setting(lm), lm, 4, room=4)
    at_place, at_token, rates = [], [], []
    for text in texts:
        swapped = torch.cat((text[[1, 0]], text[2:]))
        attention = capture(lm, swapped, keep="maps").attention
        at_place.append(attention[:, :, -22:, 0].mean())
        at_token.append(attention[:, :, -22:, 1].mean())
        columns = [attention[..., at, 0] for at in range(len(swapped))]
        rates.append(np.mean(columns, axis=0))
    assert table.loc[SWAPPED, "position_0"] == pytest.approx(np.mean(at_place), abs=1e-6)
    assert table.loc[SWAPPED, "first_token"] == pytest.approx(np.mean(at_token), abs=1e-6)
    rate = (np.mean(rates, axis=0) > 0.3).mean()
    assert table.loc[SWAPPED, "sink_rate"] == pytest.approx(rate)
    removed = np.mean(nll_of_ends(lm, [text[1:] for text in texts], 22))
    change = removed - np.mean(nll_of_ends(lm, texts, 22))
    assert table.loc[REMOVED, "nll_change"] == pytest.approx(change)


def edits_table(place: float, token: float) -> pd.DataFrame:
    """What a model would give whose sink is at the place, or goes with the token."""
    rows = []
    for edit in EDITS:
        stays = edit in (PLAIN, COPIED)
        there = 0.6 if stays else place
        elsewhere = token if edit not in (PLAIN, "newline instead", "word instead", REMOVED) else 0
        if edit == COPIED:
            there, elsewhere = 0.15, 0.45
        share = {"position_0": there, "first_token": elsewhere, "rest": 1 - there - elsewhere}
        rows.append({"model": "m", "edit": edit, "first_stays": stays, **share, "null": 0.0})
        rows[-1] |= {"sink_rate": there, "nll_change": 0.1, "nll_error": 0.01}
    return pd.DataFrame(rows)


def test_position_claims_tell_a_place_from_a_token():
    claims = experiment("token_or_position").claims
    by_place, by_token = edits_table(0.5, 0.01), edits_table(0.01, 0.5)
    assert [claim.judge(by_place)[0] for claim in claims] == [True, True, True]
    assert [claim.judge(by_token)[0] for claim in claims] == [False, False, True]
    both = pd.concat([by_place, by_token.assign(model="n")])
    agrees, said = claims[0].judge(both)
    assert agrees is None and "m: " in said and "n: " in said


# Inside -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inside() -> tuple[LM, pd.DataFrame]:
    lm = tiny()
    return lm, run("inside_a_sink", lm, quick=True, text="stories")


def test_attention_under_each_change(inside):
    _, table = inside
    assert set(table["change"]) == set(CHANGES)
    shares = table[table["quantity"] == "attention"].pivot(
        index=["change", "layer"], columns="of", values="value"
    )
    assert set(shares) == set(ROLES)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert (shares.loc["first forbidden", "sink"] < 1e-12).all()
    assert (shares.loc["other forbidden", "sink"] > 0).all()
    # The first layer sees the same keys, whatever a value says.
    assert np.allclose(shares.loc[("first value zero", 0)], shares.loc[("none", 0)])
    cost = table[table["quantity"] == "nll change"].set_index("change")["value"]
    assert cost["none"] == 0 and (cost.drop("none").abs() > 1e-6).all()


def test_norms_and_activations_equal_a_walk_through_the_layers(inside):
    lm, table = inside
    rows = table[table["change"] == "none"].set_index(["quantity", "of", "layer"])["value"]
    texts = probes(setting(lm), lm, 4)
    found = {name: [] for name in ("value", "residual", "largest", "rest", "median")}
    for text in texts:
        with torch.no_grad():
            position = torch.arange(LENGTH)[None]
            hidden = lm.model.model.embed(text[None], position)
            rotation = lm.model.model.rotary_emb(position, hidden.dtype)
            causal = torch.full((LENGTH, LENGTH), -torch.inf, dtype=hidden.dtype).triu(1)
            for layer in lm.model.model.layers[:2]:
                value = layer.self_attn.v_proj(layer.input_norm(hidden))[0].view(LENGTH, 3, 16)
                hidden = layer(hidden, mask=causal, rotation=rotation)
        found["value"].append(value.norm(dim=-1).mean(1)[1:].quantile(0.5).item())
        found["residual"].append(hidden[0, 0].norm().item())
        size = hidden[0].abs()
        found["largest"].append(size[0].max().item())
        found["rest"].append(size[1:].max(-1).values.quantile(0.5).item())
        found["median"].append(size.median().item())
    mean = {name: np.mean(values) for name, values in found.items()}
    assert rows["value norm", "rest", 1] == pytest.approx(mean["value"], rel=1e-5)
    assert rows["residual norm", "first", 1] == pytest.approx(mean["residual"], rel=1e-5)
    assert rows["largest activation", "first", 1] == pytest.approx(mean["largest"], rel=1e-5)
    # Of an even number of tokens, torch takes the lower one in the middle.
    assert rows["largest activation", "rest", 1] == pytest.approx(mean["rest"], rel=0.05)
    assert rows["median activation", "all", 1] == pytest.approx(mean["median"], rel=1e-5)


def inside_table(values: dict[tuple[str, str], float], cost: dict[str, float]) -> pd.DataFrame:
    rows = [("none", 0, *what, value) for what, value in values.items()]
    for change in CHANGES:
        rows.append((change, None, "nll change", "all", cost.get(change, 0.0)))
        rows.append((change, None, "nll error", "all", 0.01))
        sink = 0.0 if change == "first forbidden" else 0.5
        shares = dict.fromkeys(ROLES, 0.0) | {"sink": sink, "recent": 1 - sink}
        rows += [(change, 0, "attention", role, share) for role, share in shares.items()]
    names = ["change", "layer", "quantity", "of", "value"]
    return pd.DataFrame(rows, columns=names).assign(model="m")


LLAMA = {
    ("value norm", "first"): 0.1, ("value norm", "rest"): 1.0,
    ("key norm", "first"): 0.5, ("key norm", "rest"): 1.0,
    ("residual norm", "first"): 900.0, ("residual norm", "rest"): 9.0,
    ("largest activation", "first"): 2622.0, ("largest activation", "rest"): 3.0,
    ("median activation", "all"): 0.2,
}  # fmt: skip


def test_inside_claims_agree_with_what_the_papers_saw():
    claims = experiment("inside_a_sink").claims
    cost = {"first value zero": 0.01, "first forbidden": 6.8, "other forbidden": 0.02}
    assert [claim.judge(inside_table(LLAMA, cost))[0] for claim in claims] == [True] * 6
    turned = {
        (name, {"first": "rest", "rest": "first"}.get(of, of)): value
        for (name, of), value in LLAMA.items()
    }
    no_sink = {"first value zero": 0.5, "first forbidden": 0.01}
    assert [claim.judge(inside_table(turned, no_sink))[0] for claim in claims] == [False] * 6
    said = claims[-1].judge(inside_table(LLAMA, cost))[1]
    assert "+6.800" in said and "recent +0.50" in said


def test_where_nothing_can_be_forbidden_claims_stay_open():
    table = inside_table(LLAMA, {})
    table = table[~table["change"].str.endswith("forbidden")]
    verdicts = [claim.judge(table)[0] for claim in experiment("inside_a_sink").claims]
    assert verdicts[-2:] == [None, None]


# Kinds of softmax ---------------------------------------------------------------------------------


def test_sink_token_scores_the_same_words_for_all():
    plain = tiny("plain")
    lms = [plain, tiny("sinks", n_sink_tokens=1, softmax="off_by_one")]
    table = run("sink_token", lms, quick=True, text="stories")
    nll = table[table["quantity"] == "nll"].set_index(["model", "n_sink"])["value"]
    ids = setting(plain).ids(plain, 1501)
    by_hand = score(plain, ids, SinkWindow(2, 22)).nll[25:]
    assert nll["plain", 2] == pytest.approx(by_hand.mean(), abs=1e-9)
    words = {}
    for lm in lms:
        whole = setting(lm).ids(lm, 1508)
        front = n_front(lm, whole)
        words[lm.name] = whole[: 1500 + front][front:].tolist()
    assert words["plain"] == words["sinks"] == ids[1:].tolist()
    perplexity = table[table["quantity"] == "perplexity"].set_index(["model", "n_sink"])["value"]
    assert np.allclose(np.log(perplexity), nll)
    shares = table[table["step"].isna() & table["n_sink"].isna()]
    shares = shares.pivot(index="model", columns="quantity", values="value")
    assert shares.loc["sinks", "null"] > 1e-4 > abs(shares.loc["plain", "null"])
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)


PAPER = {  # Xiao et al. 2023, table 3, as models of ours
    NO_BEGIN: (27.87, 18.49, 18.05, 18.05),
    TOKEN: (1235.0, 18.01, 18.01, 18.02),
    OFF_BY_ONE: (29214.0, 19.90, 18.27, 18.01),
}


def token_table(first: dict[str, float], rates: dict[str, float]) -> pd.DataFrame:
    blank = {"n_sink": None, "step": None}
    rows = [
        {"model": name, "quantity": "perplexity", "n_sink": n, "step": None, "value": value}
        for name, values in PAPER.items()
        for n, value in zip((0, 1, 2, 4), values, strict=True)
    ]
    for name in SOFTMAXES:
        rows.append({"model": name, "quantity": "first token", "value": first[name]} | blank)
        rows.append({"model": name, "quantity": "sink rate", "value": rates[name]} | blank)
        rows.append({"model": name, "quantity": "null", "value": 0.1} | blank)
        for step in (10, 100):
            end = {"n_sink": None, "step": step, "value": 3.0 + 10 / step}
            rows.append({"model": name, "quantity": "loss"} | end)
            rows.append({"model": name, "quantity": "sink_rate"} | end | {"value": 0.0})
    return pd.DataFrame(rows)


def test_token_claims_agree_with_the_papers_own_numbers():
    first = dict.fromkeys(SOFTMAXES, 0.467) | {"softmax-gated": 0.048}
    rates = dict.fromkeys(SOFTMAXES, 0.18) | {OFF_BY_ONE: 0.0, "softmax-sink-logit": 0.01}
    claims = experiment("sink_token").claims
    table = token_table(first, rates)
    assert [claim.judge(table)[0] for claim in claims] == [True] * 6
    flat = table.assign(value=table["value"].where(table["quantity"] != "perplexity", 18.0))
    flat.loc[flat["quantity"] != "perplexity", "value"] = 0.4
    assert [claim.judge(flat)[0] for claim in claims[:3]] == [False, False, False]
    nothing = table[table["model"] == "softmax-standard"]
    assert [claim.judge(nothing)[0] for claim in claims] == [None] * 6


def variant_table(cliffs: dict[str, float], rates: dict[str, float]) -> pd.DataFrame:
    rows = []
    for name in experiment("retrained").models:
        row = {"model": name, "n_sink": None, "step": None}
        for n_sink in (0, 4):
            value = 20 * np.exp(cliffs.get(name, 0.5) * (n_sink == 0))
            rows.append(row | {"quantity": "perplexity", "n_sink": n_sink, "value": value})
        rows.append(row | {"quantity": "sink rate", "value": rates.get(name, 0.2)})
        rows.append(row | {"quantity": "loss", "step": 9, "value": 3.5})
    return pd.DataFrame(rows)


def test_variant_claims_compare_every_seed_and_every_step_of_a_ladder():
    retrained = experiment("retrained")
    collapse, *claims = retrained.claims
    off = [name for name in retrained.models if name.startswith(OFF_BY_ONE)]
    rising = {"softmax-standard-decay-0": 0.1, "softmax-standard-decay-0.5": 0.4}
    rising |= {"softmax-standard-rate-third": 0.0, "softmax-standard-rate-double": 0.3}
    agree = variant_table(dict.fromkeys(off, 0.0), rising)
    assert [claim.judge(agree)[0] for claim in claims] == [True, True, True]
    # One seed of six, one rung of a ladder is enough to disagree.
    cliffs = dict.fromkeys(off, 0.0) | {"softmax-standard-seed-2": -0.1}
    other = variant_table(cliffs, rising | {"softmax-standard-decay-0": 0.3})
    assert [claim.judge(other)[0] for claim in claims] == [False, False, True]
    # What is within the spread of the seeds decides nothing.
    chance = variant_table(dict.fromkeys(off, 0.0), rising | {"softmax-standard-seed-1": 0.6})
    assert [claim.judge(chance)[0] for claim in claims] == [True, None, None]
    two = agree[agree["model"].isin(["softmax-standard", "softmax-standard-rate-third"])]
    assert [claim.judge(two)[0] for claim in claims] == [None, None, True]
    alone = agree[agree["model"] == "softmax-standard"]
    assert [claim.judge(alone)[0] for claim in retrained.claims] == [None, None, None, None]
    assert collapse.judge(agree)[0] is True
    steady = variant_table({"classroom-rope-seed-2": 0.05}, {})
    assert collapse.judge(steady)[0] is False
    two = steady[steady["model"] != "classroom-rope-seed-2"]
    assert collapse.judge(two)[0] is True and "2 seeds" in collapse.judge(two)[1]


# Birth --------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path) -> LM:
    """A model with a record of growth: resumed once, trained in two phases."""
    recipe = Recipe(
        model={"max_position_embeddings": 10}, phases=((1000, 1e-3, 0.1), (1000, 1e-4, 0.3)),
        batch=10, warmup_steps=2,
    )  # fmt: skip
    lines = []
    for step in (1, 5, 10, 15, 10, 15, 20):  # the run went on from step 5 a second time
        line = {"step": step, "tokens": 100 * step, "loss": 5 - step / 10 - len(lines) / 100}
        heads = [[0.0, 0.1], [0.2, step / 25]]
        lines.append(line | {"sink_rate": float(step > 12) / 4, "first_token": heads})
    (tmp_path / "growth.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "recipe.json").write_text(
        json.dumps({"model": recipe.model, "phases": recipe.phases, "batch": 10, "warmup_steps": 2})
    )
    lm = tiny("grown")
    lm.model.config.name_or_path = str(tmp_path)
    return lm


def test_growth_is_read_once_per_step(recorded):
    lines = growth_of(record_of(recorded))
    assert [line["step"] for line in lines] == [1, 5, 10, 15, 20]
    assert lines[2]["loss"] == pytest.approx(5 - 1 - 0.04)


def test_birth_says_phase_rate_and_decay(recorded):
    table = run("sink_birth", recorded, text="stories")
    assert table["phase_start"].tolist() == [0, 0, 0, 10, 10]
    assert table["weight_decay"].tolist() == [0.1, 0.1, 0.1, 0.3, 0.3]
    # After warm-up from the first learning rate, 3e-3, in a line to the phase's own.
    assert table["learning_rate"][1] == pytest.approx(3e-3 - 2e-3 * 400 / 1000)
    assert table["learning_rate"][3] == pytest.approx(1e-3 - 9e-4 * 400 / 1000)
    assert table["layer_1"][4] == pytest.approx(0.5) and table["strongest"][4] == 0.8
    born, fallen = (claim.judge(table) for claim in experiment("sink_birth").claims)
    assert born[0] is True and "from step 15" in born[1]
    assert fallen[0] is True


def test_birth_needs_a_record():
    with pytest.raises(ValueError, match="tiny has no record of its growth"):
        run("sink_birth", tiny(), text="stories")


def test_a_model_without_sinks_is_no_birth(recorded):
    table = run("sink_birth", recorded, text="stories").assign(sink_rate=0.0)
    born, fallen = (claim.judge(table) for claim in experiment("sink_birth").claims)
    assert born[0] is False and fallen[0] is None


# Figures and records ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["token_or_position", "inside_a_sink", "sink_token"])
def test_tables_are_saved_loaded_and_drawn(name, tmp_path):
    tables = {
        "token_or_position": edits_table(0.1, 0.5),
        "inside_a_sink": inside_table(LLAMA, {}),
        "sink_token": token_table(dict.fromkeys(SOFTMAXES, 0.2), dict.fromkeys(SOFTMAXES, 0.1)),
    }
    tables[name].attrs = {"experiment": name}
    table = load_table(save_table(tables[name], tmp_path / "table.json"))
    for claim in experiment(name).claims:
        assert claim.judge(table)[0] == claim.judge(tables[name])[0]
    with plt.style.context("dark_background"):
        figure = experiment(name).draw(table)
        figure.canvas.draw()
    assert len(figure.axes) >= 1


def test_moved_mass_bars_hold_the_shares():
    table = edits_table(0.1, 0.5)
    ax = plots.plot_moved_mass(table)
    widths = {one.get_label(): [bar.get_width() for bar in one] for one in ax.containers}
    assert np.allclose(widths["first token, elsewhere"], table["first_token"])
    both = np.add(widths["first token, in its place"], widths["another in its place"])
    assert np.allclose(both, table["position_0"])
    with pytest.raises(ValueError, match="must sum to one"):
        plots.plot_moved_mass(table.assign(rest=0.9))
    with pytest.raises(ValueError, match="no row"):
        plots.grid_moved_mass(table.iloc[:0])


def test_inside_lines_and_bars_hold_the_table():
    table = inside_table(LLAMA, {"first forbidden": 6.8, "other forbidden": -0.001})
    first, rest = plots.plot_first_and_rest(table, "residual norm").lines[:2]
    assert (first.get_ydata()[0], rest.get_ydata()[0]) == (900.0, 9.0)
    ax = plots.plot_changed_mass(table)
    assert [text.get_text() for text in ax.texts] == ["0.00", "0.00", "+6.80", "0.00", "0.00"]
    sink = next(one for one in ax.containers if one.get_label() == "first token")
    assert [bar.get_height() for bar in sink] == [0.5, 0.5, 0, 0.5, 0.5]
    with pytest.raises(ValueError, match="no rows of quantity 'width'"):
        plots.plot_first_and_rest(table, "width")


def test_birth_curves_hold_the_table(recorded):
    table = run("sink_birth", recorded, text="stories")
    ax = plots.plot_birth(table, "loss")
    assert ax.lines[0].get_ydata().tolist() == table["loss"].tolist()
    assert ax.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [10]  # where the second phase begins
    assert plots.plot_birth(table).get_title(loc="left") == (
        "sinks are born between step 10 and step 15"
    )
    layers = plots.plot_birth_layers(table)
    cells = layers.collections[0].get_array().reshape(2, -1)
    assert np.allclose(cells, table[["layer_0", "layer_1"]].T)
    decays = [text.get_text() for text in plots.plot_birth(table, "learning_rate").texts]
    assert decays == ["weight decay 0.1", "decay 0.3"]
    two = pd.concat([table, table.assign(model="other", phase_start=0)])
    assert len(plots.plot_birth(two, "loss").lines) == 2  # phases differ: none is marked
    with pytest.raises(ValueError, match="no quantity 'speed'"):
        plots.plot_birth(table, "speed")
    with pytest.raises(ValueError, match="columns loss"):
        plots.plot_birth(table.drop(columns="loss"), "loss")


def test_sink_table_cells_hold_the_nll_above_the_best():
    ax = plots.plot_sink_table(
        token_table(dict.fromkeys(SOFTMAXES, 0.2), dict.fromkeys(SOFTMAXES, 0.1))
    )
    cells = ax.collections[0].get_array().reshape(3, 4)
    assert cells[1].tolist() == pytest.approx([np.log(value / 18.02) for value in PAPER[TOKEN]])
    assert [text.get_text() for text in ax.texts][4:6] == ["1,235", "18.0"]
    with pytest.raises(ValueError, match="no rows of quantity 'perplexity'"):
        plots.plot_sink_table(edits_table(0, 0).assign(quantity="nll"))


def test_retrained_has_a_row_of_dots_per_model_and_a_band_per_recipe():
    cliffs, rates = {"classroom-rope-seed-1": 0.9}, {"softmax-standard-seed-2": 0.4}
    table = variant_table(cliffs, rates)
    rows = table[table["quantity"] == "sink rate"]
    table = pd.concat([table, *(rows.assign(quantity=name) for name in ("first token", "null"))])
    retrained = experiment("retrained")
    lost, *others = retrained.draw(table).axes
    labels = [label.get_text() for label in lost.get_yticklabels()]
    assert len(labels) == len(retrained.models)
    # Variants stand with the seeds of their recipe, whatever the order of the table.
    assert labels[3:10] == [
        *("softmax-standard", "seed 1", "seed 2"),
        *("decay 0", "decay 0.5", "rate third", "rate double"),
    ]
    (dots,) = (line for line in lost.lines if line.get_label() == "0 sinks")
    assert dots.get_xdata() == pytest.approx([0.5, 0.9, *[0.5] * (len(labels) - 2)])
    assert [ax.get_title(loc="left") for ax in others] == [
        *("perplexity", "held-out loss", "sink rate", "first token", "null")
    ]
    bands = [area.get_paths()[0].get_extents() for area in others[2].collections]
    assert [(round(band.x0, 6), round(band.x1, 6)) for band in bands] == [
        *((0.2, 0.2), (0.2, 0.4), (0.2, 0.2))
    ]
    places = lost.get_yticks()
    assert bands[1].y0 < places[3] and places[9] < bands[1].y1 < places[10]
    with pytest.raises(ValueError, match="no rows of quantity 'null'"):
        retrained.draw(table[table["quantity"] != "null"])
    # One run, not trained here: no seeds to lie apart, no loss on record.
    alone = table[(table["model"] == OFF_BY_ONE) & (table["quantity"] != "loss")]
    axes = retrained.draw(alone).axes
    assert len(axes) == 5 and not any(ax.collections for ax in axes)


@pytest.mark.models
def test_the_classroom_sink_goes_with_its_token():
    table = run("token_or_position", load("classroom-rope"), quick=True, text="stories")
    rows = table.set_index("edit")
    assert rows.loc[SWAPPED, "first_token"] > 0.3 > 0.05 > rows.loc[SWAPPED, "position_0"]
    assert rows.loc[REMOVED, "nll_change"] > 3 * rows.loc[REMOVED, "nll_error"]


@pytest.mark.models
def test_the_classroom_sink_is_short_of_value_and_long_of_residual():
    table = run("inside_a_sink", load("classroom-rope"), quick=True, text="stories")
    rows = table[table["change"] == "none"].set_index(["quantity", "of", "layer"])["value"]
    for layer in range(4):
        assert rows["value norm", "first", layer] < 0.5 * rows["value norm", "rest", layer]
        assert rows["residual norm", "first", layer] > 2 * rows["residual norm", "rest", layer]
