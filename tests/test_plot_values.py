"""Figures of scores, steps, norms, entropy, received attention, rotary and softmax: their data."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import to_hex
from test_plots import make_run, make_steps, make_trace, texts_of, tick_labels, title_of

from sinkviz import plots
from sinkviz.attention import null_softmax
from sinkviz.metrics import ROLES
from sinkviz.plots.received import even_share, top_keys
from sinkviz.plots.scores import score_lead
from sinkviz.plots.softmax import softmax_variants
from sinkviz.policies import SinkWindow, Window
from sinkviz.positions import alibi_slopes, rotary_frequencies, rotate, rotation_by
from sinkviz.style import COLOURS, STACK


def refused(error, match, draw):
    """Assert that bad input is told, and leaves no figure behind."""
    before = plt.get_fignums()
    with pytest.raises(error, match=match):
        draw()
    assert plt.get_fignums() == before


@pytest.fixture(scope="module")
def trace():
    return make_trace(3, 4, 60)


# Scores -----------------------------------------------------------------------------------------


def slow_lead(rows, key):
    length, leads = len(rows), []
    for query in range(key + 1, length):
        others = [rows[query][k] for k in range(query + 1) if k != key]
        leads.append(rows[query][key] - sum(others) / len(others))
    return sum(leads) / len(leads)


@pytest.mark.parametrize("key", [0, 3])
def test_lead_is_the_score_minus_the_mean_of_the_others(trace, key):
    lead = score_lead(trace.scores, key)
    for layer, head in np.ndindex(3, 4):
        assert lead[layer, head] == pytest.approx(slow_lead(trace.scores[layer, head], key))
    # A softmax does not change when a row is moved, and neither does the lead.
    moved = trace.scores + np.arange(60)[:, None]
    np.testing.assert_allclose(score_lead(moved, key), lead)


def test_lead_of_a_key_that_slides_out_of_view():
    scores = make_trace(1, 1, 6).scores.copy()
    rows = scores[0, 0]
    rows[3:, 0] = np.nan
    expected = np.mean([rows[q, 0] - np.mean(rows[q, 1 : q + 1]) for q in (1, 2)])
    assert score_lead(scores)[0, 0] == pytest.approx(expected)


def test_score_map_holds_the_lead_and_frames_what_is_above_zero(trace):
    ax = plots.plot_score_map(trace.scores, key=3)
    lead = score_lead(trace.scores, 3)
    mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
    np.testing.assert_allclose(mesh.get_array().reshape(3, 4), lead)
    assert mesh.norm(0.0) == 0.5
    assert texts_of(ax) == [f"{value:.1f}" for value in lead.flat]
    above = (lead > 0).sum()
    assert title_of(ax) == f"key 3 scores above the others in {above} of 12 heads"
    assert 0 < above < 12, "the example shows both"


def test_scores_are_drawn_as_they_are_on_one_scale(trace):
    ax = plots.plot_scores(trace.scores, layer=1, head=2)
    drawn = ax.images[0].get_array()
    np.testing.assert_array_equal(drawn.mask, np.triu(np.ones((60, 60), bool), 1))
    np.testing.assert_array_equal(drawn.filled(0), np.nan_to_num(trace.scores[1, 2]))
    figure = plots.grid_scores(trace.scores)
    panels = [one for one in figure.axes if one.images]
    assert len(panels) == 12 and len({(p.images[0].norm.vmin) for p in panels}) == 1
    assert panels[0].images[0].norm.vmax == np.nanmax(np.abs(trace.scores))
    assert title_of(panels[5]).startswith("layer 1, head 1: ")


def test_scores_of_a_large_model_are_those_of_the_paper():
    scores = np.zeros((32, 32, 4, 4))
    titles = [title_of(ax) for ax in plots.grid_scores(scores).axes if ax.images]
    assert [title.split(",")[0] for title in titles][:2] == ["layer 0", "layer 1"]
    assert titles[-1].startswith("layer 31, head 0") and len(titles) <= 8


def test_score_errors_say_what_to_do(trace):
    refused(
        ValueError,
        "as capture_scores returns them",
        lambda: plots.plot_scores(np.eye(4)[None, None, :2]),
    )
    nothing = np.full((1, 1, 3, 3), np.nan)
    refused(ValueError, r"capture\(lm, text, scores=True\)", lambda: plots.plot_scores(nothing))
    refused(
        IndexError,
        r"layer must be in 0\.\.2, got 3",
        lambda: plots.plot_scores(trace.scores, layer=3),
    )
    refused(
        IndexError, r"key must be in 0\.\.58", lambda: plots.plot_score_map(trace.scores, key=59)
    )
    refused(ValueError, r"1\.\.32 \(layer, head\)", lambda: plots.grid_scores(trace.scores, []))
    refused(IndexError, "head must be in", lambda: plots.grid_scores(trace.scores, [(0, 9)]))


# Mass along a stream ------------------------------------------------------------------------------


def heights(ax):
    """Return how high the area of each role is at each step, read off its outline."""
    found = []
    for area in (one for one in ax.collections if isinstance(one, PolyCollection)):
        outline = area.get_paths()[0].vertices[:, 1]  # start, lower edge, end, upper edge, start
        n = (len(outline) - 3) // 2
        found.append(outline[n + 2 : 2 * n + 2][::-1] - outline[1 : n + 1])
    return found


@pytest.mark.parametrize("window", [1, 5])
def test_mass_of_steps_is_their_running_mean_at_the_query(window):
    steps = make_steps(30)
    ax = plots.plot_mass_steps(steps, window=window)
    shares = np.array([[step.mass[role] for role in STACK] for step in steps])
    slow = np.array([shares[max(0, n + 1 - window) : n + 1].mean(0) for n in range(30)])
    for found, expected in zip(heights(ax), slow.T, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert ax.get_xlim() == (0, 29), "the query is the token before the one predicted"
    sink = slow[:, STACK.index("sink")].mean() * 100
    assert title_of(ax) == f"mass by role: sinks take {sink:.0f} %"


def test_mass_of_a_run_leaves_the_last_token_out():
    run = make_run(SinkWindow(2, 6), 30)
    mass = np.random.default_rng(0).dirichlet(np.ones(5), 30)
    mass[-1] = np.nan
    run = dataclasses.replace(run, mass=mass)
    ax = plots.plot_mass_steps(run, window=1)
    assert ax.get_xlim() == (0, 28)
    share = np.nanmean(mass[:, ROLES.index("sink")]) * 100
    assert title_of(ax) == f"SinkWindow 2+6: sinks take {share:.0f} %"
    assert "first eviction (8)" in texts_of(ax), "a run knows its policy"


def test_first_eviction_is_marked_where_it_is():
    ax = plots.plot_mass_steps(make_steps(40), policy=Window(8))
    assert {tuple(line.get_xdata()) for line in ax.lines} == {(8, 8)}
    assert not plots.plot_mass_steps(make_steps(40), policy=Window(64)).lines
    assert not plots.plot_mass_steps(make_steps(40)).lines


def test_lanes_share_one_legend_and_null_is_hatched():
    lanes = {policy: iter(make_steps(20)) for policy in (Window(8), SinkWindow(2, 6))}
    figure = plots.grid_mass_steps(lanes)
    assert [title_of(ax).split(":")[0] for ax in figure.axes] == ["Window 0+8", "SinkWindow 2+6"]
    (legend,) = figure.legends
    null, *others = legend.get_patches()
    assert legend.get_texts()[0].get_text() == "null (nowhere)" and null.get_hatch()
    assert len(others) == 4


def test_step_errors_say_what_to_do():
    silent = make_steps(3)
    silent[1].mass = None
    refused(
        ValueError, "stream or compare with capture=True", lambda: plots.plot_mass_steps(silent)
    )
    refused(ValueError, "capture=True", lambda: plots.plot_mass_steps([]))
    refused(ValueError, "recorded no mass", lambda: plots.plot_mass_steps(make_run(Window(8))))
    refused(
        ValueError,
        "window must be at least 1",
        lambda: plots.plot_mass_steps(make_steps(3), window=0),
    )
    refused(ValueError, "no lanes to draw", lambda: plots.grid_mass_steps({}))


# Received attention -------------------------------------------------------------------------------


def test_even_share_is_that_of_a_map_without_preferences():
    even = np.tril(np.ones((9, 9))) / np.arange(1, 10)[:, None]
    np.testing.assert_allclose(even_share(9), [even[k:, k].mean() for k in range(9)])


@pytest.mark.parametrize("layer", [None, 1])
def test_received_line_is_the_mean_over_heads(trace, layer):
    ax = plots.plot_received(trace, layer=layer)
    heads = trace.received.reshape(-1, 60) if layer is None else trace.received[layer]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), heads.mean(0))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), even_share(60))
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(heads.min()) and band.max() == pytest.approx(heads.max())
    assert ax.get_yscale() == "log"
    assert f"{heads[:, 0].mean() * 100:.0f} % for the first token" in title_of(ax)


def test_received_names_the_keys_furthest_above_even():
    trace = make_trace(1, 2, 50)
    received = np.tile(even_share(50), (1, 2, 1))
    received[..., 0], received[..., 17], received[..., 49] = 0.9, 0.5, 0.9
    trace = dataclasses.replace(trace, received=received, tokens=tuple(f"t{n}" for n in range(50)))
    assert top_keys(received[0, 0], 2).tolist() == [17, 0], "the last keys are not judged"
    names = [text for text in texts_of(plots.plot_received(trace, top=2)) if text.startswith("t")]
    assert names == ["t17 50 %", "t0 90 %"]
    assert not [t for t in texts_of(plots.plot_received(trace, top=0)) if t.startswith("t")]


def test_received_map_has_a_row_per_layer_or_head(trace):
    rows = plots.plot_received_map(trace).images[0].get_array()
    np.testing.assert_allclose(rows, trace.received.mean(1))
    ax = plots.plot_received_map(trace, layer=-1)
    np.testing.assert_allclose(ax.images[0].get_array(), trace.received[2])
    assert ax.get_ylabel() == "head" and "in layer 2" in title_of(ax)


def test_received_map_of_a_long_text_keeps_its_sink():
    trace = make_trace(1, 2, 400)
    drawn = plots.plot_received_map(trace, layer=0).images[0].get_array()
    assert drawn.shape == (2, 134)
    assert drawn[1, 0] == trace.received[0, 1, :3].max()
    assert drawn[1, 133] == trace.received[0, 1, 399:].max()


def test_received_errors(trace):
    empty = dataclasses.replace(trace, received=np.full((3, 4, 60), np.nan))
    refused(ValueError, r"statistics=\('received',\)", lambda: plots.plot_received(empty))
    refused(IndexError, r"layer must be in 0\.\.2", lambda: plots.plot_received_map(trace, layer=3))


# Entropy ------------------------------------------------------------------------------------------


def test_entropy_has_a_mark_per_head_and_sinks_look_different(trace):
    received = trace.received.copy()
    received[..., 0] = 0.1
    received[0, 1, 0] = received[2, 3, 0] = 0.9
    ax = plots.plot_entropy(dataclasses.replace(trace, received=received))
    sink, other, even = ax.lines
    np.testing.assert_allclose(sink.get_ydata(), trace.entropy[[0, 2], [1, 3]].mean(-1))
    assert len(other.get_ydata()) == 10 and other.get_marker() != sink.get_marker()
    assert to_hex(sink.get_color()) == COLOURS["sink"].lower()
    assert sink.get_xdata().round().tolist() == [0, 2], "marks stand at their layer"
    assert even.get_ydata()[0] == pytest.approx(np.log(np.arange(1, 61)).mean())
    assert title_of(ax).count(" heads") == 2


def test_entropy_along_a_text_is_in_blocks_where_it_is_long():
    trace = make_trace(2, 2, 130)
    trace = dataclasses.replace(trace, received=np.full((2, 2, 130), 0.5))
    ax = plots.plot_entropy(trace, over="tokens")
    x, y = ax.lines[0].get_data()
    rows = trace.entropy.reshape(4, 130)
    assert len(x) == 44 and x[0] == 1
    np.testing.assert_allclose(y[:43], rows[:, :129].reshape(4, 43, 3).mean((0, 2)))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), np.log(np.arange(1, 131)))


def test_entropy_errors(trace):
    refused(
        ValueError,
        "'layers' or 'tokens', got 'heads'",
        lambda: plots.plot_entropy(trace, over="heads"),
    )
    silent = dataclasses.replace(trace, entropy=np.full((3, 4, 60), np.nan))
    refused(ValueError, "the trace holds no entropy", lambda: plots.plot_entropy(silent))


# Norms --------------------------------------------------------------------------------------------


def test_norms_show_the_first_token_the_median_and_what_is_massive():
    norms = 1 + np.random.default_rng(0).random((3, 20))
    norms[:, 0], norms[1, 7] = 50, 30
    trace = dataclasses.replace(make_trace(3, 2, 20), residual_norm=norms)
    ax = plots.plot_norms(trace)
    median, first, massive = [line for line in ax.lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(median.get_ydata(), np.median(norms, -1))
    np.testing.assert_allclose(first.get_ydata(), norms[:, 0])
    np.testing.assert_allclose(massive.get_ydata(), norms[:, 7])
    assert first.get_linestyle() != massive.get_linestyle()
    assert {"median", "<|begin|>", "a (7)"} <= set(texts_of(ax))
    # The first token is furthest from the median where it is lowest.
    far = (norms[:, 0] / np.median(norms, -1)).max()
    assert title_of(ax) == f"residual norms: the first token has up to {far:.2g} times the median"


@pytest.mark.parametrize("of", ["key", "value"])
def test_norms_of_keys_and_values_are_means_over_heads(trace, of):
    ax = plots.plot_norms(trace, of=of)
    expected = getattr(trace, f"{of}_norm").mean(1)[:, 0]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), expected)
    assert "down to" in title_of(ax) and ax.get_yscale() == "log"


def test_value_norms_stand_over_what_is_received(trace):
    ax = plots.plot_value_norms(trace, layer=1)
    rest, first = ax.lines[:2]
    relative = trace.value_norm[1] / np.median(trace.value_norm[1], -1, keepdims=True)
    np.testing.assert_allclose(first.get_data(), [trace.received[1, :, 0], relative[:, 0]])
    np.testing.assert_allclose(rest.get_ydata(), relative[:, 1:].ravel())
    assert first.get_marker() != rest.get_marker()
    # All layers but the first, where sinks have not grown yet.
    assert len(plots.plot_value_norms(trace).lines[1].get_xdata()) == 2 * 4


def test_grouped_heads_share_a_value(trace):
    grouped = dataclasses.replace(trace, value_norm=trace.value_norm[:, :2])
    first = plots.plot_value_norms(grouped, layer=0).lines[1].get_ydata()
    assert first[0] == first[1] != first[2] == first[3]


def test_norm_errors(trace):
    without = dataclasses.replace(trace, value_norm=None)
    refused(
        ValueError,
        r"no value norms; capture with statistics=\('norms',\)",
        lambda: plots.grid_norms(without),
    )
    refused(ValueError, "no value norms", lambda: plots.plot_value_norms(without))
    refused(
        ValueError,
        "of must be one of residual, key, value",
        lambda: plots.plot_norms(trace, of="x"),
    )
    refused(IndexError, r"layer must be in 0\.\.2", lambda: plots.plot_value_norms(trace, layer=3))


# ALiBi and rotary ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_heads", [1, 8, 12])
def test_alibi_slopes_and_which_rule_they_follow(n_heads):
    ax = plots.plot_alibi_slopes(n_heads)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines])
    np.testing.assert_array_equal(drawn, alibi_slopes(n_heads).numpy())
    assert len(ax.lines) == (2 if n_heads == 12 else 1), (
        "heads beyond a power of two look different"
    )
    assert f"one nat is {1 / drawn.max():.3g} to {1 / drawn.min():.3g} tokens away" in title_of(ax)


def test_alibi_bias_of_a_head_is_its_matrix():
    drawn = plots.plot_alibi_bias(-1, 4, length=9).images[0].get_array()
    slope = alibi_slopes(4)[-1].item()
    for query, key in np.ndindex(9, 9):
        if key > query:
            assert drawn.mask[query, key]
        else:
            assert drawn[query, key] == pytest.approx(slope * (key - query))
    refused(IndexError, r"head must be in 0\.\.3, got 4", lambda: plots.plot_alibi_bias(4, 4))


def test_rotary_sum_is_the_score_of_equal_vectors():
    total = plots.plot_rotary(8, 50, theta=100.0).lines[0].get_ydata()
    frequencies = rotary_frequencies(8, 100.0).double()
    query = torch.ones(8, dtype=torch.float64)
    for distance in (0, 1, 7, 49):
        key = rotate(query, *rotation_by(-distance, frequencies))
        assert total[distance] == pytest.approx(float(query @ key) / 8)


def test_rotary_figure_has_wheels_phases_and_their_sum():
    figure = plots.grid_rotary(16, 100, distance=5)
    frequencies = rotary_frequencies(16).double().numpy()
    *wheels, phases, total, _ = figure.axes
    assert [ax.get_xlabel() for ax in wheels] == [f"pair {pair}" for pair in range(8)]
    for frequency, ax in zip(frequencies, wheels, strict=True):
        x, y = ax.lines[1].get_data()  # a dot per distance, clockwise from above
        np.testing.assert_allclose(
            np.stack((x, y)), [np.sin(frequency * np.arange(6)), np.cos(frequency * np.arange(6))]
        )
    np.testing.assert_allclose(
        phases.images[0].get_array(), np.cos(frequencies[:, None] * np.arange(100))
    )
    turning = sum(2 * np.pi / frequency < 100 for frequency in frequencies)
    assert title_of(phases) == f"{turning} of 8 pairs turn within 100 tokens"
    assert phases.lines[0].get_ydata()[0] == turning - 0.5
    assert len(total.lines[0].get_ydata()) == 100


def test_rotary_errors():
    refused(ValueError, "even number", lambda: plots.plot_rotary(7))
    refused(ValueError, "dimension must be at least 2", lambda: plots.plot_rotary(0))
    refused(ValueError, "length must be at least 2", lambda: plots.grid_rotary(length=1))
    refused(ValueError, "theta must be above 1", lambda: plots.plot_rotary(theta=1.0))
    refused(ValueError, "distance must be at least 1", lambda: plots.grid_rotary(distance=0))


# Softmax ------------------------------------------------------------------------------------------

LOGITS = [3.0, -1.0, 0.5, 200.0]


@pytest.mark.parametrize("logits", [LOGITS, [-300.0, -301.0], [0.0]])
def test_softmax_variants_are_those_of_the_models(logits):
    found = softmax_variants(logits, sink_logit=1.5, gate=0.3)
    scores = torch.tensor(logits, dtype=torch.float64)[None, None]
    nulls = {"standard": None, "off by one": torch.zeros(1), "sink logit 1.5": torch.tensor([1.5])}
    for name, null in nulls.items():
        np.testing.assert_allclose(found[name], null_softmax(scores, null)[0, 0], atol=1e-12)
    np.testing.assert_allclose(found["gate 0.3"], 0.3 * found["standard"])


def test_softmax_bars_are_the_shares_and_the_rest_is_hatched():
    logits = [1.0, 0.0, -1.0]
    ax = plots.plot_softmax(logits, sink_logit=0.0, gate=0.5, labels=["a", "$b$", "c"])
    rows = list(softmax_variants(logits, sink_logit=0.0, gate=0.5).values())
    widths = [bar.get_width() for bar in ax.patches]
    expected = np.concatenate(
        [np.append(row, [1 - row.sum()] if row.sum() < 0.999 else []) for row in rows]
    )
    np.testing.assert_allclose(widths, expected)
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [False] * 3 + 3 * ([False] * 3 + [True])
    assert to_hex(ax.patches[0].get_facecolor()) == COLOURS["sink"].lower()
    assert tick_labels(ax.yaxis) == ["standard", "off by one", "sink logit 0", "gate 0.5"]
    assert any(text.startswith("$b$\n") for text in texts_of(ax))
    ax.figure.canvas.draw()
    assert title_of(ax).startswith("mass that goes nowhere: 0, ")


def test_softmax_takes_shares_too():
    ax = plots.plot_softmax({"mine": np.array([0.5, 0.25])})
    assert [float(bar.get_width()) for bar in ax.patches] == [0.5, 0.25, 0.25]


def test_softmax_errors():
    refused(ValueError, "one finite number per key", lambda: plots.plot_softmax([]))
    refused(ValueError, "one finite number per key", lambda: plots.plot_softmax([np.nan, 1.0]))
    refused(
        ValueError, r"gate must be in \[0, 1\], got 2", lambda: plots.plot_softmax([0.0], gate=2.0)
    )
    refused(
        ValueError,
        "labels must be one per key, 2, got 1",
        lambda: plots.plot_softmax([0.0, 1.0], labels=["a"]),
    )
    refused(
        ValueError,
        "sum to at most 1, got 1.500",
        lambda: plots.plot_softmax({"x": np.array([0.5, 1.0])}),
    )
    refused(ValueError, "no shares to draw", lambda: plots.plot_softmax({}))
    uneven = {"x": np.array([0.5]), "y": np.array([0.1, 0.2])}
    refused(ValueError, "the same keys", lambda: plots.plot_softmax(uneven))
    refused(ValueError, "no cases to draw", lambda: plots.grid_softmax({}))
