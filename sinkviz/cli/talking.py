"""Commands in which a model writes at the terminal, until Ctrl-C if need be: stream, chat.

They know nothing about how it does so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from sinkviz.cli.inputs import load_model, read_policies
from sinkviz.terminal import (
    INTERRUPTED,
    ONE_POLICY_HELP,
    Json,
    Model,
    Picture,
    Seed,
    State,
    Temperature,
    say,
    show,
    told,
)

if TYPE_CHECKING:
    from sinkviz.models import LM
    from sinkviz.policies import Policy
    from sinkviz.records import Turn
    from sinkviz.streaming import Step


def stream(
    model: Model,
    policy: Annotated[
        str, typer.Option(help=f"What may stay in the cache: {ONE_POLICY_HELP}")
    ] = "4+60",
    prompt: Annotated[str, typer.Option(help="How the text begins.")] = "Once upon a time",
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Stop after so many tokens; 0 goes on until Ctrl-C.")
    ] = 200,
    temperature: Temperature = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample among the k likeliest.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest share p.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.0, help="Above 1: recent tokens become less likely.")
    ] = 1.0,
    seed: Seed = 0,
    state: State = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled",
            help="Run the steps in a compiled graph: faster, after a wait of seconds to minutes. "
            "For 0+64 and 4+60.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Let a model write on and on, under a cache that forgets.

    Compare --policy 4+60 (keeps the first four tokens) with --policy 0+64 (does not).
    Ctrl-C stops it.
    """
    (chosen,) = read_policies(policy, most=1)
    from sinkviz.streaming import stream as stream_text

    lm = load_model(model)
    goes_on = state is not None and state.exists()
    steps = stream_text(
        lm,
        chosen,
        prompt,
        max_new_tokens=max_new_tokens or None,
        state=state,
        compiled=compiled,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    written = _Written(keep=as_json)
    interrupted = False
    # With --json the text is only to watch, and standard output waits for the document.
    out = sys.stderr if as_json else sys.stdout
    try:
        with closing(steps):
            for piece in readable(lm, "" if goes_on else prompt, written.counted(steps)):
                print(piece, end="", flush=True, file=out)
    except KeyboardInterrupt:
        interrupted = True
    print(file=out)
    if as_json:
        names = "position token_id token nll entropy seconds cache_size cache_bytes".split()
        document = {
            "model": lm.name,
            "policy": str(chosen),
            "prompt": None if goes_on else prompt,
            "seed": None if goes_on else seed,
            "text": lm.decode([step.token_id for step in written.steps]),
            "interrupted": interrupted,
            "rows": [{name: getattr(step, name) for name in names} for step in written.steps],
        }
        show(document, "", as_json)
    else:
        n = max(1, written.n_tokens)
        say(
            f"{'stopped after' if interrupted else 'wrote'} {written.n_tokens:,} tokens under "
            f"{chosen}: {written.nll / n:.2f} nats and {1000 * written.seconds / n:.1f} ms per "
            "token",
            style="dim",
        )
    if state is not None:
        say(f"kept in {state}; the same command goes on from there", style="dim")
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def chat(
    model: Model,
    policies: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="LIST",
            help="What may stay in the cache, comma-separated: dense (everything), window and sink "
            "(half the training length, at most 1024), or 0+64, 4+60, 4+60@text, recompute:64, "
            "h2o:32+32, tova:64: see sinkviz score --help.",
        ),
    ] = "dense,window,sink",
    category: Annotated[
        str | None, typer.Option(help="Ask only questions of this kind, such as science.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=0, help="Ask so many questions; 0 goes on until Ctrl-C.")
    ] = 0,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="End an answer after so many tokens.")
    ] = 64,
    temperature: Temperature = 0.7,
    seed: Seed = 0,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Stop a policy whose cache grows larger, such as 200MB; by default half of what "
            "is free.",
        ),
    ] = None,
    figure: Picture = None,
    as_json: Json = False,
) -> None:
    """Ask a model question after question, and never empty its cache.

    Several policies hear the same questions. The nll of a question tells whether the model still
    follows, and the cache what that costs. A policy that runs out of memory stops, and the others
    go on. A model that was not trained to answer, such as the bundled ones, rambles; its nll and
    its memory are as real. Ctrl-C ends the chat.
    """
    _chat_policies(policies, 64)  # a wrong name is told before the model is loaded
    from dataclasses import asdict

    from sinkviz.chatting import chat as chat_on
    from sinkviz.chatting import tidy
    from sinkviz.memory import parse_size
    from sinkviz.plots import grid_chat
    from sinkviz.questions import questions
    from sinkviz.report import save_figure

    asked = questions(category, seed)
    limit = None if memory_limit is None else parse_size(memory_limit)
    lm = load_model(model)
    chosen = _chat_policies(policies, min(1024, (lm.train_length or 2048) // 2))
    alone, interrupted = len(chosen) == 1, False
    turns = chat_on(
        lm,
        chosen,
        asked,
        rounds=rounds or None,
        answer_tokens=answer_tokens,
        temperature=temperature,
        memory_limit=limit,
        live=alone,
        seed=seed,
    )
    done: list[Turn] = []
    try:
        with closing(turns):
            for turn in told(turns, alone, sys.stderr if as_json else sys.stdout):
                done += [turn] * turn.done
    except KeyboardInterrupt:
        interrupted = True
    document = {
        "model": lm.name,
        "seed": seed,
        "interrupted": interrupted,
        "rows": tidy(done),
        "turns": [{**asdict(turn), "policy": str(turn.policy)} for turn in done],
    }
    title = f"{lm.name}; nll in nats per token, late: of the last quarter of the questions"
    show(document, title, as_json)
    if figure is not None and done:
        save_figure(grid_chat(done), figure)
        say(f"drew {figure}")
    if interrupted:
        raise typer.Exit(INTERRUPTED)


class _Written:
    """Sums over a stream, and its steps only where they are asked for: it may go on for ever."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.n_tokens, self.nll, self.seconds = 0, 0.0, 0.0
        self.steps: list[Step] = []

    def counted(self, steps: Iterator[Step]) -> Iterator[Step]:
        """Pass the steps on. Ctrl-C waits until a token is shown, or a file would know more."""
        from sinkviz.binding import uninterrupted

        while True:
            # The first step reads the prompt, which may be long and may be broken off.
            with uninterrupted() if self.n_tokens else nullcontext():
                step = next(steps, None)
                if step is None:
                    return
                self.n_tokens += 1
                self.nll += step.nll
                self.seconds += step.seconds
                self.steps += [step] * self.keep
                yield step


def readable(lm: LM, prompt: str, steps: Iterable[Step]) -> Iterator[str]:
    """Yield the prompt when the first step is there, and the text that each step adds.

    The bytes of a character wait until it is whole.
    """
    ids: list[int] = []
    shown = ""
    for nth, step in enumerate(steps):
        if nth == 0:
            yield prompt
        ids.append(step.token_id)
        text = lm.decode(ids)
        if text.endswith("\ufffd") and len(ids) < 8:
            continue
        yield text[len(shown) :]
        # The last token stays as context: some tokenizers drop a space at the very beginning.
        ids = ids[-1:]
        shown = lm.decode(ids)


def _chat_policies(text: str, size: int) -> list[Policy]:
    """Return the policies of a text in which ``window`` and ``sink`` have a cache of ``size``."""
    n_sink = min(4, size - 1)
    named = {"window": f"0+{size}", "sink": f"{n_sink}+{size - n_sink}"}
    return read_policies(
        ",".join(named.get(part.strip().lower(), part) for part in text.split(","))
    )
