"""The ``sinkviz`` command: lab, score, stream, chat, report, train, bench.

Reads arguments, calls one function of the package, prints what it returns. Results go to standard
output, everything else to standard error. Heavy imports happen inside the commands, so that
``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkviz.terminal import (
    INTERRUPTED,
    Json,
    Model,
    Picture,
    PlainErrors,
    Policies,
    ReportPolicies,
    Seed,
    Skip,
    Source,
    Temperature,
    Tokens,
    say,
    show,
    told,
)

if TYPE_CHECKING:
    from sinkviz.models import LM
    from sinkviz.policies import Policy
    from sinkviz.records import Turn
    from sinkviz.streaming import Step

POLICIES = "dense,0+64,4+60,recompute:64"

app = typer.Typer(
    cls=PlainErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with **sinkviz lab**. Every command explains itself: **sinkviz score --help**",
)


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(f"sinkviz {version('sinkviz')}")
        raise typer.Exit()
    return wanted


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show Python's traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """See attention sinks in language models, and stream forever by keeping them.

    A language model puts much of its attention on the first few tokens. Throw them out of its
    cache and it falls apart; keep them, and it can write without end.
    """


@app.command()
def lab(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Where your copies of the notebooks go: the current folder by default. In a "
            "checkout of the project they are opened in place instead.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 8888,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser, or only print the URL.")
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace notebooks that you changed (asks first).")
    ] = False,
    jupyter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION",
            help="An option for JupyterLab itself, such as --jupyter=--ServerApp.ip=0.0.0.0",
        ),
    ] = None,
) -> None:
    """Open the course in JupyterLab.

    Your changes are safe: a notebook that you changed is kept, unless you say --fresh and yes.
    """
    from sinkviz import course

    if folder is None and course.is_checkout():
        folder = course.notebooks_folder()
    else:
        folder = folder or Path(".")
        copied = course.copy_course(folder)
        say(f"{len(copied.new)} notebooks copied into {folder.resolve()}")
        if copied.changed:
            names = ", ".join(str(name) for name in copied.changed)
            if not fresh:
                say(f"kept as you left them: {names} (--fresh brings back the originals)")
            elif typer.confirm(f"Replace your changed {names}?", err=True):
                course.copy_course(folder, replace=True)
    raise typer.Exit(course.serve(folder, port=port, browser=browser, options=jupyter or ()))


@app.command()
def score(
    model: Model,
    text: Source = "stories",
    policies: Policies = POLICIES,
    tokens: Tokens = 20_000,
    skip: Skip = 0,
    figure: Picture = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts a text when its cache forgets.

    One row per policy: perplexity and nll (nats per token; lower is better) over the whole text,
    nll of the part where every limited cache has begun to forget, and drift: mean nll of the last
    quarter minus that of the second quarter (near 0: it could go on forever).
    """
    chosen = _policies(policies)
    from sinkviz.experiments import first_token_sinks, forgetting_from, measure, tidy
    from sinkviz.report import save_nll_figure

    lm = _load(model)
    ids = _read(lm, text, tokens, skip)
    runs = measure(lm, ids, chosen, progress=sys.stderr.isatty())
    if figure is not None:
        save_nll_figure(runs, figure, train_length=lm.train_length)
        say(f"drew {figure}")
    forgetting = forgetting_from(runs)
    sinks = first_token_sinks(lm, ids)
    document = {
        "model": lm.name,
        "text": text,
        "tokens": len(ids),
        "forgetting_from": forgetting,
        "sink_rate": sinks.rate,
        "first_token": sinks.received.tolist(),
        "rows": tidy(runs),
        "provenance": runs[0].provenance,
    }
    title = f"{lm.name} on {len(ids):,} tokens of {text}"
    if forgetting is not None:
        title += f"; forgetting begins at token {forgetting:,}"
    show(document, title, as_json)
    if not as_json:
        print(sinks)


@app.command()
def stream(
    model: Model,
    policy: Annotated[
        str, typer.Option(help="What may stay in the cache: dense, 0+64, 4+60, recompute:64.")
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
    as_json: Json = False,
) -> None:
    """Let a model write on and on, under a cache that forgets.

    Compare --policy 4+60 (keeps the first four tokens) with --policy 0+64 (does not).
    Ctrl-C stops it.
    """
    (chosen,) = _policies(policy, most=1)
    from sinkviz.streaming import stream as stream_text

    lm = _load(model)
    steps = stream_text(
        lm,
        chosen,
        prompt,
        max_new_tokens=max_new_tokens or None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    done: list[Step] = []
    interrupted = False
    # With --json the text is only to watch, and standard output waits for the document.
    out = sys.stderr if as_json else sys.stdout
    try:
        with closing(steps):
            for piece in _readable(lm, prompt, steps, done):
                print(piece, end="", flush=True, file=out)
    except KeyboardInterrupt:
        interrupted = True
    print(file=out)
    if as_json:
        names = "position token_id token nll entropy seconds cache_size cache_bytes".split()
        document = {
            "model": lm.name,
            "policy": str(chosen),
            "prompt": prompt,
            "seed": seed,
            "text": lm.decode([step.token_id for step in done]),
            "interrupted": interrupted,
            "rows": [{name: getattr(step, name) for name in names} for step in done],
        }
        show(document, "", as_json)
    else:
        seconds = sum(step.seconds for step in done)
        mean = sum(step.nll for step in done) / max(1, len(done))
        say(
            f"{'stopped after' if interrupted else 'wrote'} {len(done):,} tokens under {chosen}: "
            f"{mean:.2f} nats and {1000 * seconds / max(1, len(done)):.1f} ms per token",
            style="dim",
        )
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def chat(
    model: Model,
    policies: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="LIST",
            help="What may stay in the cache, comma-separated: dense (everything), window and sink "
            "(half the training length, at most 1024), or 0+64, 4+60, recompute:64.",
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
    lm = _load(model)
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


@app.command()
def report(
    model: Model,
    text: Source = "stories",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The HTML file to write.")
    ] = Path("report.html"),
    policies: ReportPolicies = None,
    tokens: Tokens = 4000,
    skip: Skip = 0,
) -> None:
    """Write one HTML file on a model: sink map, mass, the cliff, and the table of caches.

    The file needs no network and no other file; send it, print it, project it.
    """
    chosen = None if policies is None else _policies(policies)
    from sinkviz.report import write_report

    lm = _load(model)
    ids = _read(lm, text, tokens, skip)
    write_report(lm, ids, output, policies=chosen, progress=sys.stderr.isatty())
    say(f"wrote {output}")


@app.command()
def train(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The recipe; see --list.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the run lives, and goes on from. [default: runs/NAME]"),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    as_json: Json = False,
) -> None:
    """Train a classroom model, or go on where a run stopped.

    Ctrl-C is fine: a checkpoint is written first, and the same command goes on from there.
    """
    from sinkviz.training import RECIPES
    from sinkviz.training import train as train_model

    if listing:
        rows = [
            {
                "recipe": recipe,
                "tokens": one.n_steps * one.tokens_per_step,
                "steps": one.n_steps,
                "layers": one.config.num_hidden_layers,
                "heads": one.config.num_attention_heads,
                "positions": one.config.position,
                "softmax": one.config.softmax,
            }
            for recipe, one in RECIPES.items()
        ]
        return show({"rows": rows}, "Recipes", as_json)
    if name is None:
        raise typer.BadParameter(f"name a recipe: {', '.join(RECIPES)}")
    folder = folder or Path("runs") / name
    train_model(name, folder)
    say(f"trained; the model is in {folder / 'model'}")
    if as_json:
        show({"recipe": name, "model": str(folder / "model")}, "", as_json)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="The model's folder, as sinkviz train wrote it.")],
    text: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Measure on this. [default: books:valid, or stories]"),
    ] = None,
    tokens: Tokens = 20_000,
) -> None:
    """Measure a trained model and write its card.md."""
    from sinkviz.cards import write_card

    path = write_card(folder, n_tokens=tokens, text=text, progress=sys.stderr.isatty())
    say(f"wrote {path}")


@app.command()
def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The benchmark; see --list.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the benchmarks.")] = False,
    as_json: Json = False,
) -> None:
    """Run a benchmark and print its table."""
    from sinkviz.bench import BENCHES

    if listing:
        rows = [
            {"bench": bench, "measures": (function.__doc__ or "").split("\n")[0]}
            for bench, function in BENCHES.items()
        ]
        return show({"rows": rows}, "Benchmarks", as_json)
    if name is None:
        raise typer.BadParameter(f"name a benchmark: {', '.join(BENCHES)}")
    if name not in BENCHES:
        raise ValueError(f"no benchmark {name!r}; known are {', '.join(BENCHES)}")
    show({"bench": name, "rows": list(BENCHES[name]())}, name, as_json)


def _policies(text: str, most: int | None = None) -> list[Policy]:
    from sinkviz.policies import parse_policy

    chosen = [parse_policy(part) for part in text.split(",") if part.strip()]
    if not chosen or len(chosen) > (most or len(chosen)):
        raise ValueError(f"expected {most or 'one or more'} policy, got {text!r}; try 4+60")
    return chosen


def _chat_policies(text: str, size: int) -> list[Policy]:
    """Return the policies of a text in which ``window`` and ``sink`` have a cache of ``size``."""
    n_sink = min(4, size - 1)
    named = {"window": f"0+{size}", "sink": f"{n_sink}+{size - n_sink}"}
    return _policies(",".join(named.get(part.strip().lower(), part) for part in text.split(",")))


def _load(name: str) -> LM:
    from transformers.utils import logging

    from sinkviz.models import load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return load(name)


def _read(lm: LM, source: str, n_tokens: int, skip: int) -> Any:
    from sinkviz.text import read_text

    # Eight characters per token is more than any tokenizer needs; the rest is cut off.
    text = read_text(source, n_characters=skip + 8 * n_tokens)[skip:]
    if not text.strip():
        raise ValueError(f"{source} has at most {skip} characters; skip fewer")
    return lm.encode(text)[:n_tokens]


def _readable(lm: LM, prompt: str, steps: Iterable[Step], done: list[Step]) -> Iterator[str]:
    """Yield the prompt and the text that each step adds, and note the step in ``done``.

    The bytes of a character wait until it is whole.
    """
    ids: list[int] = []
    shown = ""
    for step in steps:
        if not done:
            yield prompt
        done.append(step)
        ids.append(step.token_id)
        text = lm.decode(ids)
        if text.endswith("\ufffd") and len(ids) < 8:
            continue
        yield text[len(shown) :]
        # The last token stays as context: some tokenizers drop a space at the very beginning.
        ids = ids[-1:]
        shown = lm.decode(ids)


if __name__ == "__main__":
    app()
