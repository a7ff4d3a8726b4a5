"""The model of the demo: a small random Llama, or any causal LM from a local configuration."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from ladderize.errors import LadderError

BATCH, SEQUENCE = 2, 32
NUM_LAYERS = 6  # plain Inductor (2.13) has its first race in the fourth
HIDDEN = 128

# Weights of variance 1/fan_in keep every branch of the order of the stream, as in a trained net:
# with transformers' 0.02 the ladder and the standard net would hardly differ.
SMALL_LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 256,
    "initializer_range": HIDDEN**-0.5,
}


def build_model(hf: str | None, num_layers: int | None) -> Any:
    """A causal LM in float32 and eval mode with random weights, the same on every rank.

    Args:
        hf: a configuration (JSON file, or a folder with `config.json`); None for the small Llama.
        num_layers: how many layers, None for the configuration's own.

    Raises:
        LadderError: `hf` is no configuration of a causal LM that transformers knows.
    """
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # as is transformers
    try:
        return _build(_read_config(hf), num_layers)
    except (OSError, ValueError) as error:
        raise LadderError(f"--hf {hf}: {error}") from error


def _build(config: Any, num_layers: int | None) -> Any:
    if num_layers is not None:
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):  # must be as long as the model is deep
            config.layer_types = config.layer_types[:num_layers]
    torch.manual_seed(0)
    build: Any = AutoModelForCausalLM.from_config
    return build(config, dtype=torch.float32).eval().requires_grad_(False)


def _read_config(hf: str | None) -> Any:
    if hf is None:
        return LlamaConfig(**SMALL_LLAMA, num_hidden_layers=NUM_LAYERS)
    return AutoConfig.from_pretrained(hf, local_files_only=True)


def make_input(model: Any) -> Tensor:
    """Token ids `[BATCH, SEQUENCE]`, the same on every rank."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (BATCH, SEQUENCE), generator=generator)


def is_llama(model: Any) -> bool:
    """Whether `handwritten` is the ladder of this model, a Llama without biases."""
    config = model.config
    return type(model) is LlamaForCausalLM and not (config.attention_bias or config.mlp_bias)


def logits_of(model: Any, input_ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits
