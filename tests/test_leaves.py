"""The rooms that know no model: policies, positions, attention, metrics, records, text."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch

from sinkviz import folding
from sinkviz.attention import banded_attention, null_softmax
from sinkviz.bands import Band
from sinkviz.clock import Clock
from sinkviz.metrics import ROLES, entropy, mass, perplexity, received_attention, sink_rate
from sinkviz.policies import Dense, Recompute, SinkWindow, Window, parse_policy, visibility
from sinkviz.positions import alibi_slopes, rotary_frequencies, rotate, rotation_by, t5_bucket
from sinkviz.records import StreamRun, Trace
from sinkviz.rings import AHEAD, Ring
from sinkviz.text import books, read_text, stories, story_text

POLICIES = [Dense(), Window(5), SinkWindow(2, 3), Recompute(5), Recompute(5, n_begin=0)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_policy_keeps_itself_the_newest_and_at_most_its_size(policy):
    for n in range(1, 40):
        kept = policy.keep(n)
        assert kept == sorted(set(kept))
        assert kept[-1] == n - 1
        assert len(kept) == min(n, policy.cache_size or n)
    seen = visibility(policy, 12)
    assert not seen.triu(1).any()
    assert [row.nonzero()[:, 0].tolist() for row in seen] == [policy.keep(n) for n in range(1, 13)]


def test_window_is_a_sink_window_without_sinks():
    assert Window(6).keep(30) == SinkWindow(0, 6).keep(30)
    assert Recompute(6).keep(30) == SinkWindow(1, 5).keep(30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0), "n_recent must be a whole number of at least 1, got 0"),
        (lambda: SinkWindow(-1, 4), "n_sink must be a whole number of at least 0"),
        (lambda: SinkWindow(4, 0), "the current token itself counts"),
        (lambda: Recompute(1), "at least 2"),
        (lambda: parse_policy("sliding"), "no policy 'sliding'; known are dense"),
        (lambda: parse_policy("4+0"), "at least 1"),
        (lambda: parse_policy("window:x"), "no policy 'window:x'"),
    ],
)
def test_policies_refuse_what_they_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_policies_are_parsed_from_how_they_are_written():
    assert parse_policy(" Dense ") == Dense()
    assert parse_policy("window:9") == parse_policy("0+9") == Window(9)
    assert parse_policy("4+60") == SinkWindow(4, 60)
    assert parse_policy("recompute:64") == Recompute(64)
    assert parse_policy("recompute:0+64") == Recompute(64, n_begin=0)


def test_alibi_slopes_follow_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert len(set(alibi_slopes(12).tolist())) == 12
    assert alibi_slopes(12)[:8].tolist() == alibi_slopes(8).tolist()
    with pytest.raises(ValueError, match="at least 1"):
        alibi_slopes(0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotations_add_up_and_scores_depend_on_distance_alone(interleaved):
    frequencies = rotary_frequencies(8).double()
    q, k = torch.randn(2, 10, dtype=torch.float64)

    def turned(x, by):
        return rotate(x, *rotation_by(by, frequencies), interleaved=interleaved)

    torch.testing.assert_close(turned(turned(q, 5), -3), turned(q, 2))
    torch.testing.assert_close(turned(q, 4_000_007) @ turned(k, 4_000_000), turned(q, 7) @ k)
    assert torch.equal(turned(q, 3)[8:], q[8:])


def test_angles_stay_exact_where_float32_does_not():
    frequencies = rotary_frequencies(32)
    cos, _ = rotation_by(4_000_000, frequencies)
    exact = [math.cos(4_000_000 * float(f)) for f in frequencies.double()]
    assert cos.tolist() == pytest.approx(exact, abs=1e-7)
    naive = (torch.tensor(4_000_000.0) * frequencies).cos()
    assert (naive - torch.tensor(exact)).abs().max() > 1e-3


@pytest.mark.parametrize("moves", [True, False])
def test_slots_and_rotations_computed_ahead_are_those_of_each_step(moves):
    frequencies = rotary_frequencies(8).double()
    ring = Ring(Clock(seen=20), n_sink=2, n_recent=7, frequencies=frequencies, moves=moves)
    # On and on, past what is computed at once; then back, rebased, and far ahead.
    steps = [(seen, 0) for seen in range(20, 20 + 2 * AHEAD)]
    steps += [(30, 0), (31, 9), (4_000_000, 9), (4_000_001, 3_999_980)]
    for ring.clock.seen, ring.clock.base in steps:
        ring.begin(1, torch.device("cpu"))
        assert torch.equal(ring.slot, ring.step.slot)
        cos, sin = rotation_by(ring.step.delta[0, 0], frequencies)
        torch.testing.assert_close(ring.spin, torch.complex(cos, sin), rtol=0, atol=1e-12)


def test_t5_buckets_grow_and_end():
    buckets = t5_bucket(torch.arange(300))
    assert buckets[:16].tolist() == list(range(16))
    assert (buckets.diff() >= 0).all()
    assert buckets.max() == 31
    assert t5_bucket(torch.tensor(-4)) == 0


def test_null_softmax_leaves_a_rest():
    scores = torch.randn(2, 3, 4, 5)
    assert null_softmax(scores).sum(-1) == pytest.approx(1.0)
    null = torch.tensor([0.0, 1.0, -20.0])
    rest = 1 - null_softmax(scores, null).sum(-1)
    expected = null.exp()[:, None] / (scores.exp().sum(-1) + null.exp()[:, None])
    torch.testing.assert_close(rest, expected)


def attend(band: Band, q, k, v, **options):
    module = torch.nn.Identity()
    module.layer_idx = 0
    return banded_attention(module, q, k, v, None, bands={0: band}, scaling=0.3, **options)[0]


def test_a_band_goes_when_its_pass_is_over():
    """Not when garbage is collected: a long text would pile them up."""
    position = torch.arange(40)[None]
    band = Band(position, position, n_sink=2, n_recent=8)
    assert band.folds.hidden.any() and band.folds.mask.isinf().any() and len(band.tiles) == 4
    gone = weakref.ref(band)
    del band
    assert gone() is None


def test_banded_attention_is_attention_where_all_is_visible():
    q, k, v = torch.randn(3, 1, 4, 6, 8)
    position = torch.arange(6)[None]
    ours = attend(Band(position, position), q, k, v)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


@pytest.mark.parametrize("options", [{}, {"s_aux": True}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("padding", [(0,), (0, 3, 41)], ids=str)
@pytest.mark.parametrize("seen", [0, 3, 50])
@pytest.mark.parametrize(("n_sink", "n_recent"), [(0, 5), (2, 5), (4, 40), (0, 1), (3, 1)])
@pytest.mark.parametrize("heads_at_once", [None, 1, 2], ids=["kernel", "one", "two"])
def test_folded_attention_equals_whole_attention(
    n_sink, n_recent, seen, padding, options, heads_at_once, monkeypatch
):
    """A block is folded into groups of queries; in the definition every query meets every key.

    By torch's fused kernel, or in products of matrices, as on a GPU.
    """
    if heads_at_once is not None:
        monkeypatch.setattr(folding, "_fuses", lambda *arguments: False)
        monkeypatch.setattr(folding, "_heads_at_once", lambda device, scores: heads_at_once)
    generator = torch.Generator().manual_seed(0)
    n_query, rows = 75, len(padding)
    query = torch.arange(seen, seen + n_query)[None] - torch.tensor(padding)[:, None]
    n_old = min(n_recent - 1, seen)
    recent = torch.cat((query[:, :1] + torch.arange(-n_old, 0), query), 1)
    sink = torch.arange(n_sink).expand(rows, -1)
    key = torch.cat(
        (sink.masked_fill(sink > query[:, -1:], -1), recent.masked_fill(recent < n_sink, -1)), 1
    )
    angle = torch.rand(rows, n_query, 3, generator=generator, dtype=torch.float64)
    band = Band(query, key, n_sink, n_recent, turn=(angle.cos(), angle.sin()) if n_sink else None)
    q = torch.randn(rows, 4, n_query, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, rows, 2, key.shape[1], 8, generator=generator, dtype=torch.float64)
    if options.get("s_aux"):
        options = {"s_aux": torch.randn(4, generator=generator, dtype=torch.float64)}
    real = (query >= 0)[..., None, None]
    folded = attend(band, q, k, v, **options)
    whole = attend(band, q, k, v, maps=True, **options)
    torch.testing.assert_close(folded * real, whole * real, atol=1e-12, rtol=0)


def causal(n: int, heads: int = 2) -> torch.Tensor:
    scores = torch.randn(heads, n, n).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


def test_metrics_against_loops():
    attention = causal(9)
    received = received_attention(attention)
    for head in range(2):
        for key in range(9):
            column = [float(attention[head, query, key]) for query in range(key, 9)]
            assert float(received[head, key]) == pytest.approx(sum(column) / len(column))
    assert sink_rate(received, epsilon=0.0) == 1.0
    assert sink_rate(received, epsilon=1.0) == 0.0
    shares = mass(attention, n_sink=2, n_recent=3)
    for query in range(9):
        row = attention[0, query]
        assert float(shares["self"][0, query]) == pytest.approx(float(row[query]))
        assert float(shares["sink"][0, query]) == pytest.approx(float(row[: min(2, query)].sum()))
    assert sum(shares[role] for role in ROLES) == pytest.approx(1.0)
    assert entropy(torch.full((1, 7), 1 / 7)).item() == pytest.approx(math.log(7))
    assert perplexity(torch.tensor([math.nan, math.log(3), math.log(3)])) == pytest.approx(3)


FOUR_SINKS = SinkWindow(4, 60)


def run(policy=FOUR_SINKS) -> StreamRun:
    nll = np.array([np.nan, 1.0, 2.0, 3.0], dtype=np.float32)
    return StreamRun(policy=policy, token_ids=np.arange(4), nll=nll, provenance={"model": "m"})


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_records_come_back_from_their_file(policy, tmp_path):
    record = run(policy)
    loaded = StreamRun.load(record.save(tmp_path / "run.safetensors"))
    assert loaded.policy == policy
    assert np.array_equal(loaded.nll, record.nll, equal_nan=True)
    assert loaded.provenance == {"model": "m"}
    assert repr(loaded) == repr(record)
    with pytest.raises(ValueError, match="holds a 'stream_run', expected 'trace'"):
        Trace.load(tmp_path / "run.safetensors")


def test_records_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no record at"):
        StreamRun.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a safetensors file"):
        StreamRun.load(tmp_path / "text")
    with pytest.raises(ValueError, match="the run has 4 tokens"):
        run().mean_nll(10)
    assert run().mean_nll(2) == 2.5


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = run().save(tmp_path / "run.safetensors")
    before = path.read_bytes()

    def full(arrays, partial, metadata):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sinkviz.records.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        run(Window(3)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_stories_are_seeded_and_mention_things_again():
    tales = stories(seed=3)
    first = next(tales)
    assert first == next(stories(seed=3))
    assert first != next(tales)
    names = [word for word in first.split() if word.strip(".,").istitle()]
    assert len(set(names)) < len(names)
    assert len(story_text(5000, seed=1)) >= 5000


def test_text_comes_from_where_it_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("a small text")
    assert read_text(path) == "a small text"
    assert read_text(path, n_characters=7) == "a small"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_text(path)
    path.write_text("  \n")
    with pytest.raises(ValueError, match="holds no text"):
        read_text(path)
    with pytest.raises(FileNotFoundError, match="'stories', 'books:valid'"):
        read_text(tmp_path / "none.txt")
    monkeypatch.setenv("SINKVIZ_BOOKS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="which needs no file"):
        books()
