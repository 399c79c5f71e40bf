"""Train the bundled models and record how their sinks are born.

A recipe is data. A run writes into one folder: tokens, a log, a checkpoint to resume from, and
snapshots of growth. Knows nothing about caches, streaming or plots.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from sinkviz.classroom import ClassroomConfig, ClassroomForCausalLM
from sinkviz.metrics import received_attention, sink_rate
from sinkviz.records import write_whole
from sinkviz.text import books, books_folder, stories

BEGIN = "<|begin|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run produces.

    ``phases`` is a list of (tokens, learning rate at the end, weight decay of matrices); within a
    phase the learning rate moves linearly from the last one's. ``begin_share`` of the sequences
    start with ``<|begin|>``, the others with whatever token stands there.
    """

    model: dict[str, Any] = field(default_factory=dict)
    phases: tuple[tuple[int, float, float], ...] = ((1_000_000, 3e-3, 0.1),)
    batch: int = 24
    warmup_steps: int = 200
    learning_rate: float = 3e-3
    begin_share: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    story_tokens: float = 0.1
    seed: int = 0

    @property
    def config(self) -> ClassroomConfig:
        """The model's configuration."""
        return ClassroomConfig(**self.model)

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens per optimiser step."""
        return self.batch * self.config.max_position_embeddings

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(tokens for tokens, _, _ in self.phases) // self.tokens_per_step

    def at(self, step: int) -> tuple[float, float]:
        """Return (learning rate, weight decay) of a step."""
        seen = step * self.tokens_per_step
        rate, decay = self.learning_rate, 0.0
        for tokens, end, decay in self.phases:  # noqa: B007  (the last phase's stays)
            if seen < tokens:
                rate += (end - rate) * seen / tokens
                break
            seen, rate = seen - tokens, end
        return rate * min(1.0, (step + 1) / self.warmup_steps), decay


RECIPES: dict[str, Recipe] = {
    "classroom-rope": Recipe(
        model={
            "position": "rope",
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        phases=(
            (12_000_000, 3e-3, 0.1),
            (10_797_312, 2.422e-3, 0.1),
            (1_000_000, 1.2e-3, 0.1),
            (7_404_992, 1.144e-03, 0.1),
            (24_357_888, 9.474e-04, 0.3),
            (1_000_000, 5e-4, 0.1),
            (22_635_968, 3.302e-04, 0.1),
            (5_000_000, 3e-4, 0.1),
            (12_000_000, 2e-5, 0.1),
        ),
    ),
    "smoke": Recipe(
        model={
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 32,
            "vocab_size": 512,
        },
        phases=((10_000, 1e-3, 0.1),),
        batch=4,
    ),
}


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that puts ``<|begin|>`` (id 0) first in every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BEGIN)


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return np.concatenate([np.asarray(one.ids, dtype=np.uint16) for one in encoded])


def prepare(recipe: Recipe, folder: Path) -> PreTrainedTokenizerFast:
    """Write tokenizer and token files of a recipe into ``folder``, unless they are there.

    Without books (see ``sinkviz.text.books_folder``) the corpus is stories alone.
    """
    if (folder / "valid.npy").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    corpora = {"train": [], "valid": []}
    if books_folder() is not None:
        corpora = {split: books(split) for split in corpora}
    source = stories(seed=recipe.seed)
    tales = [next(source) for _ in range(5000)]
    sample = [book[10_000:90_000] for book in corpora["train"]] + tales[:1500]
    tokenizer = train_tokenizer(iter(sample), recipe.config.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    for split, texts in corpora.items():
        parts = [
            _encode(tokenizer, texts[i : i + 16])
            for i in tqdm(range(0, len(texts), 16), desc=f"tokens of {split}", unit="batch")
        ]
        n_story = int(recipe.story_tokens * sum(map(len, parts))) or 300_000
        while n_story > 0:
            batch = [next(source) for _ in range(2000)]
            parts.append(_encode(tokenizer, batch))
            n_story -= len(parts[-1])
        np.save(folder / f"{split}.npy", np.concatenate(parts))
    return tokenizer


def draw_batch(tokens: np.ndarray, recipe: Recipe, step: int) -> torch.Tensor:
    """Return the token ids of one step, (batch, length + 1); a function of seed and step alone."""
    draw = np.random.default_rng((recipe.seed, step))
    length = recipe.config.max_position_embeddings
    starts = draw.integers(0, len(tokens) - length - 1, recipe.batch)
    ids = np.stack([tokens[s : s + length + 1] for s in starts]).astype(np.int64)
    ids[draw.random(recipe.batch) < recipe.begin_share, 0] = recipe.config.bos_token_id
    return torch.from_numpy(ids)


def probe(model: ClassroomForCausalLM, tokens: np.ndarray, n_texts: int = 32) -> dict[str, Any]:
    """Measure loss and sinks on the first ``n_texts`` stretches of ``tokens``.

    Returns:
        ``loss`` (nats per token), ``first_token`` (layer x head received attention of the first
        token, queries of the second half only) and ``sink_rate``.
    """
    length = model.config.max_position_embeddings
    ids = torch.from_numpy(
        tokens[: n_texts * 40 * length].reshape(n_texts, -1)[:, : length + 1].astype(np.int64)
    )
    ids[:, 0] = model.config.bos_token_id
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
    late = attention[..., length // 2 :, :]
    return {
        "loss": round(float(loss), 4),
        "sink_rate": sink_rate(received_attention(attention)),
        "first_token": [[round(x, 4) for x in row] for row in late[..., 0].mean(-1).tolist()],
    }


def _write(tensors: dict[str, torch.Tensor], path: Path, step: int) -> None:
    write_whole(path, lambda partial: save_file(tensors, partial, metadata={"step": str(step)}))


def train(
    name: str,
    folder: str | Path,
    *,
    recipe: Recipe | None = None,
    checkpoint_seconds: float = 300.0,
    bfloat16: bool | None = None,
    compiled: bool = True,
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
        compiled: run the body through ``torch.compile``, which takes half a minute first.

    Returns:
        The trained model in float32.

    Raises:
        ValueError: no recipe of that name.
    """
    if recipe is None:
        if name not in RECIPES:
            raise ValueError(f"no recipe {name!r}; known are {', '.join(RECIPES)}")
        recipe = RECIPES[name]
    folder = Path(folder)
    tokenizer = prepare(recipe, folder)
    tokens = {
        split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in ("train", "valid")
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if bfloat16 is None:
        bfloat16 = device == "cuda" or torch.cpu._is_amx_tile_supported()

    torch.manual_seed(recipe.seed)
    model = ClassroomForCausalLM._from_config(recipe.config, attn_implementation="eager").to(device)
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

    def body(ids: torch.Tensor) -> torch.Tensor:
        return model.model(ids, use_cache=False).last_hidden_state

    body = torch.compile(body) if compiled else body
    wanted = {int(10 ** (i / 8)) for i in range(8, 64)}
    saved, started, running = time.monotonic(), time.monotonic(), math.nan
    progress = tqdm(
        initial=step, total=recipe.n_steps, desc=name, unit="step", smoothing=0.02, mininterval=10
    )
    (folder / "snapshots").mkdir(exist_ok=True)
    try:
        while step < recipe.n_steps:
            rate, decay = recipe.at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.param_groups[0]["weight_decay"] = decay
            ids = draw_batch(tokens["train"], recipe, step).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                logits = torch.nn.functional.linear(body(ids[:, :-1]), model.lm_head.weight)
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten()
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            progress.update()
            value = float(loss.detach())
            running = value if math.isnan(running) else 0.98 * running + 0.02 * value
            if step in wanted or step % 1000 == 0 or step == recipe.n_steps:
                line = {
                    "step": step,
                    "tokens": step * recipe.tokens_per_step,
                    "rate": rate,
                    "train_loss": round(running, 4),
                    "seconds": round(time.monotonic() - started, 1),
                    **probe(model, tokens["valid"]),
                }
                with open(folder / "log.jsonl", "a") as log:
                    log.write(json.dumps(line) + "\n")
                progress.set_postfix(loss=line["loss"], sink_rate=line["sink_rate"])
                if step in wanted:
                    half = {k: v.to(torch.bfloat16) for k, v in _weights(model).items()}
                    _write(half, folder / "snapshots" / f"{step:07d}.safetensors", step)
            if time.monotonic() - saved > checkpoint_seconds:
                _save(checkpoint, model, optimizer, step)
                saved = time.monotonic()
    finally:
        _save(checkpoint, model, optimizer, step)
        progress.close()
    _export(model, tokenizer, recipe, folder)
    return model.eval()


def _export(model: Any, tokenizer: Any, recipe: Recipe, folder: Path) -> None:
    """Write ``folder/model``: weights in float16, tokenizer, recipe and the record of growth."""
    half = ClassroomForCausalLM(recipe.config)
    half.load_state_dict(model.state_dict())
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
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
