"""The endless chat: what is asked, what is read, what it costs, and how it ends."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from reference import tiny_classroom
from typer.testing import CliRunner

from sinkviz import chatting, cli
from sinkviz.chatting import chat, tidy
from sinkviz.lanes import Lane
from sinkviz.memory import _left_in_container, free_memory, parse_size, size
from sinkviz.models import LM, load
from sinkviz.plots import grid_chat
from sinkviz.policies import Dense, Recompute, SinkWindow, Window
from sinkviz.questions import CATEGORIES, Question, questions
from sinkviz.records import Turn
from sinkviz.scoring import score
from sinkviz.style import COLOURS, contrast, paper
from sinkviz.terminal import INTERRUPTED

ROOT = Path(__file__).parent.parent
ASKED = ("How deep is the sea?", "Who lost the blue umbrella, and where?", "Why?")
LANES = [Dense(), Window(32), SinkWindow(4, 28)]


@pytest.fixture(scope="module")
def lm() -> LM:
    return load("classroom-rope", device="cpu")


@pytest.fixture
def lanes(monkeypatch) -> dict:
    """Policy -> the tokens that its lane was fed, of the chat that the test begins."""
    fed = {}

    class Recording(Lane):
        def feed(self, ids):
            fed.setdefault(self.policy, []).extend(ids.tolist())
            return super().feed(ids)

    monkeypatch.setattr(chatting, "Lane", Recording)
    return fed


def untimed(turns) -> list[Turn]:
    return [dataclasses.replace(turn, seconds=0.0) for turn in turns]


def bare(text: str) -> str:
    """Leave out what an answer does not show at its ends: spaces, bytes of half a character."""
    return re.sub(r"[\s\ufffd]", "", text)


# Questions ----------------------------------------------------------------------------------------


def test_eight_categories_of_at_least_ten_questions():
    count = Counter(one.category for one in questions())
    assert tuple(count) == CATEGORIES and len(CATEGORIES) == 8
    assert min(count.values()) >= 10 and count.total() >= 80
    texts = [one.text for one in questions()]
    assert len(set(map(str.lower, texts))) == len(texts)
    for text in texts:
        assert text == text.strip() and text[-1] in ".?" and 20 < len(text) < 120


def test_questions_are_chosen_and_shuffled():
    science = questions("science")
    assert {one.category for one in science} == {"science"}
    shuffled = questions("science", seed=1)
    assert shuffled != science and set(shuffled) == set(science)
    assert shuffled == questions("science", seed=1) != questions("science", seed=2)
    with pytest.raises(ValueError, match="no category 'sport'; known are writing, roleplay"):
        questions("sport")


# Memory -------------------------------------------------------------------------------------------


def test_sizes_are_read_as_they_are_written():
    for n_bytes in (1, 999, 5000, 1_200_000, 3 * 10**9, 7 * 10**12):
        assert parse_size(size(n_bytes)) == n_bytes
    for wrong in ("", "MB", "much", "1.2.3 MB", "-5 MB", "0", "5 PB"):
        with pytest.raises(ValueError, match="such as 200MB"):
            parse_size(wrong)


def test_free_memory_is_below_what_the_machine_has():
    assert 10**7 < free_memory() < 10**14


def test_a_container_leaves_what_it_has_not_used(tmp_path):
    (tmp_path / "memory.current").write_text("300\n")
    assert _left_in_container(tmp_path) is None
    for limit, left in (("1000", 700), ("200", 0), ("max", None)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert _left_in_container(tmp_path) == left


MAPPED_APART = """
import ctypes, torch
from sinkviz.memory import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

def mapped_apart(n_bytes):
    before = libc.mallinfo2().e  # bytes in regions that go back to the system when they are freed
    held = torch.empty(n_bytes, dtype=torch.uint8)
    return libc.mallinfo2().e - before

before = mapped_apart(20_000_000)  # and what has that size from now on is not
keep_freed_memory()
print(before, mapped_apart(30_000_000))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_stays_at_hand():
    ran = subprocess.run([sys.executable, "-c", MAPPED_APART], capture_output=True, check=True)
    before, after = (int(word) for word in ran.stdout.split())
    assert before > 20_000_000
    assert after == 0


# What is read -------------------------------------------------------------------------------------


def test_the_chat_is_one_text_with_one_begin_token(lm, lanes):
    turns = list(chat(lm, LANES, ASKED, rounds=4, answer_tokens=12))
    begin = lm.tokenizer.bos_token_id
    for policy in LANES:
        said = [turn for turn in turns if turn.policy == policy]
        assert [turn.question for turn in said] == [*ASKED, ASKED[0]]
        ids = lanes[policy]
        assert ids[0] == begin and ids.count(begin) == 1
        parts = [f"Question: {turn.question}\nAnswer: {turn.answer}" for turn in said]
        written = "\n\n".join(parts)
        assert bare(lm.decode(ids)) == bare(written)
        assert [turn.n_seen for turn in said] == np.cumsum([t.n_tokens for t in said]).tolist()
        assert said[-1].n_seen == len(ids)


def test_a_question_alone_is_read_as_the_tokenizer_reads_it(lm, lanes):
    next(chat(lm, Dense(), "How deep is the sea?", answer_tokens=1, live=True))
    whole = lm.encode("Question: How deep is the sea?\nAnswer:").tolist()
    assert lanes[Dense()] == whole


@pytest.mark.parametrize("policy", [Dense(), SinkWindow(4, 28), Window(32), Recompute(32)], ids=str)
def test_nll_is_that_of_the_whole_text_scored_at_once(lm, lanes, policy):
    turns = list(chat(lm, policy, ASKED, rounds=3, answer_tokens=20, temperature=1.0))
    ids = lanes[policy]
    text = lm.tokenizer.decode(ids)
    ends = [len(lm.tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
    nll = score(lm, ids, policy).nll
    place = 0
    for turn in turns:
        start = place = text.index(turn.question, place)
        stop = start + len(turn.question)
        among = [nll[n] for n in range(1, len(ids)) if ends[n] > start and ends[n - 1] < stop]
        assert turn.question_nll == pytest.approx(np.mean(among), abs=1e-3)
    last = turns[-1]
    frame = lm.tokenizer(f"\n\nQuestion: {last.question}\nAnswer:", add_special_tokens=False)
    answered = last.n_seen - last.n_tokens + len(frame["input_ids"])
    assert last.answer_nll == pytest.approx(nll[answered:].mean(), abs=1e-3)


CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_template(lm: LM, template: str, end: str | None = None) -> LM:
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = template
    if end is not None:
        tokenizer.eos_token = end
    return LM(lm.model, tokenizer, "templated")


def test_a_chat_template_goes_on_where_it_stopped(lm, lanes):
    talks = with_template(lm, CHATML)
    turns = list(chat(talks, Dense(), ASKED, rounds=3, answer_tokens=6))
    messages = []
    for turn in turns:
        messages += [
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        ]
    whole = talks.tokenizer.apply_chat_template(messages, tokenize=False)
    read = talks.tokenizer.decode(lanes[Dense()])
    assert bare(read) == bare(whole).removesuffix("</>"), "the last turn is not closed"
    assert all(math.isfinite(turn.question_nll) for turn in turns)


def test_a_template_that_forgets_answers_begins_anew(lm, lanes):
    last_only = "<{{ messages[-1].content }}>"
    talks = with_template(lm, last_only)
    list(chat(talks, Dense(), ASKED[:2], rounds=2, answer_tokens=1))
    read = talks.tokenizer.decode(lanes[Dense()])
    assert all(f"<{question}>" in read for question in ASKED[:2])


def test_the_end_token_ends_an_answer_and_is_not_read(lm, lanes):
    talks = with_template(lm, CHATML, end=",")
    turns = list(chat(talks, Dense(), ["Go on!"], rounds=6, answer_tokens=40))
    assert min(turn.n_tokens for turn in turns) < 40
    assert talks.tokenizer.eos_token_id not in lanes[Dense()]


def test_without_a_template_an_answer_ends_with_its_line(lm):
    turns = list(chat(lm, SinkWindow(4, 28), ASKED, rounds=12, answer_tokens=40))
    assert any(turn.n_tokens < 40 for turn in turns)
    assert not any("\n" in turn.answer for turn in turns)


# How it goes --------------------------------------------------------------------------------------


def test_the_same_seed_has_the_same_chat_side_by_side_or_alone(lm):
    options = {"rounds": 3, "answer_tokens": 8, "temperature": 1.0}
    together = untimed(chat(lm, LANES, ASKED, seed=5, **options))
    assert together == untimed(chat(lm, LANES, ASKED, seed=5, **options))
    assert [turn.policy for turn in together[:3]] == LANES
    alone = untimed(chat(lm, LANES[2], ASKED, seed=5, **options))
    assert [turn for turn in together if turn.policy == LANES[2]] == alone
    assert alone != untimed(chat(lm, LANES[2], ASKED, seed=6, **options))
    for other in together[:3]:
        assert other.answer == together[0].answer, "nothing is evicted yet"


def test_our_questions_come_in_the_order_of_the_seed_and_without_end(lm, monkeypatch):
    few = (Question("science", "Why?"), Question("science", "How?"))
    monkeypatch.setattr(chatting, "our_questions", lambda seed: few[:: 1 if seed else -1])
    for seed, expected in ((0, "How? Why? How? Why? How?"), (1, "Why? How? Why? How? Why?")):
        turns = islice(chat(lm, SinkWindow(2, 6), answer_tokens=1, seed=seed), 5)
        assert " ".join(turn.question for turn in turns) == expected


def test_live_turns_grow(lm):
    options = {"questions": ASKED, "rounds": 2, "answer_tokens": 10}
    live = untimed(chat(lm, SinkWindow(4, 28), live=True, **options))
    assert untimed(turn for turn in live if turn.done) == untimed(
        chat(lm, SinkWindow(4, 28), **options)
    )
    first = [turn for turn in live if turn.round == 1]
    assert first[0].answer == "" and math.isnan(first[0].answer_nll)
    for before, after in zip(first, first[1:], strict=False):
        assert after.answer.startswith(before.answer) and after.n_seen - before.n_seen in (0, 1)
        assert after.question_nll == first[0].question_nll
    assert [turn.done for turn in first] == [False] * (len(first) - 1) + [True]


def test_dense_grows_and_the_others_do_not(lm):
    turns = list(chat(lm, LANES, ASKED, rounds=6, answer_tokens=16))
    held = {policy: [t.cache_bytes for t in turns if t.policy == policy] for policy in LANES}
    assert held[Dense()][-1] > 3 * held[Dense()][0]
    assert len(set(held[Window(32)])) == len(set(held[SinkWindow(4, 28)])) == 1
    rows = {row["policy"]: row for row in tidy(turns)}
    assert list(rows) == ["Dense", "0+32", "4+28"]
    for policy in LANES:
        lane = [turn for turn in turns if turn.policy == policy]
        row = rows[str(policy)]
        assert row["questions"] == 6 and row["tokens"] == lane[-1].n_seen
        assert row["question_nll"] == pytest.approx(np.mean([t.question_nll for t in lane]))
        assert row["late"] == pytest.approx(np.mean([t.question_nll for t in lane[4:]]))
        assert row["cache_bytes"] == held[policy][-1] and row["ended"] == ""
    assert tidy([]) == []


@pytest.mark.models
def test_only_the_sinks_still_follow_late_in_the_chat(lm):
    policies = [Dense(), Window(64), SinkWindow(4, 60)]
    turns = list(chat(lm, policies, rounds=20, answer_tokens=32))
    dense, window, sink = (row["late"] for row in tidy(turns))
    assert sink < window - 0.8 and sink < dense - 0.8


# How it ends --------------------------------------------------------------------------------------


def test_a_full_lane_stops_and_the_others_go_on(lm, monkeypatch):
    made = {}

    class Watched(Lane):
        def __init__(self, lm, policy):
            super().__init__(lm, policy)
            made[policy] = weakref.ref(self)

    monkeypatch.setattr(chatting, "Lane", Watched)
    chatting_on = chat(lm, LANES, ASKED, rounds=9, answer_tokens=16, memory_limit=600_000)
    turns = []
    for turn in chatting_on:
        turns.append(turn)
        if turn.stopped:
            assert made[Dense()]() is None, "its memory is free while the others go on"
    (last,) = [turn for turn in turns if turn.stopped]
    assert last.policy == Dense() and last.done
    assert last.stopped == (
        f"Dense stopped after {last.n_seen} tokens: its cache has outgrown the limit of 600.0 kB; "
        "0+32 and 4+28 go on"
    )
    count = Counter(turn.policy for turn in turns)
    assert count[Dense()] == last.round < 9
    assert count[Window(32)] == count[SinkWindow(4, 28)] == 9
    assert {row["policy"]: row["ended"] for row in tidy(turns)}["Dense"] == "stopped"


def test_when_all_have_stopped_the_chat_ends(lm):
    turns = list(chat(lm, [Dense(), SinkWindow(4, 28)], ASKED, memory_limit=1000))
    assert [turn.round for turn in turns] == [1, 1]
    assert turns[0].stopped.endswith("limit of 1.0 kB; 4+28 goes on")
    assert turns[1].stopped.endswith("limit of 1.0 kB")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_machine_stops_one_lane(lm, monkeypatch, error):
    class Full(Lane):
        def feed(self, ids):
            if isinstance(self.policy, Dense) and self.seen >= 60:
                raise error
            return super().feed(ids)

    monkeypatch.setattr(chatting, "Lane", Full)
    turns = list(chat(lm, LANES, ASKED, rounds=5, answer_tokens=16))
    (last,) = [turn for turn in turns if turn.stopped]
    assert last.stopped.startswith("Dense stopped after 60 tokens: no memory is left beside its")
    assert turns[-1].round == 5


LITTLE_MEMORY = """
import resource
from pathlib import Path

import sinkviz as sv
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=2048, hidden_size=64, intermediate_size=64, num_hidden_layers=4,
    num_attention_heads=16, head_dim=256, bos_token_id=0, eos_token_id=None,
)
lm = sv.LM(LlamaForCausalLM(config).eval(), sv.load("classroom-rope", device="cpu").tokenizer)
policies = [sv.Dense(), sv.SinkWindow(4, 12)]
list(sv.chat(lm, policies, rounds=1, answer_tokens=2))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 50_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for turn in sv.chat(lm, policies, rounds=9, answer_tokens=64, memory_limit=10**12):
    print(turn.round, turn.policy, turn.stopped)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process this way")
def test_with_little_memory_dense_stops_and_the_sinks_go_on():
    """Fifty megabytes more than a loaded model takes; dense attention writes 131 kB per token."""
    command = [sys.executable, "-c", LITTLE_MEMORY]
    # Many threads share the tiny steps of a small model badly where cores are busy.
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=one, capture_output=True, text=True, timeout=300)
    *_, last = done.stdout.splitlines() or [done.stderr]
    assert last.strip() == "9 4+12", done.stderr
    assert re.search(
        r"Dense stopped after \d+ tokens: no memory is left beside its cache of [\d.]+ MB; "
        r"4\+12 goes on",
        done.stdout,
    )


def test_other_errors_are_not_hidden(lm, monkeypatch):
    class Broken(Lane):
        def feed(self, ids):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(chatting, "Lane", Broken)
    with pytest.raises(RuntimeError, match="illegal"):
        list(chat(lm, Dense(), ASKED))


def test_a_model_that_overflows_stops(lm, monkeypatch):
    class Overflown(Lane):
        def feed(self, ids):
            return super().feed(ids) * (float("nan") if self.seen > 30 else 1)

    monkeypatch.setattr(chatting, "Lane", Overflown)
    for temperature in (0.0, 1.0):
        (turn,) = chat(lm, Window(32), "word " * 30, temperature=temperature)
        assert turn.stopped.endswith(
            "it predicts no numbers any more; load it in float32 or bfloat16"
        )


def test_a_position_table_ends(lm):
    model = tiny_classroom(
        torch.float32, position="learned", vocab_size=2048, max_position_embeddings=70
    ).model
    table = LM(model, lm.tokenizer, "table")
    turns = list(chat(table, [Dense(), Recompute(16)], ASKED, rounds=6, answer_tokens=8))
    (last,) = [turn for turn in turns if turn.stopped]
    assert last.stopped.startswith("Dense stopped after 70 tokens: table has positions for 70")
    assert last.stopped.endswith("; recompute 16 goes on")
    assert turns[-1].round == 6


def state_of(lm: LM) -> tuple:
    gc.collect()  # a cache may hook the model as long as it lives
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
    return lm.model.training, lm.model.config._attn_implementation, hooks, torch.is_grad_enabled()


def test_leaving_and_ctrl_c_leave_the_model_in_order(lm, monkeypatch):
    before = state_of(lm)
    turns = chat(lm, LANES, ASKED, live=True)
    next(turns)
    turns.close()
    assert state_of(lm) == before

    class Interrupted(Lane):
        def feed(self, ids):
            if self.seen == 40:
                # In the middle of a forward pass.
                handle = lm.model.get_output_embeddings().register_forward_hook(interrupt)
                try:
                    return super().feed(ids)
                finally:
                    handle.remove()
            return super().feed(ids)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(chatting, "Lane", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(chat(lm, LANES, ASKED))
    assert state_of(lm) == before


def test_errors_come_before_the_first_turn(lm):
    with pytest.raises(ValueError, match="no tokenizer.*use stream"):
        chat(tiny_classroom(), Dense())
    for policies in ([], [Dense(), Dense()]):
        with pytest.raises(ValueError, match="each only once"):
            chat(lm, policies)
    for name in ("rounds", "answer_tokens", "memory_limit"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            chat(lm, Dense(), **{name: 0})
    for asked in ([], ["Why?", " "]):
        with pytest.raises(ValueError, match="at least one question"):
            chat(lm, Dense(), asked)
    with pytest.raises(ValueError, match="temperature"):
        chat(lm, Dense(), temperature=-1.0)


# The figure ---------------------------------------------------------------------------------------


def made_up(policy, count=12, *, nll=3.0, grows=0, stopped="") -> list[Turn]:
    turns = [
        Turn(policy, n, "?", "!", nll + n % 3, 1.0, 50, 50 * n, 0.1, 40_000 + grows * n)
        for n in range(1, count + 1)
    ]
    return [*turns[:-1], dataclasses.replace(turns[-1], stopped=stopped)]


@pytest.fixture
def turns() -> list[Turn]:
    return [
        *made_up(Dense(), 7, grows=200_000, stopped="Dense stopped"),
        *made_up(Window(64), nll=6.0),
        *made_up(SinkWindow(4, 60)),
    ]


def texts_of(ax) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_figure_shows_what_the_turns_say(turns):
    unfinished = dataclasses.replace(turns[0], round=99, done=False)
    top, below = grid_chat([*turns, unfinished], window=3).axes
    curves = {line.get_label(): line for line in top.lines}
    held = {line.get_label(): line for line in below.lines}
    sink = [turn for turn in turns if turn.policy == SinkWindow(4, 60)]
    nll = [turn.question_nll for turn in sink]
    drawn = curves["SinkWindow 4+60"]
    assert drawn.get_color() == COLOURS["sink"]
    assert drawn.get_xdata().tolist() == list(range(1, 13))
    assert drawn.get_ydata()[-1] == pytest.approx(np.mean(nll[-3:]))
    assert drawn.get_ydata()[0] == nll[0]
    assert held["Dense"].get_ydata().tolist() == [40_000 + 200_000 * n for n in range(1, 8)]
    assert "SinkWindow 4+60: 4.00" in texts_of(top)
    assert "4+60: 40.0 kB, 600 tokens" in texts_of(below)
    assert top.get_xlabel() == "" and below.get_xlabel() == "questions asked"
    assert "nats" in top.get_ylabel() and "bytes" in below.get_ylabel()


def test_a_stopped_policy_ends_with_a_cross(turns):
    top, below = grid_chat(turns).axes
    for ax in (top, below):
        (cross,) = [line for line in ax.lines if line.get_marker() == "X"]
        assert cross.get_xdata() == 7
    assert "Dense stopped" in texts_of(below)
    top, below = grid_chat(turns[7:]).axes
    assert not [line for ax in (top, below) for line in ax.lines if line.get_marker() == "X"]


@pytest.mark.parametrize("sheet", ["default", "dark_background"])
def test_figure_on_any_paper(turns, sheet):
    before = dict(plt.rcParams)
    with plt.style.context(sheet):
        figure = grid_chat(turns)
        figure.canvas.draw()
        for ax in figure.axes:
            for text in [ax.title, *ax.texts]:
                assert contrast(text.get_color(), paper(ax)) > 4.5
    assert dict(plt.rcParams) == before
    box, (wide, high) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < wide + 0.02 and box.y1 < high + 0.02


def test_figure_of_very_little(turns):
    # A lane that stopped before it could predict anything has no curve.
    mute = dataclasses.replace(turns[0], question_nll=math.nan, stopped="full")
    assert len(grid_chat([mute, *turns[7:9]]).axes[0].lines) == 1
    grid_chat(turns[:1]).canvas.draw()
    before = plt.get_fignums()
    for nothing in ([], [mute], [dataclasses.replace(turns[0], done=False)]):
        with pytest.raises(ValueError, match="no question was read to its end"):
            grid_chat(nothing)
    with pytest.raises(ValueError, match="window must be at least 1 question, got 0"):
        grid_chat(turns, window=0)
    assert plt.get_fignums() == before


# The command --------------------------------------------------------------------------------------


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(cli.app, ["chat", *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


BRIEF = ("classroom-rope", "--rounds", "2", "--answer-tokens", "8")


def test_command_shows_policies_side_by_side(tmp_path):
    picture = tmp_path / "chat.svg"
    result = run(*BRIEF, "--memory-limit", "280kB", "--figure", str(picture))
    first, second = (one.text for one in questions(seed=0)[:2])
    out = result.stdout
    assert f"1. {first}" in out and f"2. {second}" in out
    for name in ("Dense", "0+64", "4+60"):
        assert re.search(rf"^{re.escape(name)}: ", out, re.MULTILINE)
    assert re.search(r"question \d\.\d\d nats, \d+ tokens so far, [\d.]+ ms per token, cache", out)
    assert re.search(r"│ Dense +│.* stopped", out) and "question nll" in out
    assert "limit of 280.0 kB; 0+64 and 4+60 go on" in result.stderr
    assert picture.read_text().startswith("<?xml")


def test_command_prints_one_policy_as_it_writes():
    result = run(*BRIEF, "--policy", "sink", "--category", "science")
    same = run(*BRIEF, "--policy", "4+60", "--category", "science", "--json")
    document = json.loads(same.stdout)
    assert document["interrupted"] is False and len(document["turns"]) == 2
    for turn in document["turns"]:
        assert f"{turn['round']}. {turn['question']}\n{turn['answer']}\n" in result.stdout
        assert turn["question"] in [one.text for one in questions("science")]
    assert document["rows"][0]["policy"] == "4+60"
    assert result.stderr == ""


def test_command_says_what_is_wrong_before_it_loads_a_model(tmp_path):
    for arguments, expected in (
        (("--policy", "best"), "no policy 'best'"),
        (("--category", "sport"), "known are writing"),
        (("--memory-limit", "much"), "such as 200MB"),
        (("--policy", "sink"), "no model 'nonsense'"),
    ):
        line = run("nonsense", *arguments, code=1).stderr
        assert line.startswith("error: ") and expected in line and line.count("\n") == 1
    assert ".png" in run("nonsense", "--figure", str(tmp_path / "a.docx"), code=2).output


def test_ctrl_c_ends_the_chat_with_its_table():
    command = [
        sys.executable,
        "-m",
        "sinkviz.cli",
        "chat",
        "classroom-rope",
        "--answer-tokens",
        "4",
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not process.stdout.readline().startswith("    question"):
                assert process.poll() is None
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == INTERRUPTED, err
    assert "Traceback" not in err and "question nll" in out
