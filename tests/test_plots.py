"""Plots: what the artists hold is what the arrays say."""

import dataclasses
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from sinkviz import metrics, plots
from sinkviz.plots._labels import spread
from sinkviz.plots._parts import short
from sinkviz.policies import Dense, Recompute, SinkWindow, Window, visibility
from sinkviz.positions import alibi_bias, alibi_slopes
from sinkviz.records import StreamRun, Trace
from sinkviz.style import COLOURS, STACK, attention_norm, contrast, paper

WORDS = "<|begin|> Once upon a time there was a $ price of $5 and\n no one paid it .".split(" ")
POLICIES = [Dense(), Window(8), SinkWindow(2, 6), Recompute(8)]


def make_trace(layers=2, heads=3, length=12, *, null=0.0, n_sink=1, seed=0) -> Trace:
    """Softmax of random scores under a causal mask; the first key is liked."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, heads, length, length, generator=draw, dtype=torch.float64)
    scores[..., 0] += 2
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    attention = scores.masked_fill(future, -torch.inf).softmax(-1) * (1 - null)
    shares = metrics.mass(attention, n_sink=n_sink, n_recent=4)
    norms = 1 + torch.rand(layers, 2 * heads, length, generator=draw, dtype=torch.float64).numpy()
    norms[..., 0] /= 5
    return Trace(
        tokens=tuple(WORDS[i % len(WORDS)] for i in range(length)),
        token_ids=np.arange(length),
        received=metrics.received_attention(attention).numpy(),
        mass=torch.stack([shares[role] for role in metrics.ROLES], -1).numpy(),
        entropy=metrics.entropy(attention).numpy(),
        attention=attention.numpy(),
        n_sink=n_sink,
        n_recent=4,
        key_norm=norms[:, :heads],
        value_norm=norms[:, heads:],
        residual_norm=10 / norms[:, 0],
        scores=scores.masked_fill(future, torch.nan).numpy(),
    )


def make_steps(length=40, seed=0) -> list[SimpleNamespace]:
    """What ``stream`` yields with ``capture=True``, as far as a figure reads it."""
    shares = np.random.default_rng(seed).dirichlet(np.ones(len(metrics.ROLES)), length)
    return [
        SimpleNamespace(position=n + 1, mass=dict(zip(metrics.ROLES, share.tolist(), strict=True)))
        for n, share in enumerate(shares)
    ]


def make_run(policy, length=200, *, worse=0.0, seed=0, model="m") -> StreamRun:
    nll = np.random.default_rng(seed).gamma(2.0, 1.5, length)
    nll[20:] += worse
    nll[0] = np.nan
    return StreamRun(policy, np.arange(length), nll, provenance={"model": model})


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace()


def statistics(trace: Trace) -> Trace:
    return dataclasses.replace(trace, attention=None)


def title_of(ax) -> str:
    return ax.get_title(loc="left")


def texts_of(ax) -> list[str]:
    legend = ax.get_legend()
    return [t.get_text() for t in [*ax.texts, *(legend.get_texts() if legend else ())]]


def tick_labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# Every figure -----------------------------------------------------------------------------------

DRAWN = {
    "attention": lambda ax: plots.plot_attention(make_trace(), layer=1, head=2, ax=ax),
    "sink_map": lambda ax: plots.plot_sink_map(make_trace(), ax=ax),
    "mass_layers": lambda ax: plots.plot_mass(make_trace(null=0.1), ax=ax),
    "mass_tokens": lambda ax: plots.plot_mass(make_trace(length=50), over="tokens", ax=ax),
    "visibility": lambda ax: plots.plot_visibility(SinkWindow(2, 6), ax=ax),
    "nll": lambda ax: plots.plot_nll(list(map(make_run, POLICIES)), train_length=64, ax=ax),
    "sink_sizes": lambda ax: plots.plot_sink_sizes(list(map(make_run, POLICIES)), ax=ax),
    "alibi": lambda ax: plots.plot_alibi(ax=ax),
    "alibi_slopes": lambda ax: plots.plot_alibi_slopes(12, ax=ax),
    "alibi_bias": lambda ax: plots.plot_alibi_bias(ax=ax),
    "rotary": lambda ax: plots.plot_rotary(train_length=128, ax=ax),
    "softmax": lambda ax: plots.plot_softmax([1.0, 0.0, -1.0], ax=ax),
    "attention_rest": lambda ax: plots.plot_attention(make_trace(), hide=1, ax=ax),
    "scores": lambda ax: plots.plot_scores(make_trace().scores, ax=ax),
    "score_map": lambda ax: plots.plot_score_map(make_trace().scores, ax=ax),
    "mass_steps": lambda ax: plots.plot_mass_steps(make_steps(), policy=Window(8), ax=ax),
    "received": lambda ax: plots.plot_received(make_trace(length=60), ax=ax),
    "received_map": lambda ax: plots.plot_received_map(make_trace(), layer=0, ax=ax),
    "entropy_layers": lambda ax: plots.plot_entropy(make_trace(), ax=ax),
    "entropy_tokens": lambda ax: plots.plot_entropy(make_trace(length=99), over="tokens", ax=ax),
    "norms": lambda ax: plots.plot_norms(make_trace(), ax=ax),
    "value_norms": lambda ax: plots.plot_value_norms(make_trace(), ax=ax),
}
ON_COLOUR = {"sink_map", "score_map", "softmax"}  # their texts are on cells and bars
GRIDS = {
    "alibi": lambda width: plots.grid_alibi(width=width),
    "attention": lambda width: plots.grid_attention(make_trace(), layer=0, width=width),
    "attention_model": lambda width: plots.grid_attention(make_trace(), width=width),
    "mass_steps": lambda width: plots.grid_mass_steps(
        {policy: make_steps() for policy in (Window(8), SinkWindow(2, 6))}, width=width
    ),
    "norms": lambda width: plots.grid_norms(make_trace(), width=width),
    "rotary": lambda width: plots.grid_rotary(length=64, width=width),
    "scores": lambda width: plots.grid_scores(make_trace(4, 4).scores, width=width),
    "softmax": lambda width: plots.grid_softmax({"a": [1.0, 0.0], "b": [0.0, 0.0]}, width=width),
    "visibility": lambda width: plots.grid_visibility(POLICIES, width=width),
}
SIZES = {"slide": (8, 4.5), "column": (3.35, 2.5)}


@pytest.mark.parametrize("sheet, size", [("default", "slide"), ("dark_background", "column")])
@pytest.mark.parametrize("name", DRAWN)
def test_draws_in_the_given_axes_alone_on_any_paper(name, sheet, size):
    before = dict(plt.rcParams)
    with plt.style.context(sheet):
        figure, (ax, other) = plt.subplots(1, 2, figsize=SIZES[size], layout="constrained")
        untouched = len(other.get_children())
        assert DRAWN[name](ax) is ax
        assert figure.axes == [ax, other] and len(other.get_children()) == untouched
        figure.draw_without_rendering()
        assert contrast(ax.title.get_color(), paper(ax)) > 4.5
        for text in ax.texts:
            if name not in ON_COLOUR:
                assert contrast(text.get_color(), paper(ax)) > 4.5
    assert dict(plt.rcParams) == before
    assert title_of(ax) and "\n" not in title_of(ax)
    assert ax.get_xlabel() and (ax.get_ylabel() or name in ("visibility", "softmax"))


@pytest.mark.parametrize("name", DRAWN)
def test_an_axis_of_values_says_when_it_is_logarithmic(name):
    axis = DRAWN[name](None).yaxis
    assert (axis.get_scale() != "linear") == ("log scale" in axis.get_label_text())


@pytest.mark.parametrize("name", DRAWN)
def test_without_axes_makes_a_figure_that_lays_itself_out(name):
    ax = DRAWN[name](None)
    assert isinstance(ax.figure, Figure)
    assert ax.figure.get_layout_engine().__class__.__name__ == "ConstrainedLayoutEngine"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_clipped_at_the_edge_of_the_figure(name, size):
    with plt.style.context({"font.size": 8 if size == "column" else 10}):
        figure, ax = plt.subplots(figsize=SIZES[size], layout="constrained")
        DRAWN[name](ax)
        figure.canvas.draw()
    box = figure.get_tightbbox()
    wide, high = figure.get_size_inches()
    slack = 0.02
    assert -slack <= box.x0 and box.x1 <= wide + slack, (box, wide)
    assert -slack <= box.y0 and box.y1 <= high + slack, (box, high)


@pytest.mark.parametrize("width, font", [(13.3, 16), (3.3, 7)], ids=["slide", "column"])
@pytest.mark.parametrize("name", GRIDS)
def test_grids_fill_a_slide_or_a_column_without_overlap(name, width, font):
    with plt.style.context({"font.size": font}):
        figure = GRIDS[name](width)
        figure.canvas.draw()
    wide, high = figure.get_size_inches()
    assert wide == pytest.approx(width) and high < (0.62 if width > 7 else 2.2) * width
    box, slack = figure.get_tightbbox(), 0.03
    assert -slack <= box.x0 and box.x1 <= wide + slack, (box, wide)
    assert -slack <= box.y0 and box.y1 <= high + slack, (box, high)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    titles = [title for ax in shown for title in (ax.title, ax._left_title) if title.get_text()]
    boxes = [title.get_window_extent() for title in titles]
    for nth, one in enumerate(boxes):
        for other, text in zip(boxes[nth + 1 :], titles[nth + 1 :], strict=True):
            assert not one.overlaps(other), (titles[nth].get_text(), text.get_text())


def test_a_figure_too_narrow_to_read_is_refused():
    before = plt.get_fignums()
    for draw in GRIDS.values():
        with pytest.raises(ValueError, match="width must be at least 2 inches, got 1"):
            draw(1.0)
    assert plt.get_fignums() == before


@pytest.mark.parametrize("name", [name for name in DRAWN if name not in ("alibi", "nll")])
def test_figures_are_written_as_svg(name, tmp_path):
    figure = DRAWN[name](None).figure
    figure.savefig(tmp_path / "figure.svg")
    assert 5_000 < (tmp_path / "figure.svg").stat().st_size < 600_000


# Attention --------------------------------------------------------------------------------------


def test_attention_map_is_the_trace_with_the_future_masked(trace):
    ax = plots.plot_attention(trace, layer=1, head=2)
    (image,) = ax.images
    assert "first token takes" in title_of(ax)
    drawn = image.get_array()
    assert np.array_equal(drawn.mask, np.triu(np.ones((12, 12), bool), 1))
    np.testing.assert_array_equal(drawn.filled(0.0), trace.map(1, 2))
    ground = ax.patches[0]
    assert ground.get_hatch() and ground.get_zorder() < image.get_zorder()
    assert image.get_cmap()(np.ma.masked)[3] == 0, "the hatch shows through"


def test_attention_maps_share_one_norm_and_the_bar_says_so(trace):
    norms = [plots.plot_attention(trace, layer=i).images[0].norm for i in (0, 1)]
    for share in (0.0, 0.01, 0.3, 1.0):
        assert norms[0](share) == norms[1](share) == attention_norm()(share)
    ax = plots.plot_attention(trace)
    assert "square-root scale" in ax.images[0].colorbar.ax.get_ylabel()


def test_attention_title_says_what_the_first_token_takes(trace):
    percent = f"{trace.received[1, 2, 0] * 100:.0f} %"
    title = title_of(plots.plot_attention(trace, layer=-1, head=-1))
    assert title == f"layer 1, head 2: the first token takes {percent}"


def test_ticks_are_tokens_up_to_forty_and_positions_beyond():
    ax = plots.plot_attention(make_trace(1, 1, 40))
    expected = [short(WORDS[i % len(WORDS)]) for i in range(40)]
    assert tick_labels(ax.xaxis) == tick_labels(ax.yaxis) == expected
    ax = plots.plot_attention(make_trace(1, 1, 41))
    ax.figure.canvas.draw()
    assert not set(tick_labels(ax.xaxis)) & set(WORDS)
    assert "text position" in ax.get_xlabel()


def test_dollars_in_tokens_are_no_mathematics():
    trace = dataclasses.replace(make_trace(1, 1, 3), tokens=("$x$", "$\\frac$", "a"))
    ax = plots.plot_attention(trace)
    ax.figure.canvas.draw()
    assert tick_labels(ax.xaxis) == ["$x$", "$\\frac$", "a"]
    title = title_of(plots.plot_sink_map(dataclasses.replace(trace, attention=None), key=1))
    assert "$\\frac$" in title
    plt.gcf().canvas.draw()


def test_tokens_are_made_printable():
    assert short("a\nb\tc\x00") == "a↵b→c·"
    assert short("x" * 30) == "x" * 13 + "…"


@pytest.mark.parametrize("hide", [1, 3])
def test_hidden_keys_leave_rows_that_sum_to_one(trace, hide):
    ax = plots.plot_attention(trace, layer=0, head=1, hide=hide)
    drawn = ax.images[0].get_array().filled(0.0)
    rest = trace.map(0, 1)[hide:, hide:]
    assert drawn.shape == (12 - hide, 12 - hide)
    np.testing.assert_allclose(drawn.sum(-1), 1)
    np.testing.assert_allclose(drawn * rest.sum(-1, keepdims=True), rest)
    assert ax.images[0].get_extent()[0] == hide - 0.5, "columns keep their text positions"
    column = ax.images[1]
    np.testing.assert_allclose(column.get_array()[:, 0], trace.map(0, 1)[hide:, :hide].sum(-1))
    assert column.get_extent()[1] < hide - 0.5 and column.norm is ax.images[0].norm
    assert tick_labels(ax.xaxis)[0] == ("<|begin|>" if hide == 1 else "first 3")
    assert title_of(ax).endswith("%, this is the rest")
    assert "share of the rest" in ax.images[0].colorbar.ax.get_ylabel()


def test_hidden_keys_of_a_long_text_are_a_column_in_blocks():
    trace = make_trace(1, 1, 401)
    ax = plots.plot_attention(trace, hide=1)
    drawn = ax.images[1].get_array()[:, 0]
    weights = trace.map(0, 0)
    assert drawn[50] == pytest.approx(weights[151:154, 0].max()) and len(drawn) == 134
    assert tick_labels(ax.xaxis)[0] == "first"


def test_roles_are_marked_where_the_future_is():
    ax = plots.plot_attention(make_trace(1, 1, 12))
    bar, (line,) = ax.patches[-1], ax.lines
    assert (bar.get_x(), bar.get_width()) == (-0.5, 1) and bar.get_y() < 0
    assert to_hex(bar.get_facecolor()) == COLOURS["sink"].lower()
    # Query 7 sees keys 4 to 7 as recent ones: the edge is left of key 4.
    x, y = (np.array(one) for one in line.get_data())
    assert set(x[(y > 6.5) & (y < 7.5)] if len(x[(y > 6.5) & (y < 7.5)]) else {3.5}) == {3.5}
    assert x[list(y).index(6.5) + 1] == 3.5 and line.get_linestyle() == "--"
    assert texts_of(ax) == ["sink (first token)", "recent (last 4)"]
    plain = plots.plot_attention(make_trace(1, 1, 12), roles=False)
    assert not plain.lines and plain.get_legend() is None


def test_a_row_with_nothing_left_stays_empty():
    attention = np.array([[[[1.0, 0.0], [1.0, 0.0]]]])
    trace = dataclasses.replace(make_trace(1, 1, 2), attention=attention)
    assert plots.plot_attention(trace, hide=1).images[0].get_array().tolist() == [[0.0]]


def test_a_long_map_keeps_its_sink_column():
    trace = make_trace(1, 1, 401)
    ax = plots.plot_attention(trace)
    drawn = ax.images[0].get_array()
    weights = trace.map(0, 0)
    assert drawn.shape == (134, 134)
    assert drawn[100, 0] == weights[300:303, :3].max()
    assert drawn[100, 57] == weights[300:303, 171:174].max()
    assert drawn.mask[0, 1] and not drawn.mask[1, 1]
    assert "largest in 3 x 3 tokens" in ax.images[0].colorbar.ax.get_ylabel()


def test_attention_errors_say_what_to_do(trace):
    with pytest.raises(ValueError, match="statistics only; capture.*keep='maps'"):
        plots.plot_attention(statistics(trace))
    with pytest.raises(IndexError, match=r"layer must be in 0\.\.1, got 2"):
        plots.plot_attention(trace, layer=2)
    with pytest.raises(ValueError, match=r"hide must leave a token: 0\.\.11, got 12"):
        plots.plot_attention(trace, hide=12)
    wrong = dataclasses.replace(trace, attention=trace.attention[..., :5])
    with pytest.raises(ValueError, match=r"\(query, key\) = \(12, 12\).*got shape \(12, 5\)"):
        plots.plot_attention(wrong)


def test_errors_leave_no_figure_behind(trace):
    before = plt.get_fignums()
    for draw in (
        lambda: plots.plot_attention(statistics(trace)),
        lambda: plots.plot_mass(trace, over="heads"),
        lambda: plots.plot_nll([]),
        lambda: plots.plot_visibility(Dense(), length=0),
        lambda: plots.grid_attention(statistics(trace)),
        lambda: plots.plot_alibi(0),
    ):
        with pytest.raises(ValueError):
            draw()
    assert plt.get_fignums() == before


def test_grid_of_a_layer_has_a_panel_per_head(trace):
    figure = plots.grid_attention(trace, layer=1)
    panels = [ax for ax in figure.axes if ax.images]
    for head, ax in enumerate(panels):
        np.testing.assert_array_equal(ax.images[0].get_array().filled(0), trace.map(1, head))
        assert title_of(ax) == f"head {head}: {trace.received[1, head, 0] * 100:.0f} %"
    assert len(panels) == 3 and len(figure.axes) == 4, "one colour bar for all"


def test_grid_of_a_model_is_one_mosaic(trace):
    figure = plots.grid_attention(trace)
    (ax,) = figure.axes
    mosaic = ax.images[0].get_array()
    pitch = 12 + 1
    assert mosaic.shape == (2 * pitch - 1, 3 * pitch - 1)
    for layer in range(2):
        for head in range(3):
            tile = mosaic[layer * pitch :, head * pitch :][:12, :12]
            np.testing.assert_array_equal(tile.filled(0), trace.map(layer, head))
    assert mosaic.mask[12].all() and mosaic.mask[:, 12].all()


def test_grid_of_chosen_heads(trace):
    kept = dataclasses.replace(
        trace,
        attention=np.stack([trace.map(0, 1), trace.map(1, 2)])[None],
        heads=((0, 1), (1, 2)),
    )
    titles = [title_of(ax) for ax in plots.grid_attention(kept).axes if ax.images]
    assert [one.split(":")[0] for one in titles] == ["layer 0, head 1", "layer 1, head 2"]
    with pytest.raises(IndexError, match="layer must be"):
        plots.grid_attention(kept, layer=5)
    with pytest.raises(ValueError, match="none of layer 0"):
        plots.grid_attention(dataclasses.replace(kept, heads=((1, 1), (1, 2))), layer=0)


# Shares -----------------------------------------------------------------------------------------


def test_sink_map_holds_the_received_attention(trace):
    ax = plots.plot_sink_map(statistics(trace), key=2)
    mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
    np.testing.assert_array_equal(mesh.get_array().reshape(2, 3), trace.received[..., 2])
    assert texts_of(ax) == [f"{100 * share:.0f}" for share in trace.received[..., 2].flat]
    assert tick_labels(ax.xaxis) == ["0", "1", "2"] and tick_labels(ax.yaxis) == ["0", "1"]


def test_sink_map_counts_and_frames_the_sinks():
    received = np.zeros((2, 2, 3))
    received[..., 0] = [[0.9, 0.31], [0.3, 0.0]]
    trace = dataclasses.replace(make_trace(2, 2, 3), received=received)
    ax = plots.plot_sink_map(trace)
    assert title_of(ax) == "sink rate 50 %: 2 of 4 heads above 0.3"
    frames = ax.collections[-1].get_segments()
    # One inside each of the two cells above 0.3, closed.
    assert [tuple(frame.mean(0).astype(int)) for frame in frames] == [(0, 0), (1, 0)]
    for frame, left in zip(frames, (0, 1), strict=True):
        assert (frame[0] == frame[-1]).all() and np.ptp(frame, axis=0).min() > 0.9
        assert left < frame[:, 0].min() and frame[:, 0].max() < left + 1
    assert "50 %" not in title_of(plots.plot_sink_map(trace, epsilon=0.05))


def test_sink_map_of_a_large_model_has_no_numbers():
    trace = make_trace(1, 1, 2)
    big = dataclasses.replace(trace, received=np.full((32, 40, 2), 0.5))
    ax = plots.plot_sink_map(big)
    assert not ax.texts
    assert len(tick_labels(ax.xaxis)) < 40
    with pytest.raises(IndexError, match=r"key must be a text position in 0\.\.1, got 2"):
        plots.plot_sink_map(big, key=2)
    flat = dataclasses.replace(trace, received=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\(layer, head, key\), got shape \(2, 2\)"):
        plots.plot_sink_map(flat)


@pytest.mark.parametrize("over, axis", [("layers", (1, 2)), ("tokens", (0, 1))])
def test_mass_bars_stack_to_one(over, axis):
    trace = make_trace(null=0.2)
    ax = plots.plot_mass(trace, over=over)
    bars = {box.get_label().split(" ")[0]: box for box in ax.containers}
    assert list(bars) == list(STACK)
    for role, box in bars.items():
        expected = trace.mass_of(role).mean(axis)
        np.testing.assert_allclose([bar.get_height() for bar in box], expected)
    tops = sum(np.array([bar.get_height() for bar in box]) for box in bars.values())
    np.testing.assert_allclose(tops, 1)
    last = bars["null"].patches[0]
    assert last.get_hatch() and last.get_y() + last.get_height() == pytest.approx(1)
    assert to_hex(bars["sink"].patches[0].get_facecolor()) == COLOURS["sink"].lower()


def test_mass_says_what_the_sinks_take():
    one, four = make_trace(), make_trace(n_sink=4)
    share = one.mass_of("sink").mean() * 100
    assert title_of(plots.plot_mass(one)) == f"the first token takes {share:.0f} % of the attention"
    assert title_of(plots.plot_mass(four)).startswith("the first 4 tokens take ")


def test_mass_leaves_absent_roles_out_of_the_legend():
    labels = texts_of(plots.plot_mass(make_trace()))
    assert labels == ["self", "recent (last 4)", "middle", "sink (first token)"]
    assert "null (nowhere)" in texts_of(plots.plot_mass(make_trace(null=0.1)))


def test_mass_of_a_long_text_is_an_area():
    trace = make_trace(length=60)
    ax = plots.plot_mass(trace, over="tokens")
    areas = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert not ax.containers and len(areas) == 4
    top = areas[-1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(1)
    assert "text position" in ax.get_xlabel()


def test_mass_of_few_tokens_is_ticked_with_them():
    ax = plots.plot_mass(make_trace(length=5), over="tokens")
    assert tick_labels(ax.xaxis) == WORDS[:5]


def test_mass_errors_list_what_is_known(trace):
    with pytest.raises(ValueError, match="over must be 'layers' or 'tokens', got 'heads'"):
        plots.plot_mass(trace, over="heads")
    with pytest.raises(ValueError, match=r"\(layer, head, query, role\).*got shape \(2, 3, 12\)"):
        plots.plot_mass(dataclasses.replace(trace, mass=trace.mass[..., 0]))


# Visibility -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [*POLICIES, Window(1), SinkWindow(1, 1)])
def test_visibility_is_the_policy(policy):
    ax = plots.plot_visibility(policy, length=10)
    roles = ax.collections[0].get_array().reshape(10, 10)
    seen = visibility(policy, 10).numpy()
    np.testing.assert_array_equal(roles < 2, seen)
    np.testing.assert_array_equal(roles == 3, np.triu(np.ones((10, 10), bool), 1))
    np.testing.assert_array_equal(roles == 0, seen & (np.arange(10) < policy.n_sink) & (roles != 3))


def test_visibility_colours_are_those_of_the_roles():
    ax = plots.plot_visibility(SinkWindow(2, 3), length=10)
    mesh = ax.collections[0]
    shown = mesh.cmap(mesh.norm(np.arange(4)))
    assert [to_hex(colour) for colour in shown[:2]] == [
        COLOURS["sink"].lower(),
        COLOURS["recent"].lower(),
    ]
    assert shown[2][3] == 0 and ax.patches[0].get_hatch(), "evicted keys are hatched"
    assert to_rgb(shown[3]) != (1, 1, 1)
    assert texts_of(ax) == ["sink", "recent", "evicted", "future"]
    assert texts_of(plots.plot_visibility(Dense())) == ["seen", "future"]


def test_grid_of_policies_has_one_legend():
    figure = plots.grid_visibility([*POLICIES, Window(4)], length=12)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    names = ["Dense", "Window 0+8", "SinkWindow 2+6", "Recompute 8", "Window 0+4"]
    assert [title_of(ax) for ax in shown] == names
    assert len(figure.legends) == 1 and not any(ax.get_legend() for ax in shown)
    with pytest.raises(ValueError, match="no policies to draw"):
        plots.grid_visibility([])


# Runs -------------------------------------------------------------------------------------------


def slow_mean(nll, window, at):
    start = at + 1 - (window or (at + 2) // 2)
    return np.nanmean(nll[max(0, start) : at + 1])


@pytest.mark.parametrize("window", [None, 1, 16, 1000])
def test_nll_curves_arerunning_means(window):
    runs = [make_run(policy, worse=i / 3) for i, policy in enumerate(POLICIES)]
    runs[1].nll[50:60] = np.nan
    ax = plots.plot_nll(runs, window=window)
    for run, line in zip(runs, ax.lines, strict=False):
        position, mean = line.get_data()
        assert len(position) > 180 and position[-1] == 199
        slow = [slow_mean(run.nll, window, at) for at in position]
        np.testing.assert_allclose(mean, slow)
    assert ax.get_xscale() == ("log" if window is None else "linear")
    assert ("half of the text" if window is None else f"last {window} tokens") in title_of(ax)


def test_nll_labels_give_policy_and_perplexity():
    runs = list(map(make_run, POLICIES))
    figure, ax = plt.subplots(figsize=(8, 4.5))
    plots.plot_nll(runs, ax=ax)
    names = ["Dense", "Window 0+8", "SinkWindow 2+6", "Recompute 8"]
    assert [line.get_label() for line in ax.lines[:4]] == names
    for name, run in zip(names, runs, strict=True):
        assert f"{name}: {run.perplexity:.1f}" in texts_of(ax)
    assert "perplexity, whole text" in texts_of(ax)
    figure, ax = plt.subplots(figsize=(3.35, 2.5))
    plots.plot_nll(runs, ax=ax)
    assert f"2+6: {runs[2].perplexity:.1f}" in texts_of(ax)


def test_nll_of_several_models_names_them():
    runs = [make_run(Dense(), model="big"), make_run(Dense(), model="small")]
    ax = plots.plot_nll(runs)
    assert [line.get_label() for line in ax.lines] == ["Dense, big", "Dense, small"]
    first, second = ax.lines
    assert first.get_color() == second.get_color() and first.get_marker() != second.get_marker()


def test_nll_marks_eviction_and_training_length():
    ax = plots.plot_nll([make_run(Window(16)), make_run(Dense())], train_length=64)
    assert [list(line.get_xdata()) for line in ax.lines[2:]] == [[16, 16], [64, 64]]
    assert {"first eviction (16)", "training length (64)"} <= set(texts_of(ax))
    # What is not in the picture is not marked.
    ax = plots.plot_nll([make_run(Window(500)), make_run(Dense())], train_length=4096)
    assert len(ax.lines) == 2


def test_nll_of_a_long_run_is_thinned_and_keeps_both_ends():
    run = make_run(SinkWindow(4, 60), 50_000)
    for window in (None, 64):
        position, mean = plots.plot_nll([run], window=window).lines[0].get_data()
        assert len(position) <= 4000 and position[0] <= 2 and position[-1] == 49_999
        slow = [slow_mean(run.nll, window, at) for at in position[::500]]
        np.testing.assert_allclose(mean[::500], slow)


@pytest.mark.parametrize("length", [2, 3, 9, 10, 17])
@pytest.mark.parametrize("window", [None, 4])
def test_nll_of_a_short_run(length, window):
    ax = plots.plot_nll([make_run(Window(4), length), make_run(Dense(), length)], window=window)
    ax.figure.canvas.draw()
    assert len(ax.lines[0].get_xdata()) == length - 1


def test_nll_takes_one_run_and_rejects_none():
    assert len(plots.plot_nll(make_run(Dense())).lines) == 1
    with pytest.raises(ValueError, match="no runs to draw; give at least one"):
        plots.plot_nll([])
    with pytest.raises(ValueError, match="window must be at least 1 token, got 0"):
        plots.plot_nll([make_run(Dense())], window=0)
    silent = StreamRun(Dense(), np.arange(3), np.full(3, np.nan))
    with pytest.raises(ValueError, match="with a predicted token, got shape .* of Dense"):
        plots.plot_nll([silent])


def test_sink_sizes_are_perplexities_after_eviction():
    policies = [Window(8), *(SinkWindow(n, 8 - n) for n in (4, 1, 2)), Recompute(8)]
    worse = {0: 1.0, 1: 0.2, 2: 0.1, 4: 0.1}
    runs = [make_run(policy, worse=worse[policy.n_sink]) for policy in policies]
    ax = plots.plot_sink_sizes(runs)
    expected = [np.exp(runs[i].mean_nll(8)) for i in (0, 2, 3, 1)]
    assert ax.lines[0].get_xdata().tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert tick_labels(ax.xaxis) == ["0+8", "1+7", "2+6", "4+4"]
    assert (
        title_of(ax) == f"perplexity {expected[0]:.1f} with 0 sinks, {expected[3]:.1f} with 4 sinks"
    )
    assert {f"{value:.1f}" for value in expected} <= set(texts_of(ax))
    assert "perplexity from token 8 on" == ax.get_ylabel()
    reference = next(line for line in ax.lines if line.get_label() == "Recompute 8")
    np.testing.assert_allclose(reference.get_ydata(), np.exp(runs[4].mean_nll(8)))


def test_sink_sizes_name_a_reference_that_is_off_the_scale():
    runs = [make_run(Window(8), worse=0.3), make_run(SinkWindow(2, 6))]
    ax = plots.plot_sink_sizes([*runs, make_run(Dense(), worse=5.0)])
    assert "Dense" not in [line.get_label() for line in ax.lines]
    assert any(text.startswith("Dense: ") and "off scale" in text for text in texts_of(ax))
    assert ax.get_ylim()[1] < 2 * np.exp(runs[0].mean_nll(8))


def test_sink_sizes_of_two_caches_and_several_texts():
    policies = [Window(8), SinkWindow(2, 6), Window(16), SinkWindow(2, 14)]
    runs = [make_run(policy, seed=seed) for policy in policies for seed in (0, 1)]
    ax = plots.plot_sink_sizes(runs, start=50)
    curves = {line.get_label(): line.get_ydata() for line in ax.lines}
    mean = np.mean([run.mean_nll(50) for run in runs[:2]])
    assert curves["cache of 8"][0] == pytest.approx(np.exp(mean))
    assert len(curves["cache of 16"]) == 2 and ax.get_xlabel() == "sinks (tokens)"


def test_sink_sizes_need_a_window():
    with pytest.raises(ValueError, match="no run with a Window or SinkWindow policy"):
        plots.plot_sink_sizes([make_run(Dense())])
    with pytest.raises(ValueError, match="no predicted token in"):
        plots.plot_sink_sizes([make_run(Window(300))])


# ALiBi ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_heads", [1, 6, 8])
def test_alibi_lines_and_matrices_are_the_bias(n_heads):
    ax = plots.plot_alibi(n_heads, length=10)
    slopes = alibi_slopes(n_heads)
    bias = alibi_bias(slopes, torch.arange(10)).numpy()
    assert len(ax.lines) == n_heads
    for line, expected in zip(ax.lines, bias, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), expected)
    figure = plots.grid_alibi(n_heads, length=10)
    panels = [one for one in figure.axes if one.images]
    assert len(panels) == n_heads
    for one, slope in zip(panels, slopes.tolist(), strict=True):
        drawn = one.images[0].get_array()
        assert drawn[9, 0] == pytest.approx(-9 * slope) and drawn[4, 4] == 0
        assert drawn.mask[0, 1] and one.images[0].norm(0.0) == pytest.approx(0.5)


def test_alibi_slopes_are_written_at_the_lines():
    texts = texts_of(plots.plot_alibi(8))
    assert {f"{head}: 1/{2 ** (head + 1)}" for head in range(8)} <= set(texts)
    assert "0: 0.707" in texts_of(plots.plot_alibi(16)) and len(texts_of(plots.plot_alibi(16))) == 9


def test_alibi_errors():
    with pytest.raises(ValueError, match="n_heads must be at least 1"):
        plots.plot_alibi(0)
    with pytest.raises(ValueError, match="length must be at least 2 tokens, got 1"):
        plots.plot_alibi(8, length=1)
    with pytest.raises(ValueError, match="at most 32 for matrices, got 64; use plot_alibi"):
        plots.grid_alibi(64)


# Labels -----------------------------------------------------------------------------------------


def test_labels_keep_apart_in_order_and_inside():
    wanted = np.array([0.99, 0.5, 0.98, 0.97, 0.0, 0.01])
    placed = spread(wanted, 0.1)
    assert (np.diff(np.sort(placed)) >= 0.1 - 1e-9).all()
    assert placed.min() >= 0 and placed.max() <= 1 + 1e-9
    np.testing.assert_array_equal(np.argsort(placed), np.argsort(wanted))
    assert placed[1] == pytest.approx(0.5), "a label with room stays at its curve"
    np.testing.assert_allclose(spread(np.full(5, 0.3), 0.9), np.linspace(0, 1, 5))
