"""Train the bundled models and record how their sinks are born.

A run writes into one folder: a log, a checkpoint to resume from, and snapshots of growth. Knows
nothing about caches, streaming or plots.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from sinkviz.classroom import ClassroomForCausalLM
from sinkviz.corpus import draw_batch, held_out, prepare, tokenizer_of
from sinkviz.files import write_whole
from sinkviz.metrics import received_attention, sink_rate
from sinkviz.models import quiet
from sinkviz.recipes import Recipe, recipe_of


def probe(model: ClassroomForCausalLM, ids: torch.Tensor) -> dict[str, Any]:
    """Measure loss and sinks on texts, (text, token).

    Returns:
        ``loss`` (nats per token), ``first_token`` (layer x head received attention of the first
        token, queries of the second half only) and ``sink_rate``.
    """
    ids = ids.to(model.device)
    maps: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda *args: maps.append(args[-1][1]))
        for layer in model.model.layers
    ]
    implementation = model.config._attn_implementation
    try:
        model.config._attn_implementation = "eager"
        with torch.no_grad():
            output = model(ids[:, :-1], labels=None)
            loss = torch.nn.functional.cross_entropy(
                output.logits.flatten(0, 1), ids[:, 1:].flatten()
            )
    finally:
        model.config._attn_implementation = implementation
        for hook in hooks:
            hook.remove()
    attention = torch.stack(maps).float().mean(1)
    late = attention[..., attention.shape[-1] // 2 :, :]
    return {
        "loss": round(float(loss), 4),
        "sink_rate": sink_rate(received_attention(attention)),
        "first_token": [[round(x, 4) for x in row] for row in late[..., 0].mean(-1).tolist()],
    }


def _write(tensors: dict[str, torch.Tensor], path: Path, step: int) -> None:
    write_whole(path, lambda partial: save_file(tensors, partial, metadata={"step": str(step)}))


def _fresh(recipe: Recipe) -> ClassroomForCausalLM:
    """Return the untrained model where it will be trained.

    Explicit attention compiles to faster training than the fused kernels, at these sizes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(recipe.seed)
    return ClassroomForCausalLM._from_config(recipe.config, attn_implementation="eager").to(device)


def _loss(
    model: ClassroomForCausalLM, bfloat16: bool | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the loss as a function of (text, token) ids, nats per token."""
    device = model.device.type
    if bfloat16 is None:
        bfloat16 = device == "cuda" or torch.cpu._is_amx_tile_supported()

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
            logits = torch.nn.functional.linear(hidden, model.lm_head.weight)
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    return loss_of


def plan(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return what is left to train, one row per recipe, and how long it would take here.

    The time is that of a few steps taken now, uncompiled; compiled ones are somewhat faster.

    Args:
        folders: of each recipe's run, by the recipe's name.

    Returns:
        Rows with ``recipe``, ``tokens`` (of the whole run), ``done`` (share) and ``minutes``
        (left).

    Raises:
        ValueError: no recipe of that name.
    """
    rows = []
    for name, folder in folders.items():
        recipe = recipe_of(name)
        step, minutes = 0, 0.0
        if (folder / "model").is_dir():
            step = recipe.n_steps
        elif (folder / "checkpoint.safetensors").is_file():
            with safe_open(folder / "checkpoint.safetensors", "pt") as file:
                step = int(file.metadata()["step"])
        if step < recipe.n_steps:
            minutes = (recipe.n_steps - step) * _seconds_per_step(recipe) / 60
        rows.append(
            {
                "recipe": name,
                "tokens": recipe.n_steps * recipe.tokens_per_step,
                "done": step / recipe.n_steps,
                "minutes": minutes,
            }
        )
    return rows


def _seconds_per_step(recipe: Recipe, n_steps: int = 3) -> float:
    model = _fresh(recipe)
    loss_of = _loss(model, None)
    size = (recipe.batch, recipe.config.max_position_embeddings + 1)
    ids = torch.zeros(size, dtype=torch.long, device=model.device)
    loss_of(ids).backward()
    started = time.perf_counter()
    for _ in range(n_steps):
        loss_of(ids).backward()
    return (time.perf_counter() - started) / n_steps


def train(
    name: str,
    folder: str | Path,
    *,
    recipe: Recipe | None = None,
    checkpoint_seconds: float = 300.0,
    bfloat16: bool | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> ClassroomForCausalLM:
    """Train a recipe, or go on where an interrupted run of it stopped.

    Ctrl-C writes a checkpoint before it leaves. ``log.jsonl`` in the folder gets a line per probe
    (log-spaced, at least every 1,000 steps), ``snapshots/`` the weights at log-spaced steps.

    Args:
        name: a key of ``RECIPES``.
        folder: where the run lives.
        recipe: overrides the named one.
        checkpoint_seconds: time between checkpoints.
        bfloat16: compute in bfloat16 with float32 weights; by default where the device is fast
            at it (CUDA, or a CPU with AMX).
        compiled: run the model through ``torch.compile``, which takes half a minute first.
        progress: show a progress bar.

    Returns:
        The trained model in float32.

    Raises:
        ValueError: no recipe of that name.
    """
    recipe = recipe or recipe_of(name)
    folder = Path(folder)
    (folder / "snapshots").mkdir(parents=True, exist_ok=True)
    corpus = prepare(recipe, folder.parent, progress=progress)
    tokens = np.load(corpus / "train.npy", mmap_mode="r")
    unseen = held_out(np.load(corpus / "valid.npy", mmap_mode="r"), recipe)
    model = _fresh(recipe)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        fused=True,
    )
    checkpoint = folder / "checkpoint.safetensors"
    step = _resume(checkpoint, model, optimizer) if checkpoint.exists() else 0

    loss_of = _loss(model, bfloat16)
    loss_of = torch.compile(loss_of) if compiled else loss_of
    wanted = {int(10 ** (i / 8)) for i in range(8, 64)}
    saved, started, running = time.monotonic(), time.monotonic(), math.nan
    bar = tqdm(
        initial=step,
        total=recipe.n_steps,
        desc=name,
        unit="step",
        smoothing=0.02,
        mininterval=10,
        disable=not progress,
    )
    try:
        while step < recipe.n_steps:
            rate, decay = recipe.at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.param_groups[0]["weight_decay"] = decay
            loss = loss_of(draw_batch(tokens, recipe, step).to(model.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            bar.update()
            value = float(loss.detach())
            running = value if math.isnan(running) else 0.98 * running + 0.02 * value
            if step in wanted or step % 1000 == 0 or step == recipe.n_steps:
                line = {
                    "step": step,
                    "tokens": step * recipe.tokens_per_step,
                    "rate": rate,
                    "train_loss": round(running, 4),
                    "seconds": round(time.monotonic() - started, 1),
                    **probe(model, unseen),
                }
                with open(folder / "log.jsonl", "a") as log:
                    log.write(json.dumps(line) + "\n")
                bar.set_postfix(loss=line["loss"], sink_rate=line["sink_rate"])
                if step in wanted:
                    half = {k: v.to(torch.bfloat16) for k, v in _weights(model).items()}
                    _write(half, folder / "snapshots" / f"{step:07d}.safetensors", step)
            if time.monotonic() - saved > checkpoint_seconds:
                _save(checkpoint, model, optimizer, step)
                saved = time.monotonic()
    finally:
        _save(checkpoint, model, optimizer, step)
        bar.close()
    _export(model, tokenizer_of(recipe, corpus), recipe, folder)
    return model.eval()


def _export(model: Any, tokenizer: Any, recipe: Recipe, folder: Path) -> None:
    """Write ``folder/model``: weights in float16, tokenizer, recipe and the record of growth."""
    half = ClassroomForCausalLM(recipe.config)
    half.load_state_dict(model.state_dict())
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with quiet():
            half.half().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
        shutil.copyfile(folder / "log.jsonl", partial / "growth.jsonl")
        shutil.rmtree(folder / "model", ignore_errors=True)
        partial.rename(folder / "model")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _weights(model: ClassroomForCausalLM) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def _save(path: Path, model: ClassroomForCausalLM, optimizer: Any, step: int) -> None:
    names = {p: name for name, p in model.named_parameters()}
    tensors = {f"model.{name}": p for name, p in _weights(model).items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{key}.{names[parameter]}"] = value.clone()
    _write(tensors, path, step)


def _resume(path: Path, model: ClassroomForCausalLM, optimizer: Any) -> int:
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            if f"step.{name}" in tensors:
                optimizer.state[parameter] = {
                    key: tensors[f"{key}.{name}"].to(parameter.device if key != "step" else "cpu")
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
    return int(next(iter(optimizer.state.values()))["step"]) if optimizer.state else 0
