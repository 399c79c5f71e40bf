"""Random tiny models of every family, and exact double precision for them.

``ZOO[name]()`` is an ``LM`` without a tokenizer, weights in float64, attention far from uniform.
Transformers casts to float32 in many places whatever the weights are, so compare within
``zoo_model(name)``, which computes in float64 throughout; ``zoo_float32(name)`` has the same
weights as an ordinary float32 model. Knows nothing about policies and caches.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import torch
import transformers
from reference import tiny_classroom
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sinkviz.models import LM

COMMON = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = {"num_key_value_heads": 2}
# Heads of 16 coordinates although 64 / 4 is 16 anyway: these families do not derive it.
WIDE = GROUPED | {"head_dim": 16}
SLIDING = {
    "num_hidden_layers": 3,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


def _tiny(name: str, family: str, **options: object) -> LM:
    """Return a random model of a family; ``family`` is its prefix in transformers."""
    config = getattr(transformers, options.pop("config", f"{family}Config"))
    causal = getattr(transformers, options.pop("model", f"{family}ForCausalLM"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = causal(config(**COMMON | options))
        with torch.no_grad():
            # Norms start at one and biases at zero, where mistakes do not show. Normed queries and
            # keys of length one would see everything about evenly: they are made twice as long.
            for path, parameter in model.named_parameters():
                between = re.search(r"\b[qk]_(layer)?norm", path) is not None
                if between or parameter.ndim == 1:
                    noise = 1.0 if path.endswith("sinks") else 0.2
                    parameter += noise * torch.randn_like(parameter) + between
    return LM(model.double().eval(), None, name)


def _scaled(rope_type: str, **options: float) -> dict:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10_000.0} | options}


LLAMA3 = _scaled(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = _scaled("yarn", factor=4.0, original_max_position_embeddings=64)
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
}
EXPERTS = {"num_experts_per_tok": 2}

_TRANSFORMERS: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", GROUPED),
    "llama-llama3": ("Llama", GROUPED | LLAMA3),
    "llama-yarn": ("Llama", GROUPED | YARN),
    "llama-linear": ("Llama", GROUPED | _scaled("linear", factor=4.0)),
    "mistral": ("Mistral", GROUPED | {"sliding_window": None}),
    "mixtral": ("Mixtral", GROUPED | EXPERTS | {"num_local_experts": 4}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", WIDE),
    "qwen3_moe": ("Qwen3Moe", WIDE | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32}),
    "gemma": ("Gemma", WIDE),
    "gemma2": (
        "Gemma2",
        WIDE | SLIDING | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 10.0},
    ),
    "gemma3_text": (
        "Gemma3",
        WIDE
        | SLIDING
        | {"query_pre_attn_scalar": 16, "rope_parameters": GEMMA3_ROPE}
        | {"config": "Gemma3TextConfig"},
    ),
    "phi": ("Phi", GROUPED | {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", GROUPED | {"sliding_window": None, "original_max_position_embeddings": 256}),
    "olmo2": ("Olmo2", GROUPED),
    "stablelm": ("StableLm", GROUPED | {"partial_rotary_factor": 0.25, "qk_layernorm": True}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.25}),
    "gptj": ("GPTJ", {"rotary_dim": 8}),
    "codegen": ("CodeGen", {"rotary_dim": 8}),
    "cohere": ("Cohere", GROUPED | {"logit_scale": 1.0, "use_qk_norm": True}),
    "cohere2": ("Cohere2", GROUPED | SLIDING | {"logit_scale": 1.0, "head_dim": 16}),
    "falcon-rope": ("Falcon", {"alibi": False}),
    "falcon-alibi": ("Falcon", {"alibi": True, "multi_query": False}),
    "falcon-new": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("Mpt", {"max_seq_len": 256}),
    "bloom": ("Bloom", {}),
    "gpt_oss": (
        "GptOss",
        WIDE | SLIDING | EXPERTS | YARN | {"num_local_experts": 4, "intermediate_size": 32},
    ),
    "gpt2": ("GPT2", {"model": "GPT2LMHeadModel"}),
    "opt": ("OPT", {"init_std": 0.3, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "starcoder2": ("Starcoder2", GROUPED | {"sliding_window": None}),
    "smollm3": ("SmolLM3", GROUPED | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]}),
}
_CLASSROOM: dict[str, dict] = {
    "classroom-rope": {},
    "classroom-alibi": {"position": "alibi"},
    "classroom-t5": {"position": "t5"},
    "classroom-none": {"position": "none"},
    "classroom-off-by-one": {"softmax": "off_by_one"},
    "classroom-sink-logit": {"softmax": "sink_logit"},
    "classroom-grouped": {"num_key_value_heads": 1},
}


def _classroom(**options: object) -> LM:
    with torch.random.fork_rng(devices=[]):
        return tiny_classroom(torch.float64, **options)


ZOO: dict[str, Callable[[], LM]] = {
    **{name: partial(_tiny, name, family, **o) for name, (family, o) in _TRANSFORMERS.items()},
    **{name: partial(_classroom, **options) for name, options in _CLASSROOM.items()},
}


def zoo_float32(name: str) -> LM:
    """Return the model with the same weights in float32, computing as transformers does."""
    lm = ZOO[name]()
    lm.model.float()  # exact: the weights were drawn in float32
    return lm


@contextlib.contextmanager
def zoo_model(name: str) -> Iterator[LM]:
    """Yield the model in float64; while open, it computes in float64 throughout."""
    lm = ZOO[name]()
    with in_double(lm.model):
        yield lm


# Double precision ---------------------------------------------------------------------------------

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


class _TransformersInDouble(TorchFunctionMode):
    """Read every narrower float type that *transformers' own code* writes as float64.

    Two things are replaced, on the way into a torch function called from a ``transformers.*``
    module: a dtype among the arguments (``x.to(torch.float32)``, ``softmax(..., dtype=...)``,
    ``torch.full(..., dtype=...)``), and the methods ``.float() .half() .bfloat16()``. Calls from
    anywhere else (sinkviz, tests) go through as they are, so that a cast of ours still shows.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        cast = func in _CASTS
        if cast or any(_is_narrow(x) for x in (*args, *kwargs.values())):
            if _called_by_transformers(sys._getframe(1)):
                func = Tensor.double if cast else func
                args = [torch.float64 if _is_narrow(x) else x for x in args]
                kwargs = {k: torch.float64 if _is_narrow(x) else x for k, x in kwargs.items()}
        return func(*args, **kwargs)


def _is_narrow(x: object) -> bool:
    return isinstance(x, torch.dtype) and x in _NARROW


def _called_by_transformers(frame: FrameType | None) -> bool:
    """Whether the code that called a torch function, torch's own left out, is transformers'."""
    while frame and frame.f_globals.get("__name__", "").split(".")[0] == "torch":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("transformers.")


@contextlib.contextmanager
def in_double(model: torch.nn.Module) -> Iterator[None]:
    """Make a float64 model of transformers compute in float64 throughout, until closed.

    No code is changed: casts are read differently, in this thread (``_TransformersInDouble``). Of
    the model, two things are, and put back at the end: the sine tables of GPT-J and CodeGen, which
    are stored in float32, and the experts' matrix product, whose default (grouped) does not exist
    for float64. What was rounded to float32 when the model was made stays as it is stored: weights,
    ``inv_freq``, embedding scales.
    """
    config = model.config
    experts = config._experts_implementation
    tables = {
        module: module.embed_positions
        for module in model.modules()
        if isinstance(getattr(module, "embed_positions", None), Tensor)
    }
    try:
        config._experts_implementation = "eager"
        for module, table in tables.items():
            angle = torch.arange(len(table))[:, None] * table_frequencies(table.shape[1])
            module.embed_positions = torch.cat((angle.sin(), angle.cos()), dim=1)
        with _TransformersInDouble():
            yield
    finally:
        config._experts_implementation = experts
        for module, table in tables.items():
            module.embed_positions = table


def table_frequencies(dimension: int) -> Tensor:
    """Frequencies of the sine tables of GPT-J and CodeGen, rounded to float32 as theirs are."""
    exponent = torch.arange(0, dimension, 2) / dimension
    return (1.0 / 10_000**exponent).float().double()
