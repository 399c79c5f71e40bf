"""Where models come from: bundled, a folder, or the Hub. A name in, an ``LM`` out.

Knows nothing about what is done with a model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

import sinkviz.classroom  # noqa: F401  (registers the classroom model with the Auto classes)
from sinkviz.families import FAMILIES
from sinkviz.models.lm import LM
from sinkviz.policies import Policy, parse_policy


def assets_folder() -> Path:
    """Return the folder of the bundled models and runs."""
    package = Path(__file__).parent.parent
    inside = package / "assets"
    return inside if inside.is_dir() else package.parent / "assets"


def bundled() -> tuple[str, ...]:
    """Return the names of the bundled models."""
    return tuple(sorted(p.parent.name for p in assets_folder().glob("models/*/config.json")))


def pick_device(device: str = "auto") -> torch.device:
    """Return the named device; ``auto`` is CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def load(
    name: str = "classroom-rope",
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    policy: Policy | str | None = None,
) -> LM:
    """Load a language model and its tokenizer.

    Args:
        name: a bundled model (see ``bundled``), a folder, or a Hub id such as
            ``EleutherAI/pythia-160m``.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: of the weights; by default float32 on a CPU and the checkpoint's own elsewhere.
        policy: what stays in the cache of ``lm.generate``, such as ``4+1020``.

    Returns:
        The model in evaluation mode, with its tokenizer.

    Raises:
        ValueError: there is no such model, it is not causal, or its folder has no safetensors.
        OSError: the Hub cannot be reached.
    """
    place = pick_device(device)
    folder = assets_folder() / "models" / str(name)
    if not folder.is_dir():
        folder = Path(name)
    if folder.is_dir():
        source = str(folder)
        _check_folder(folder)
    elif "/" in str(name) and not str(name).startswith((".", "/", "~")):
        source = str(name)
    else:
        raise ValueError(
            f"no model {str(name)!r}: bundled are {', '.join(bundled()) or 'none'}; otherwise give "
            "a folder that exists or a Hub id such as EleutherAI/pythia-160m"
        )
    try:
        config = AutoConfig.from_pretrained(source)
        # Encoders that can be made decoders say so in a flag, which GPT-NeoX has too, and ignores.
        encoder = config.model_type not in FAMILIES and getattr(config, "is_decoder", None) is False
        causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
        if encoder or not causal:
            raise ValueError(
                f"{name} is a {config.model_type!r} model, which does not predict the next token; "
                "sinkviz needs a causal language model"
            )
        if dtype is None:
            dtype = torch.float32 if place.type == "cpu" else "auto"
        with quiet(folder.is_dir()):
            model, found = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    except OSError as error:
        if folder.is_dir():
            raise
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        raise OSError(
            f"cannot fetch {name!r} from the Hub ({'HF_HUB_OFFLINE=1' if offline else 'network?'});"
            f" check the id and the connection, or use a bundled model: {', '.join(bundled())}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{name} lacks weights of a causal language model, such as {missing[0]}: it was saved "
            "without its head, or as another kind of model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError):
        tokenizer = None
    # A run of `sinkviz train NAME` leaves its model in NAME/model.
    own = folder.resolve().parent if folder.name == "model" else folder
    short = own.name if folder.is_dir() else str(name)
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    return LM(model.to(place).eval(), tokenizer, short, policy)


@contextlib.contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Let transformers show no progress bar meanwhile: a file on disk is read in a moment."""
    shown = logging.is_progress_bar_enabled()
    try:
        if wanted:
            logging.disable_progress_bar()
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: config.json is missing")
    if not list(folder.glob("*.safetensors")):
        others = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no weights at all"
        raise ValueError(
            f"{folder} holds no safetensors file (found {others}); sinkviz loads only safetensors. "
            "Convert it with model.save_pretrained(folder)"
        )
