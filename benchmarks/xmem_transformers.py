"""The transformers of the xMem study that its records name, as its second loop fed them.

Nothing can be downloaded here, so each configuration is written out: what is not said is the
default of its class. The study cut texts to 128 tokens and padded to the longest of a batch; the
length was not recorded, so 128 is taken: few of its batches can have been shorter.

Source: `config.json` of each model on the Hugging Face Hub; `exp/trainer/{trainer,train_loop}.py`
of the artifact.

Limits: the study's package of transformers was 4.51.3; another one may run other operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from benchmarks.xmem_step import Batch, Training
from memplan.errors import BadInputError
from memplan.trace.operators_attention import scaled_dot_product_attention

SEQUENCE_LENGTH = 128
_Arguments = dict[str, Any]

# Name in the study: class of configuration, class of model, what differs from the class's default.
TRANSFORMERS: dict[str, tuple[str, str, _Arguments]] = {
    "openai-community/gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "distilbert/distilgpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 6}),
    "cerebras/Cerebras-GPT-111M": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "n_layer": 10,
            "n_positions": 2048,
            "n_inner": 3072,
            "activation_function": "gelu",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
    ),
    "EleutherAI/gpt-neo-125M": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 768,
            "num_layers": 12,
            "num_heads": 12,
            "attention_types": [[["global", "local"], 6]],
            "max_position_embeddings": 2048,
            "window_size": 256,
            "attention_dropout": 0.0,
            "embed_dropout": 0.0,
            "resid_dropout": 0.0,
        },
    ),
    "facebook/opt-350m": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "ffn_dim": 4096,
            "num_attention_heads": 16,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
        },
    ),
    "T5-small": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"decoder_start_token_id": 0},
    ),
}


def transformer_training(
    name: str, optimizer: str, batch_size: int, *, zeroes_before_forward: bool
) -> Training:
    """Return the training of one of `TRANSFORMERS` on texts of 128 tokens.

    Args:
        name: the model, as the study calls it.
        optimizer: class in `torch.optim`.
        batch_size: texts, >= 1.
        zeroes_before_forward: see `Training`.

    Raises:
        BadInputError: the package `transformers` is not installed.
    """
    return Training(
        build_model=_maker(name),
        make_batch=lambda: _texts(batch_size),
        compute_loss=_compute_loss,
        after_step=lambda _: None,
        optimizer=optimizer,
        zeroes_before_forward=zeroes_before_forward,
    )


def _maker(name: str) -> Callable[[], torch.nn.Module]:
    try:
        import transformers
    except ImportError:
        raise BadInputError(
            f"{name} cannot be built: transformers is missing. `pip install transformers==4.51.3`."
        ) from None
    config_class, model_class, arguments = TRANSFORMERS[name]

    def build() -> torch.nn.Module:
        model: torch.nn.Module = getattr(transformers, model_class)(
            getattr(transformers, config_class)(**arguments)
        )
        model.train()
        if model_class == "OPTForCausalLM":
            # Its decoder draws whether to skip a layer, with a probability of 0; a recording
            # cannot know what was drawn. Nothing else asks this module whether it trains.
            model.model.decoder.training = False  # type: ignore[union-attr]
        return model

    return build


def _texts(batch_size: int) -> Batch:
    names = ("input_ids", "attention_mask", "labels")
    return {n: torch.zeros(batch_size, SEQUENCE_LENGTH, dtype=torch.int64) for n in names}


def _compute_loss(model: torch.nn.Module, batch: Batch) -> tuple[Any, torch.Tensor]:
    # Without a card PyTorch cannot choose the kernel that a card would take.
    name = "torch.nn.functional.scaled_dot_product_attention"
    with mock.patch(name, scaled_dot_product_attention):
        outputs = model(**batch)
    return outputs, outputs.loss
