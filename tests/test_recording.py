"""A run of SideBySide that is over: saved, loaded, sought through."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from reference import tiny_classroom

from sinkviz.models import LM
from sinkviz.policies import H2O, Dense, Recompute, SinkWindow, Window
from sinkviz.streaming import compare
from sinkviz.widgets import SideBySide
from sinkviz.widgets import recording as recordings
from sinkviz.widgets.lanes import TAIL
from sinkviz.widgets.recording import Recording

LANES = [Dense(), Window(16), SinkWindow(4, 12), SinkWindow(2, 6, "text"), Recompute(16), H2O(8, 8)]


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_classroom(torch.float32)


def text(n: int = 8) -> torch.Tensor:
    return torch.randint(61, (n,), generator=torch.Generator().manual_seed(3))


def played(lm: LM, n: int = 60, policies=LANES, **options) -> SideBySide:
    lanes = SideBySide(lm, policies, prompt=text(), temperature=1.0, **options)
    lanes.advance(n)
    return lanes


def states(lanes: SideBySide) -> list[dict]:
    """What the front end would draw, but for the number that tells two messages apart."""
    return [dict(state, edition=0) for state in lanes.get_state("tail")["tail"]]


def alike(found: list[dict], expected: list[dict]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, bytes) and name != "evicted":
                value, other[name] = (np.frombuffer(x, "<f4") for x in (value, other[name]))
                np.testing.assert_allclose(value, other[name], rtol=1e-6)
            elif isinstance(value, float):
                assert value == pytest.approx(other[name], rel=1e-5), name
            else:
                assert value == other[name], name


# In Python --------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", [False, True])
def test_a_saved_run_comes_back_as_it_was(lm, tmp_path, capture):
    lanes = played(lm, capture=capture, seed=5)
    path = lanes.save(tmp_path / "run.json")
    again = SideBySide.load(path, speed=50)
    assert (again.recorded, again.length, again.n_tokens, again.finished) == (True, 60, 60, True)
    assert (again.seed, again.reading, again.speed) == (5, False, 50)
    assert repr(again) == repr(lanes) and again.lanes == lanes.lanes
    alike(states(again), states(lanes))
    for run, other in zip(again.runs, lanes.runs, strict=True):
        assert run.policy == other.policy and run.provenance == other.provenance
        np.testing.assert_array_equal(run.token_ids, other.token_ids)
        np.testing.assert_array_equal(run.nll, other.nll)
        assert (run.seconds, run.cache_bytes) == (pytest.approx(other.seconds), other.cache_bytes)
    # Nothing is lost from file to file, to the last digit.
    assert again.save(tmp_path / "copy.json").read_bytes() == path.read_bytes()
    assert len(again.figure().axes) == len(LANES) + 1


def test_the_file_says_what_the_stream_did(lm, tmp_path):
    document = json.loads(played(lm, capture=True).save(tmp_path / "run.json").read_text())
    given = {"prompt": text(), "max_new_tokens": 60, "temperature": 1.0, "seed": 0}
    steps = list(compare(lm, LANES, **given, capture=True))
    assert (document["model"], document["start"]) == ("tiny", 8)
    for index, lane in enumerate(document["lanes"]):
        own = [step[index] for step in steps]
        assert lane["token_ids"][8:] == [step.token_id for step in own]
        assert lane["nll"][:8] == [None] * 8
        assert lane["nll"][8:] == pytest.approx([step.nll for step in own], rel=1e-6)
        assert lane["cache_size"] == [step.cache_size for step in own]
        assert lane["cache_bytes"] == [step.cache_bytes for step in own]
        assert lane["sink"] == pytest.approx([step.mass["sink"] for step in own], rel=1e-6)
        gone = {n: step for step, one in enumerate(own, start=1) for n in one.evicted}
        assert lane["evicted_at"] == [gone.get(n, -1) for n in range(68)]
        assert len(lane["seconds"]) == 60 and min(lane["seconds"]) > 0


@pytest.mark.parametrize("capture", [False, True])
def test_every_step_can_be_sought(lm, tmp_path, capture):
    lanes, seen = SideBySide(lm, LANES, prompt=text(), capture=capture), []
    for _ in range(30):
        lanes.advance(1)
        seen.append(states(lanes))
    again = SideBySide.load(lanes.save(tmp_path / "run.json"))
    for n in (30, 1, 17, 18, 4):
        again.seek(n)
        assert again.n_tokens == n and again.finished == (n == 30) and not again.playing
        alike(states(again), seen[n - 1])
    again.advance(2)
    alike(states(again), seen[5])
    again._on_message(again, {"do": "seek", "to": 99.4}, [])
    assert again.n_tokens == 30
    again._on_message(again, {"do": "seek", "to": "<b>"}, [])
    again.reset()
    assert again.n_tokens == 0 and not again.finished
    with pytest.raises(ValueError, match=r"n must be in 0..30, got 31"):
        again.seek(31)
    with pytest.raises(ValueError, match=r"SideBySide.load\(path\) it to seek"):
        lanes.seek(3)


def test_a_text_that_was_read_comes_back(lm, tmp_path):
    lanes = SideBySide(lm, LANES[:3], text=text(40))
    lanes.advance(100)
    again = SideBySide.load(lanes.save(tmp_path / "run.json"))
    assert again.reading and again.n_tokens == 39
    alike(states(again), states(lanes))


def test_what_was_evicted_just_now_is_told(lm):
    lanes = played(lm, 10, [SinkWindow(4, 8), Dense()])
    for n in (11, 12, 13):
        lanes.advance(1)
        sinks, dense = lanes.get_state("tail")["tail"]
        # What predicts token 7 + n is the one before it, which sees the 8 from n - 1 on.
        gone = n - 2
        assert (sinks["left"], sinks["newest"]) == (1, gone)
        assert [i for i, flag in enumerate(sinks["evicted"]) if flag == 2] == [gone]
        assert [i for i, flag in enumerate(sinks["evicted"]) if flag] == list(range(4, gone + 1))
        assert (dense["left"], dense["newest"]) == (0, None) and not any(dense["evicted"])


def test_the_button_saves_to_a_new_file_and_says_where(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lanes = played(lm, 5)
    for n in (1, 2):
        lanes._on_message(lanes, {"do": "save"}, [])
        assert lanes.notice == f"Saved to side-by-side-{n}.json."
    assert Recording.load("side-by-side-2.json").name == "tiny"
    lanes.advance(1)
    assert lanes.notice == ""

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(recordings, "write_whole", full)
    lanes._on_message(lanes, {"do": "save"}, [])
    assert lanes.error == "no space left on device." and lanes.notice == ""


def test_a_file_is_whole_or_not_there(lm, tmp_path, monkeypatch):
    lanes = SideBySide(lm, LANES, prompt=text())
    for act in (lambda: lanes.save(tmp_path / "run.json"), lambda: lanes.to_html(tmp_path / "x")):
        with pytest.raises(ValueError, match=r"nothing to record yet; play, or call adv"):
            act()
    lanes.advance(3)
    with pytest.raises(OSError, match="No such file"):
        lanes.save(tmp_path / "missing" / "run.json")
    monkeypatch.setattr(recordings, "MOST_STEPS", 2)
    with pytest.raises(ValueError, match=r"1 to 2 steps, this run has 3; .* runs\[0\].save"):
        lanes.save(tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


WRONG = [
    (lambda d: d.update(kind="x"), "it says 'x', version 1"),
    (lambda d: d.pop("seed"), "no 'seed' in it"),
    (lambda d: d.update(lanes=[]), "one number of steps"),
    (lambda d: d.update(start=0), "begins after 0 of 11 tokens"),
    (lambda d: d["lanes"][0].update(policy="nine"), "no policy 'nine'"),
    (lambda d: d["lanes"][0]["nll"].pop(), "nll has 10 numbers for 11"),
    (lambda d: d["lanes"][0]["seconds"].append(1), "seconds has 4 numbers for 3"),
    (lambda d: d["lanes"][0]["token_ids"].__setitem__(0, "x"), "invalid literal"),
    (lambda d: d["lanes"][0]["token_ids"].__setitem__(0, 2**80), "int too"),
    (lambda d: d["lanes"][1]["evicted_at"].__setitem__(0, 4), "token 0 is evicted at step 4 of 3"),
    (lambda d: d["lanes"][1]["evicted_at"].__setitem__(9, 1), "token 9 is evicted at step 1 of 3"),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[said for _, said in WRONG])
def test_files_that_are_none_are_refused(lm, tmp_path, spoil, said):
    path = played(lm, 3, LANES[:2]).save(tmp_path / "run.json")
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="is no recording of SideBySide") as refused:
        SideBySide.load(path)
    assert said in str(refused.value)


def test_no_file_and_no_json_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recording at"):
        SideBySide.load(tmp_path / "none.json")
    for content in (b"{", b"[]", b"\xff\xfe", b"null"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ValueError, match="is no recording of SideBySide"):
            SideBySide.load(tmp_path / "bad.json")


def test_numbers_that_are_none_and_infinite_come_back(lm, tmp_path):
    lanes = played(lm, 3, LANES[:1])
    lanes._records[0].nll[-1] = math.inf
    path = lanes.save(tmp_path / "run.json")
    nll = SideBySide.load(path).runs[0].nll
    assert np.isnan(nll[:8]).all() and np.isinf(nll[-1]) and np.isfinite(nll[8:-1]).all()


def test_a_page_carries_no_more_than_was_asked_for(lm, tmp_path):
    lanes = SideBySide(lm, LANES[1:3], prompt=text(), max_new_tokens=None)
    lanes.advance(300)
    whole, cut = lanes.page_state(), lanes.page_state(last=50)
    assert (whole["before"], cut["before"], cut["length"]) == (0, 250, 300)
    for page, n in ((whole, 301), (cut, 51)):
        for lane in page["recording"]:
            assert {len(values) for values in lane["series"].values()} == {4 * n}
            assert len(lane["tokens"]) == 308 - lane["first"] <= n + TAIL + 7
    sizes = [lanes.to_html(tmp_path / "page.html", last=n).stat().st_size for n in (300, 50)]
    assert sizes[1] < sizes[0] < 100_000
    with pytest.raises(ValueError, match="last must be at least 1 token"):
        lanes.to_html(tmp_path / "none.html", last=0)
