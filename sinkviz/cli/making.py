"""Commands that make a table, a figure or a file: score, report, train, card, grade, bench.

They know nothing about how it is made.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Annotated

import typer

from sinkviz.cli.inputs import load_model, read_ids, read_policies
from sinkviz.terminal import (
    Json,
    Model,
    Picture,
    Policies,
    ReportPolicies,
    Skip,
    Source,
    Tokens,
    in_a_folder,
    say,
    show,
)

POLICIES = "dense,0+64,4+60,recompute:64"


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
    chosen = read_policies(policies)
    from sinkviz.experiments import first_token_sinks, forgetting_from, measure, tidy
    from sinkviz.report import save_nll_figure

    lm = load_model(model)
    ids = read_ids(lm, text, tokens, skip)
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


def report(
    model: Model,
    text: Source = "stories",
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", callback=in_a_folder, help="The HTML file to write."
        ),
    ] = Path("report.html"),
    policies: ReportPolicies = None,
    tokens: Tokens = 4000,
    skip: Skip = 0,
) -> None:
    """Write one HTML file on a model: sink map, mass, the cliff, and the table of caches.

    The file needs no network and no other file; send it, print it, project it.
    """
    chosen = None if policies is None else read_policies(policies)
    from sinkviz.report import write_report

    lm = load_model(model)
    ids = read_ids(lm, text, tokens, skip)
    write_report(lm, ids, output, policies=chosen, progress=sys.stderr.isatty())
    say(f"wrote {output}")


def train(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The recipe; see --list.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where the run lives, and goes on from. [default: runs/NAME]; with --all the "
            "folder above the runs."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Train the whole zoo, what is not done yet.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    as_json: Json = False,
) -> None:
    """Train a classroom model, or go on where a run stopped.

    It says first how long it will take. Ctrl-C is fine: a checkpoint is written, and the same
    command goes on from there.
    """
    from sinkviz import training
    from sinkviz.recipes import RECIPES, ZOO

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
    if name is None and not everything:
        raise typer.BadParameter(f"name a recipe: {', '.join(RECIPES)}")
    if everything:
        folders = {one: (folder or Path("runs")) / one for one in ZOO}
    else:
        folders = {name: folder or Path("runs") / name}
    left = [row for row in training.plan(folders) if row["done"] < 1]
    say(f"{len(left)} to train, about {sum(row['minutes'] for row in left):.0f} minutes here")
    made = []
    for row in left:
        home = folders[row["recipe"]]
        training.train(row["recipe"], home, progress=sys.stderr.isatty())
        say(f"trained; the model is in {home / 'model'}")
        made.append({"recipe": row["recipe"], "model": str(home / "model")})
    if as_json:
        show({"rows": made}, "", as_json)


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


def grade(
    folder: Annotated[Path, typer.Argument(help="Of submitted notebooks, subfolders included.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", callback=in_a_folder, help="The CSV file to write."
        ),
    ] = Path("grades.csv"),
    seconds: Annotated[float, typer.Option(min=1, help="Time limit per notebook.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Run the self-checks of submitted notebooks, and write a CSV of who solved what.

    Only imports and exercise cells are run, each notebook in a process of its own. It is still the
    students' code: grade where nothing can be broken.
    """
    from sinkviz.grading import grade as grade_folder
    from sinkviz.grading import write_csv

    rows = list(grade_folder(folder, seconds=seconds))
    say(f"wrote {write_csv(rows, output)}")
    show({"rows": rows}, f"{len(rows)} exercises", as_json)


def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The benchmark; see --list.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the benchmarks.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Another model than the benchmark's own, where it takes one.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Another number of tokens, where it takes one.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Other tools to compare with, such as bertviz,circuitsvis (widgets)."),
    ] = None,
    compiled: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="Models to compile as well: small (default), all or none (decode).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a benchmark and print its table."""
    from sinkviz.bench import BENCHES, setting

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
    asked = {"model": model, "tokens": tokens, "against": against, "compiled": compiled}
    given = {key: x for key, x in asked.items() if x is not None}
    if unknown := given.keys() - inspect.signature(BENCHES[name]).parameters:
        raise ValueError(f"the benchmark {name} takes no --{min(unknown)}")
    rows = list(BENCHES[name](**given))
    show({"bench": name, "setting": setting(), "rows": rows}, f"{name}: {setting()}", as_json)
