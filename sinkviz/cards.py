"""Model cards: what a bundled model was trained on, how its sinks grew, and what it does.

Every number in a card comes from the run's own log or from a measurement made while the card is
written. Knows nothing about figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sinkviz.experiments import first_token_sinks, forgetting_from, measure, tidy, x_plus_y
from sinkviz.files import write_whole
from sinkviz.models import LM, load
from sinkviz.policies import Dense, Recompute
from sinkviz.records import StreamRun
from sinkviz.text import books_folder, read_text


def write_card(
    folder: str | Path, *, n_tokens: int = 20_000, text: str | None = None, progress: bool = False
) -> Path:
    """Measure the model in ``folder`` and write its ``card.md``.

    The folder holds what ``sinkviz train`` leaves in ``model/``: weights, tokenizer,
    ``recipe.json`` and ``growth.jsonl``.

    Args:
        folder: of the model.
        n_tokens: tokens to measure on.
        text: what to measure on, see ``sinkviz.text.read_text``; by default held-out books where
            there are any, otherwise stories.
        progress: show progress bars.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: the folder lacks the recipe or the log of the training.
    """
    folder = Path(folder)
    for name in ("recipe.json", "growth.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; train the model with sinkviz train")
    recipe = json.loads((folder / "recipe.json").read_text())
    growth = [json.loads(line) for line in (folder / "growth.jsonl").read_text().splitlines()]
    lm = load(str(folder))
    text = text or ("books:valid" if books_folder() else "stories")
    ids = lm.encode(read_text(text, n_characters=8 * n_tokens))[:n_tokens]
    length = lm.train_length
    runs, refused = _runs(lm, ids, length // 2, progress)
    parts = [
        f"# {lm.name}",
        f"A decoder of {sum(p.numel() for p in lm.model.parameters()) / 1e6:.1f} M parameters "
        f"with {_choices(lm)}. It is made to be looked at, not to be believed: its English "
        "is fluent at a glance and means nothing.",
        "## What it does",
        f"On {len(ids):,} tokens of `{text}`, with caches of {length // 2} tokens, half the "
        f"training length. *nll forgetting* is the mean from token {forgetting_from(runs)} on, "
        "where every limited cache has evicted; *drift* is the last quarter minus the second.",
        _table(tidy(runs), ("policy", "cache", "perplexity", "nll", "nll_forgetting", "drift")),
        *refused,
        _claims(runs),
        "Repeat it with",
        f"```\nsinkviz score {lm.name} --text {text} --tokens {len(ids)} "
        f"--policies {','.join(_spelled(run.policy) for run in runs)}\n```",
        "## Its sinks",
        _sinks(lm, ids),
        "## How it was trained",
        _recipe(lm, recipe, growth),
        "## How the sinks grew",
        "Held-out text, after each step: loss in nats per token; attention on the first token, "
        "averaged over the heads of a layer and over the queries of the second half of the text.",
        _table(_growth_rows(growth)),
        "## Data",
        _data(),
        "## Limits",
        "- The numbers are of this model, this text and these lengths; larger models are hurt "
        "more, or less, by the loss of their sinks.\n"
        "- The model has seen public-domain English of the 19th century, and made-up stories; it "
        "shares their views and their spelling.\n"
        "- Weights: MIT, like the code. No text of the books is in this folder.",
    ]
    path = folder / "card.md"
    page = "\n\n".join(parts) + "\n"
    write_whole(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    return path


def _runs(
    lm: LM, ids: torch.Tensor, size: int, progress: bool
) -> tuple[list[StreamRun], list[str]]:
    """Return the runs that the model can do, and a line on each that it refuses."""
    runs, refused = [], []
    for policy in (Dense(), Recompute(size), *x_plus_y(size)):
        try:
            runs += measure(lm, ids, [policy], progress=progress)
        except ValueError as error:
            refused.append(f"- {policy} is refused: {error}")
    return runs, ["\n".join(refused)] if refused else []


def _claims(runs: Sequence[StreamRun]) -> str:
    """Say what the numbers compare, of the policies that ran."""
    rows = {row["policy"]: row for row in tidy(runs)}
    size = max(run.policy.cache_size or 0 for run in runs)
    sinks, recompute = f"4+{size - 4}", f"recompute {size}"
    base = sinks if sinks in rows else recompute
    named = "four sinks" if base == sinks else "re-computation"
    sentences = {
        f"0+{size}": "The cliff: window attention costs {:+.3f} nats per token against " + named,
        f"1+{size - 1}": "One first token costs {:+.3f} nats against " + named,
        "Dense": "Dense attention past the training length costs {:+.3f} nats against " + named,
        recompute: "Re-computation costs {:+.3f} nats against " + named,
    }
    lines = [
        f"- {sentence.format(rows[policy]['nll_forgetting'] - rows[base]['nll_forgetting'])}."
        for policy, sentence in sentences.items()
        if policy in rows and policy != base
    ]
    drift = rows[base]["drift"]
    return "\n".join([*lines, f"- Drift over the text with {named}: {drift:+.3f} nats."])


def _choices(lm: LM) -> str:
    """Return what sets the model apart, in words."""
    config = lm.model.config
    parts = [f"`{config.position}` positions", f"`{config.softmax}` softmax"]
    if config.gated:
        parts.append("a sigmoid gate on each head")
    if config.n_sink_tokens:
        parts.append(f"{config.n_sink_tokens} learnable sink token in front")
    if config.num_key_value_heads != config.num_attention_heads:
        parts.append(f"{config.num_key_value_heads} heads of keys and values")
    return ", ".join(parts[:-1]) + f" and {parts[-1]}"


def _sinks(lm: LM, ids: torch.Tensor) -> str:
    sinks = first_token_sinks(lm, ids)
    rows = [
        {"layer": layer, **{f"head {h}": f"{float(x):.2f}" for h, x in enumerate(heads)}}
        for layer, heads in enumerate(sinks.received)
    ]
    said = str(sinks)
    return (
        f"{said[0].upper()}{said[1:]}. Mean attention that the first token receives:\n\n"
        + _table(rows)
    )


def _recipe(lm: LM, recipe: dict[str, Any], growth: list[dict[str, Any]]) -> str:
    config, last = lm.model.config, growth[-1]
    first = ", `<|begin|>` first" if recipe["begin_share"] else ", from anywhere in the text"
    phases = "; ".join(
        f"{tokens / 1e6:.4g} M tokens to a learning rate of {rate:g} (weight decay {decay:g})"
        for tokens, rate, decay in recipe["phases"]
    )
    facts = {
        "layers x heads": f"{config.num_hidden_layers} x {config.num_attention_heads}",
        "width": f"{config.hidden_size}, feed-forward {config.intermediate_size}",
        "made with": _choices(lm),
        "vocabulary": f"{config.vocab_size} (byte-level BPE)",
        "training length": f"{config.max_position_embeddings} tokens{first}",
        "steps": f"{last['step']:,} of {recipe['batch']} sequences "
        f"({last['tokens'] / 1e6:.0f} M tokens)",
        "phases": phases,
        "optimiser": f"AdamW {tuple(recipe['betas'])}, first learning rate "
        f"{recipe['learning_rate']:g} after {recipe['warmup_steps']} steps of warm-up, "
        f"gradient norm at most {recipe['clip']:g}",
        "stories in the mixture": f"{recipe['story_tokens']:.0%} of the tokens of the books",
        "seed": recipe["seed"],
    }
    rows = [{"what": name, "value": value} for name, value in facts.items()]
    return f"`sinkviz train {lm.name}` repeats it.\n\n" + _table(rows)


def _growth_rows(growth: list[dict[str, Any]], most: int = 14) -> list[dict[str, Any]]:
    wanted = torch.logspace(1, torch.log10(torch.tensor(growth[-1]["step"])), most).tolist()
    chosen = {min(growth, key=lambda line: abs(line["step"] - step))["step"] for step in wanted}
    return [
        {
            "step": f"{line['step']:,}",
            "M tokens": f"{line['tokens'] / 1e6:.1f}",
            "loss": line["loss"],
            "sink rate": f"{line['sink_rate']:.0%}",
            **{
                f"layer {i}": f"{sum(heads) / len(heads):.2f}"
                for i, heads in enumerate(line["first_token"])
            },
        }
        for line in {line["step"]: line for line in growth}.values()
        if line["step"] in chosen
    ]


def _data() -> str:
    folder = books_folder()
    stories = "Stories come from `sinkviz.text.stories`, endless and seeded."
    if folder is None:
        return stories
    lines = [stories, "Books in the public domain, by their Project Gutenberg number:"]
    for split in ("train", "valid"):
        index = json.loads((folder / f"{split}.index.json").read_text())
        ids = sorted(book["gutenberg_id"] for book in index if book["gutenberg_id"])
        unknown = len(index) - len(ids)
        lines.append(
            f"- {split} ({len(index)} books"
            + (f", {unknown} without a number" if unknown else "")
            + f"): {', '.join(map(str, ids))}"
        )
    return "\n".join([lines[0], "", lines[1], "", *lines[2:]])


def _spelled(policy: Any) -> str:
    return str(policy).lower().replace(" ", ":")


def _table(rows: list[dict[str, Any]], names: Sequence[str] | None = None) -> str:
    names = list(names or rows[0])

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [[name.replace("_", " ") for name in names], ["---"] * len(names)]
    lines += [[cell(row[name]) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
