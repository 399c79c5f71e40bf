"""A chat without end: question after question, each policy with a cache that is never emptied.

Knows nothing about figures, widgets or the command line.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch

from sinkviz.lanes import Lane
from sinkviz.memory import free_memory, size
from sinkviz.models import LM
from sinkviz.policies import Policy
from sinkviz.questions import Question
from sinkviz.questions import questions as our_questions
from sinkviz.records import Turn
from sinkviz.sampling import Sampler

# Where a template puts the answer that it is shown; what follows is read before the next one.
ANSWER = "~answer~"
# How torch says that a device, or the machine, is full; there is no common class of errors.
NO_MEMORY = re.compile("out of memory|allocate")


def chat(
    lm: LM,
    policies: Policy | Sequence[Policy],
    questions: str | Sequence[Question | str] | None = None,
    *,
    rounds: int | None = None,
    answer_tokens: int = 64,
    temperature: float = 0.7,
    memory_limit: int | None = None,
    live: bool = False,
    seed: int = 0,
    **sampling: Any,
) -> Iterator[Turn]:
    """Ask a model question after question, under several policies side by side.

    A policy's cache goes on from turn to turn and is never emptied: the chat is one long text. Each
    question is read token by token, and its nll tells whether the model still follows. The answers
    go their own ways, with the same seed.

    Questions are put in the words of the tokenizer's chat template, otherwise as ``Question: ...
    Answer:``, and an answer then ends with its line. A model that was not trained to answer writes
    something else; the nll of what it reads and its memory mean what they always mean.

    A policy that runs out of memory or positions stops with a sentence, and the others go on.

    Args:
        lm: the language model, with a tokenizer.
        policies: one lane each.
        questions: one, or several that are asked in this order and again from the first; by
            default all of ``sinkviz.questions``, shuffled with ``seed``.
        rounds: how many questions to ask; None goes on until the caller stops.
        answer_tokens: at most so many tokens per answer.
        temperature: 0 is greedy, see ``sampling.Sampler``.
        memory_limit: largest cache of a policy, bytes; by default half of what is free, shared by
            the policies that keep everything.
        live: also yield each turn while it is being answered, after every token.
        seed: of the order of questions and of the sampling.
        sampling: further options of ``sampling.Sampler``.

    Yields:
        A ``Turn`` per question and policy, in their order. Leave the loop at any time; the model
        stays as it was.

    Raises:
        ValueError: the model has no tokenizer, there is no policy or one is given twice, there is
            no question, or an option is out of range.
    """
    policies = list(policies) if isinstance(policies, Sequence) else [policies]
    questions = [questions] if isinstance(questions, str) else questions
    if lm.tokenizer is None:
        raise ValueError(f"{lm.name} has no tokenizer, so that it cannot be asked; use stream")
    if not policies or len(set(policies)) < len(policies):
        given = ", ".join(map(str, policies)) or "none"
        raise ValueError(f"give at least one policy, and each only once; got {given}")
    least_one = {"rounds": rounds, "answer_tokens": answer_tokens, "memory_limit": memory_limit}
    for name, value in least_one.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    asked = our_questions(seed=seed) if questions is None else questions
    texts = [getattr(question, "text", question).strip() for question in asked]
    if not all(texts) or not texts:
        raise ValueError("give at least one question, and none that is empty")
    if memory_limit is None:
        growing = sum(policy.cache_size is None for policy in policies)
        memory_limit = free_memory(str(lm.device)) // (2 * max(1, growing))
    speakers = {
        policy: _Speaker(
            Lane(lm, policy),
            Sampler(temperature=temperature, seed=seed, **sampling),
            answer_tokens,
            memory_limit,
        )
        for policy in policies
    }
    return _rounds(speakers, cycle(texts), rounds, live)


def tidy(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return a row per policy: what it read and wrote, how well, how fast and in how many bytes.

    ``late`` is the mean nll of the last quarter of its questions.
    """
    rows = []
    for policy in dict.fromkeys(turn.policy for turn in turns):
        lane = [turn for turn in turns if turn.policy == policy and turn.done]
        if not lane:
            continue
        heard = [turn.question_nll for turn in lane]
        n_tokens = sum(turn.n_tokens for turn in lane)
        rows.append(
            {
                "policy": str(policy),
                "questions": len(lane),
                "tokens": lane[-1].n_seen,
                "question_nll": _mean(heard),
                "late": _mean(heard[3 * len(heard) // 4 :]),
                "answer_nll": _mean([turn.answer_nll for turn in lane]),
                "ms_per_token": 1000 * sum(turn.seconds for turn in lane) / max(1, n_tokens),
                "cache_bytes": lane[-1].cache_bytes,
                "ended": "stopped" if lane[-1].stopped else "",
            }
        )
    return rows


def _rounds(
    speakers: dict[Policy, _Speaker], texts: Iterable[str], rounds: int | None, live: bool
) -> Iterator[Turn]:
    for number, text in enumerate(texts, 1):
        for policy in list(speakers):
            for turn in speakers[policy].turn(number, text):
                if turn.stopped:
                    del speakers[policy]
                    turn = replace(turn, stopped=turn.stopped + _rest(list(speakers)))
                if live or turn.done:
                    yield turn
        if number == rounds or not speakers:
            return


def _rest(policies: Sequence[Policy]) -> str:
    names = " and ".join(map(str, policies))
    return f"; {names} {'goes' if len(policies) == 1 else 'go'} on" if policies else ""


class _Speaker:
    """A lane that reads questions and writes answers."""

    def __init__(self, lane: Lane, choose: Sampler, answer_tokens: int, memory_limit: int) -> None:
        self.lane, self.choose = lane, choose
        self.lm, self.policy = lane.lm, lane.policy
        self.answer_tokens, self.memory_limit = answer_tokens, memory_limit
        self.logits: torch.Tensor | None = None
        self.n_seen = self.cache_bytes = 0
        self.recent: deque[int] = deque(maxlen=min(self.policy.cache_size or 1024, 1024))
        self.ends = _end_tokens(self.lm)

    def turn(self, number: int, question: str) -> Iterator[Turn]:
        """Read a question and write its answer; yield the turn as it grows, at last done."""
        begun, spent = self.n_seen, 0.0
        read: list[float] = []
        written: list[float] = []
        answer: list[int] = []

        def state(**more: Any) -> Turn:
            return Turn(
                policy=self.policy,
                round=number,
                question=question,
                # The bytes of a character wait until it is whole.
                answer=self.lm.decode(answer).rstrip("\ufffd").strip(),
                question_nll=_mean(read),
                answer_nll=_mean(written),
                n_tokens=self.n_seen - begun,
                n_seen=self.n_seen,
                seconds=spent,
                cache_bytes=self.cache_bytes,
                **more,
            )

        started = time.perf_counter()
        try:
            for token_id, counts in _question_ids(self.lm, question, first=begun == 0):
                nll = self._take(token_id)
                if counts:
                    read.append(nll)
            while len(answer) < self.answer_tokens:
                spent += time.perf_counter() - started
                yield state(done=False)
                started = time.perf_counter()
                token_id = self.choose(self.logits, self.recent)
                if self._ends(token_id, answer):
                    break
                written.append(self._take(token_id))
                answer.append(token_id)
            reason = ""
        except ValueError as error:
            reason = str(error)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
                raise
            reason = f"no memory is left beside its cache of {size(self.cache_bytes)}"
        spent += time.perf_counter() - started
        stopped = f"{self.policy} stopped after {self.n_seen:,} tokens: {reason}" if reason else ""
        last = state(done=True, stopped=stopped)
        if reason:
            self.lane = self.logits = None  # gives the memory back
            if self.lm.device.type == "cuda":
                torch.cuda.empty_cache()
        yield last

    def _take(self, token_id: int) -> float:
        """Feed a token; return how surprising it was, nats."""
        nll = math.nan
        if self.logits is not None:
            nll = -float(self.logits.float().log_softmax(-1)[token_id])
            if math.isnan(nll):
                raise ValueError("it predicts no numbers any more; load it in float32 or bfloat16")
        self.logits = self.lane.feed(torch.tensor([token_id], device=self.lm.device))
        self.n_seen += 1
        self.recent.append(token_id)
        self.cache_bytes = self.lane.cache_bytes
        if self.cache_bytes > self.memory_limit:
            raise ValueError(f"its cache has outgrown the limit of {size(self.memory_limit)}")
        return nll

    def _ends(self, token_id: int, answer: Sequence[int]) -> bool:
        if token_id in self.ends:
            return True
        # Without a template nothing else says that the turn is over.
        plain = not getattr(self.lm.tokenizer, "chat_template", None)
        new_line = plain and "\n" in self.lm.tokens([token_id])[0]
        return new_line and bool(self.lm.decode(answer).strip())


def _end_tokens(lm: LM) -> set[int]:
    """Return the tokens with which the model ends its turn."""
    known = getattr(lm.model.generation_config, "eos_token_id", None)
    known = known if isinstance(known, list) else [known]
    return {one for one in [*known, lm.tokenizer.eos_token_id] if one is not None}


def _piece(lm: LM, question: str, first: bool) -> str:
    """Return the text before an answer: the end of the last turn, the question, the invitation."""
    if not getattr(lm.tokenizer, "chat_template", None):
        return f"Question: {question}\nAnswer:" if first else f"\n\nQuestion: {question}\nAnswer:"
    asked = [{"role": "user", "content": question}]
    before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]

    def render(messages: list[dict[str, str]]) -> str:
        # Some templates let the model think first, which would fill its few tokens.
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return lm.tokenizer.apply_chat_template(messages, **options)

    # A template that does not show the last answer begins a new chat each time.
    return (not first and render([*before, *asked]).partition(ANSWER)[2]) or render(asked)


def _question_ids(lm: LM, question: str, first: bool) -> list[tuple[int, bool]]:
    """Return the tokens to read before an answer, each with whether it belongs to the question."""
    piece, tokenizer = _piece(lm, question, first), lm.tokenizer
    begin = piece.find(question)
    # Where a tokenizer gives no places, or a template rewrote the question, every token counts.
    placed = tokenizer.is_fast and begin >= 0
    read = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=placed, verbose=False)
    ids = read["input_ids"]
    belongs = [True] * len(ids)
    if placed:
        places = read["offset_mapping"]
        belongs = [stop > begin and start < begin + len(question) for start, stop in places]
    front: list[int] = []
    if first and not getattr(tokenizer, "chat_template", None):
        # The one begin token of the chat; a template writes its own.
        front = lm.encode(piece).tolist()
        front = front[: front.index(ids[0])]
    return [*((one, False) for one in front), *zip(ids, belongs, strict=True)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
