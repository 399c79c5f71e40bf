"""Benchmarks run at a tiny size, and their baselines do what they claim to."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from reference import tiny_classroom, tiny_llama
from typer.testing import CliRunner

from sinkviz.bench import BENCHES, baselines, decode, endless, measure, reading
from sinkviz.bench import capture as capturing
from sinkviz.classroom import ClassroomConfig, ClassroomForCausalLM
from sinkviz.cli import app
from sinkviz.lanes import Lane
from sinkviz.models import LM
from sinkviz.policies import SinkWindow

TINY = measure.Shape("tiny", 64, 2, 2, 64, 300)
IDS = torch.arange(200) * 7 % 61


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch):
    """A bandwidth that takes no time to measure."""
    monkeypatch.setattr(decode, "copy_bandwidth", lambda device: 1e9)


@pytest.fixture
def model(monkeypatch) -> str:
    """A random classroom model that the benchmarks load by name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ClassroomConfig(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        lm = LM(ClassroomForCausalLM(config).eval(), None, "tiny")
    for room in (decode, endless, reading):
        monkeypatch.setattr(room, "load", lambda name: lm)
        if hasattr(room, "story_ids"):
            monkeypatch.setattr(room, "story_ids", lambda lm, n: torch.arange(n) * 7 % 300)
    return "tiny"


def check(rows: list[dict], columns: str, *unknown: str) -> None:
    """Every row has these columns, with positive numbers in them; some may be unknown."""
    assert rows
    for row in rows:
        assert " ".join(row) == columns
        for name, value in row.items():
            if isinstance(value, int | float):
                assert np.isfinite(value) and value >= 0, f"{name} is {value}"
            else:
                assert isinstance(value, str) or name in unknown, f"{name} is {value}"


# The benchmarks ---------------------------------------------------------------------------------


def test_the_command_passes_on_what_a_benchmark_takes(monkeypatch):
    def bench_soak(model="classroom-rope", *, tokens=300_000):
        return [{"model": model, "tokens": tokens}]

    monkeypatch.setattr("sinkviz.bench.BENCHES", {"soak": bench_soak, "slider": lambda: []})
    run = CliRunner().invoke
    document = json.loads(run(app, ["bench", "soak", "--tokens", "7", "--json"]).stdout)
    assert document["rows"] == [{"model": "classroom-rope", "tokens": 7}]
    assert "threads" in document["setting"]
    refused = run(app, ["bench", "slider", "--tokens", "7"])
    assert refused.exit_code == 1 and "slider takes no --tokens" in refused.output


def test_every_benchmark_says_what_it_measures():
    for name, bench in BENCHES.items():
        assert bench.__name__ == f"bench_{name}" and bench.__doc__


def test_cache():
    rows = list(decode.bench_cache(sizes=(16, 32), n_layers=2, n_heads=2, repeat=2))
    check(rows, "cache layer_ms step_ms rebase_ms rotate_all_ms rotate_all_to_ours")
    assert [row["cache"] for row in rows] == [16, 32]
    assert all(row["step_ms"] < 2 * row["layer_ms"] * 2 for row in rows)


DECODE = (
    "model cache ms to_static to_bare rotate_all_to_ours recompute_to_ours bandwidth "
    "compiled_ms compiled_to_static compiled_bandwidth"
)


def test_decode():
    rows = list(decode.bench_decode(sizes=(16, 32), shapes=[TINY], compiled="none", repeat=2))
    check(rows, DECODE, *DECODE.split()[-3:])
    assert [row["cache"] for row in rows] == [16, 32]
    assert {row["model"] for row in rows} == {"tiny"}


def test_decode_compiles_small_models_alone_and_says_what_it_measures(monkeypatch, capsys):
    asked = []
    done = decode._decode(measure.random_lm(TINY), 16, 1e9, False, 1)

    def noted(lm, size, bandwidth, compiles, repeat):
        asked.append((lm.name, compiles, repeat))
        return done

    monkeypatch.setattr(decode, "_decode", noted)
    monkeypatch.setattr(decode, "FEW_PARAMETERS", 100_000)
    wide = measure.Shape("wide", 128, 2, 2, 256, 300)
    for which, expected in (
        ("small", (True, False)),
        ("all", (True, True)),
        ("none", (False,) * 2),
    ):
        asked.clear()
        assert list(decode.bench_decode(sizes=(16,), shapes=[TINY, wide], compiled=which))
        assert asked == [("tiny", expected[0], 15), ("wide", expected[1], 9)]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "tiny, cache of 16 tokens, compiled as well"
    assert said[-1] == "wide, cache of 16 tokens"
    with pytest.raises(ValueError, match="one of small, all, none, got 'some'"):
        list(decode.bench_decode(compiled="some"))


def test_decode_of_a_named_model(model):
    (row,) = decode.bench_decode(model, sizes=(16,), compiled="none", repeat=1)
    check([row], DECODE, *DECODE.split()[-3:])


def test_decode_goes_on_where_nothing_compiles(monkeypatch):
    def refuse(lm):
        def step(cache, ids):
            raise RuntimeError("no C++ compiler")

        return step

    monkeypatch.setattr("sinkviz.lanes.compiled_step", refuse)
    (row,) = decode.bench_decode(sizes=(16,), shapes=[TINY], repeat=1)
    assert row["ms"] > 0 and row["compiled_ms"] is None


def test_decode_takes_the_large_model_where_there_is_room(monkeypatch):
    """Its code path on a CUDA device with memory, with a model that fits here."""
    made = []

    def random_lm(shape, device, dtype):
        made.append((shape.name, device, dtype))
        return measure.random_lm(TINY)

    monkeypatch.setattr(decode, "random_lm", random_lm)
    monkeypatch.setattr(decode, "pick_device", lambda: torch.device("cuda"))
    names = ("random", "random 12 x 12", "random Llama-2-7B")
    expected = [(name, "cuda", torch.bfloat16) for name in names]
    for free, shapes in ((10e9, expected[:2]), (40e9, expected)):
        made.clear()
        monkeypatch.setattr(decode, "free_memory", lambda device, free=free: free)
        assert list(decode.bench_decode(sizes=(16,), compiled="none", repeat=1))
        assert made == shapes


def test_stream(model):
    rows = list(endless.bench_stream(model, read=(1_000, 1_500), jump=4_000_000, repeat=2))
    check(rows, "at_token reached_by ms_per_token to_first cache_bytes")
    assert [row["reached_by"] for row in rows] == ["reading", "reading", "jump"]
    assert rows[0]["at_token"] == 1_000 and 4_000_000 <= rows[2]["at_token"] < 4_000_060
    assert rows[0]["to_first"] == 1 and len({row["cache_bytes"] for row in rows}) == 1


def test_soak(model, monkeypatch):
    monkeypatch.setattr(endless, "YOUNG", 100)
    rows = list(endless.bench_soak(model, tokens=500, every=200))
    columns = "at_token ms_per_token to_young cache_bytes resident_mb nll off"
    check(rows, columns, "resident_mb")
    assert [row["at_token"] for row in rows] == [200, 400, 500]
    assert all(row["off"] < 1e-4 and 4 < row["nll"] < 8 for row in rows)


def test_score(model):
    rows = list(reading.bench_score(model, tokens=300, stepwise=40, memory=False, repeat=1))
    check(rows, "policy parallel_per_s stepwise_per_s ratio")
    assert [row["policy"] for row in rows] == ["0+64", "4+60", "4+252"]


def test_memory_of_scoring(model):
    first, second = reading.peaks_of_scoring(model, "4+12", (100, 1_000))
    assert first is None or 0 < first <= second


@pytest.mark.models
def test_memory_of_scoring_in_a_process_of_its_own():
    (row,) = reading.bench_score(tokens=3000, stepwise=20, policies=["4+60"], repeat=1)
    columns = "policy parallel_per_s stepwise_per_s ratio peak_mb growth_mb returned_mb"
    check([row], columns, "peak_mb", "growth_mb")
    assert row["returned_mb"] == 27_000 * 12 / 1e6
    assert row["growth_mb"] is None or row["growth_mb"] < 20  # logits of it all: 200


def test_slider(model):
    check(list(reading.bench_slider(model)), "policy tokens seconds")


def test_capture():
    rows = list(
        capturing.bench_capture(lengths=(32,), shape=TINY, repeat=1, memory=False, caches=(16,))
    )
    columns = "model tokens what seconds ratio kept_mb"
    check(rows, columns, "kept_mb")
    once = ["forward", "mass", "all", "maps", "output_attentions"]
    assert [row["what"] for row in rows] == [*once, *once, "step", "step captured"]
    by_name = {row["what"]: row["kept_mb"] for row in rows[:5]}
    maps = 4 * TINY.layers * TINY.heads * 32**2 / 1e6
    assert by_name["output_attentions"] == maps
    assert by_name["maps"] > maps and by_name["mass"] < by_name["all"]


def test_memory_of_capture():
    names = ("forward", "all")
    peaks = [capturing.peak_of("llama", 64, name, TINY) for name in names]
    assert all(peak is None or peak >= 0 for peak in peaks)


def test_kept_bytes_are_linear_in_the_text():
    lm = capturing.model_of("llama", TINY)
    kept = [
        capturing.kept_bytes(capturing.calls_of(lm, length)["mass"]()) / length
        for length in (256, 1024)
    ]
    assert kept[1] < 1.05 * kept[0]


# The clock and the arithmetic -------------------------------------------------------------------


def test_calls_take_turns():
    order = []

    def call(name, n):
        return lambda: order.append(name) or n

    times = measure.alternate(3, a=call("a", 1), b=call("b", 2))
    assert order == list("abbaabba")
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_of_the_same_turn():
    """A machine that is twice as slow for a while changes no ratio."""
    busy = np.array([1.0, 2.0, 2.0, 1.0, 1.0])
    assert measure.ratio(3 * busy, busy) == 3
    assert measure.milliseconds(busy) == 1000


def test_steps_count():
    done = []
    assert measure.steps(lambda: done.append(1), 4)() == 4 and len(done) == 4


def test_weights_that_a_step_reads():
    lm = measure.random_lm(TINY)  # untied: of the table of tokens only one row is read
    layer = 4 * 64 * 64 + 3 * 64 * 64 + 2 * 64
    assert measure.weight_bytes(lm) == 4 * (2 * layer + 64 + 300 * 64)
    tied = tiny_classroom()
    size = sum(p.numel() for p in tied.model.parameters())
    assert measure.weight_bytes(tied) == 8 * size


def test_share_of_the_bandwidth():
    lm = measure.random_lm(TINY, dtype=torch.bfloat16)
    n_bytes = measure.weight_bytes(lm)
    assert n_bytes == measure.weight_bytes(measure.random_lm(TINY)) // 2
    assert decode.bandwidth_share(lm, n_bytes, 0.5, 8 * n_bytes) == 0.5
    assert measure.copy_bandwidth("cpu", 2**20) > 1e6


def test_random_models_leave_the_seed_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measure.random_lm(TINY)
    assert torch.equal(torch.rand(2), expected)


def test_story_ids_are_as_many_as_asked():
    """Also where a token is many characters long."""

    def tokenizer(text, verbose):
        return {"input_ids": [1] * (1 + len(text) // 40)}

    assert len(measure.story_ids(LM(tiny_llama().model, tokenizer), 500)) == 500


def test_resident_memory():
    resident, peak = measure.resident_bytes(), measure.peak_bytes()
    assert resident is None or resident > 1e7
    assert peak is None or resident is None or peak > resident / 2


# The baselines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_llama, tiny_classroom])
@pytest.mark.parametrize("n_sink, n_recent", [(4, 12), (0, 16), (1, 3)])
def test_rotating_all_is_the_same_model(make, n_sink, n_recent):
    """The older recipe predicts what ours does, so that only the cost differs."""
    lm = make(torch.float32)
    cache = baselines.rotate_all_cache(lm, n_sink, n_recent)
    lane = Lane(lm, SinkWindow(n_sink, n_recent))
    for token in IDS[:60].split(1):
        older, ours = baselines.rotate_all_step(lm, cache, token), lane.feed(token)
        assert torch.allclose(older, ours, atol=1e-4, rtol=0)
    assert cache.layers[0].keys.shape[2] == n_sink + n_recent


def test_the_bare_cache_sees_its_block_and_the_last_token():
    lm = tiny_llama()
    cache = baselines.bare_cache(lm)
    with torch.no_grad():
        lm.model(IDS[None, :20], past_key_values=cache, use_cache=True)
        found = lm.model(IDS[None, 50:51], past_key_values=cache, use_cache=True).logits[0, 0]
        again = lm.model(IDS[None, 50:51], past_key_values=cache, use_cache=True).logits[0, 0]
        text = torch.cat((IDS[:19], IDS[50:51]))
        expected = lm.model(text[None], use_cache=False).logits[0, -1]
    assert torch.allclose(found, expected, atol=1e-9) and torch.equal(found, again)


# Four million tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [4_000_008, 48, -24])
@pytest.mark.parametrize("make", [tiny_llama, tiny_classroom])
def test_a_jump_changes_no_logit(make, jump):
    """The clock may be moved by whole turns of the ring: the rest of the text reads the same."""
    lm = make(torch.float32)
    here, there = (Lane(lm, SinkWindow(4, 12)) for _ in range(2))
    for lane in (here, there):
        lane.feed(IDS[:50])
    endless.fast_forward(there, jump)
    assert there.seen == there.cache.seen == 50 + jump
    for part in (*IDS[50:90].split(1), IDS[90:130], *IDS[130:150].split(1)):
        assert torch.equal(here.feed(part), there.feed(part))


def test_a_jump_goes_at_least_as_far_as_asked():
    lane = Lane(tiny_llama(), SinkWindow(4, 9))
    lane.feed(IDS[:20])
    endless.fast_forward(lane, 100)
    assert lane.seen == 20 + 108
