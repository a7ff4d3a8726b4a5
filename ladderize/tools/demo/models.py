"""The model of the demo: a small random Llama, or any causal LM from a local configuration."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ladderize.errors import LadderError
from ladderize.tools.sources.hugging_face import build, read_config

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
    config = LlamaConfig(**SMALL_LLAMA) if hf is None else read_config(Path(hf))
    classes: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in classes:
        raise LadderError(f"--hf {hf}: transformers has no causal LM of {config.model_type}.")
    config.architectures = [classes[type(config)].__name__]
    if num_layers is None and hf is None:
        num_layers = NUM_LAYERS
    if num_layers is not None:
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):  # must be as long as the model is deep
            config.layer_types = config.layer_types[:num_layers]
    return build(config).float().requires_grad_(False)


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
