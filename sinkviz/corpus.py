"""What the classroom models read: the corpus as token ids, its tokenizer, and batches of it.

Knows recipes; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from sinkviz.files import write_whole
from sinkviz.recipes import Recipe
from sinkviz.text import books, books_folder, stories

BEGIN = "<|begin|>"


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


def tokenizer_of(recipe: Recipe, corpus: Path) -> PreTrainedTokenizerFast:
    """Return the corpus's tokenizer; it puts ``<|begin|>`` first where the recipe's texts do."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(corpus / "tokenizer")
    if not recipe.begin_share:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def prepare(recipe: Recipe, runs: Path, *, progress: bool = False) -> Path:
    """Write tokenizer and token files of a recipe into a folder that alike recipes share.

    Without books (see ``sinkviz.text.books_folder``) the corpus is stories alone.

    Args:
        recipe: says the size of the vocabulary and the share of stories.
        runs: the folder above the runs.
        progress: show a progress bar.

    Returns:
        The corpus's folder, with ``tokenizer/``, ``train.npy`` and ``valid.npy``.
    """
    vocabulary = recipe.config.vocab_size - recipe.config.n_sink_tokens
    folder = runs / f"corpus-{vocabulary}-{recipe.story_tokens:g}"
    if (folder / "valid.npy").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    corpora = {"train": [], "valid": []}
    if books_folder() is not None:
        corpora = {split: books(split) for split in corpora}
    source = stories(seed=0)
    tales = [next(source) for _ in range(5000)]
    sample = [book[10_000:90_000] for book in corpora["train"]] + tales[:1500]
    tokenizer = train_tokenizer(iter(sample), vocabulary)
    tokenizer.save_pretrained(folder / "tokenizer")
    for split, texts in corpora.items():
        batches = [texts[i : i + 16] for i in range(0, len(texts), 16)]
        bar = tqdm(batches, desc=f"tokens of {split}", unit="batch", disable=not progress)
        parts = [_encode(tokenizer, batch) for batch in bar]
        n_story = int(recipe.story_tokens * sum(map(len, parts))) or 300_000
        while n_story > 0:
            batch = [next(source) for _ in range(2000)]
            parts.append(_encode(tokenizer, batch))
            n_story -= len(parts[-1])
        write_whole(folder / f"{split}.npy", lambda partial: _save(partial, parts))  # noqa: B023
    return folder


def _save(path: Path, parts: list[np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.save(file, np.concatenate(parts))


def draw_batch(tokens: np.ndarray, recipe: Recipe, step: int) -> torch.Tensor:
    """Return the token ids of one step, (batch, length + 1); a function of seed and step alone."""
    draw = np.random.default_rng((recipe.seed, step))
    length = recipe.config.max_position_embeddings
    starts = draw.integers(0, len(tokens) - length - 1, recipe.batch)
    ids = np.stack([tokens[s : s + length + 1] for s in starts]).astype(np.int64)
    begins = draw.random(recipe.batch) < recipe.begin_share
    return torch.from_numpy(_with_first_tokens(ids, recipe, begins))


def held_out(tokens: np.ndarray, recipe: Recipe, n_texts: int = 32) -> torch.Tensor:
    """Return stretches of held-out text that begin as the training texts do, (text, length + 1)."""
    length = recipe.config.max_position_embeddings
    stretches = tokens[: n_texts * 40 * length].reshape(n_texts, -1)[:, : length + 1]
    begins = np.full(n_texts, recipe.begin_share > 0)
    return torch.from_numpy(_with_first_tokens(stretches.astype(np.int64), recipe, begins))


def _with_first_tokens(ids: np.ndarray, recipe: Recipe, begins: np.ndarray) -> np.ndarray:
    config = recipe.config
    ids[:, : config.n_sink_tokens] = config.sink_ids
    ids[begins, config.n_sink_tokens] = config.bos_token_id
    return ids
