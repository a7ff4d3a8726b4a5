"""Reduce the layers or the width of a configuration."""

from typing import Any

from ladderize.errors import LadderError


def reduce_sizes(config: Any, layers: int | None, width: int | None) -> None:
    """Change `config`, a transformers configuration, in place.

    Args:
        layers: number of layers, None to keep it.
        width: size of the residual stream, None to keep it. Heads keep their size but become
            fewer, and MLPs shrink in proportion.

    Raises:
        LadderError: the model has fewer layers, or the width is not a multiple of the head size.
    """
    text = config.get_text_config(decoder=True)
    if layers is not None:
        _keep_layers(text, layers)
    if width is not None:
        _narrow(text, width)


def _keep_layers(config: Any, layers: int) -> None:
    most = config.num_hidden_layers
    if layers > most:
        raise LadderError(f"This {config.model_type} has {most} layers, not {layers}.")
    config.num_hidden_layers = layers
    if getattr(config, "num_decoder_layers", None):
        config.num_decoder_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _narrow(config: Any, width: int) -> None:
    heads, whole = config.num_attention_heads, config.hidden_size
    size = getattr(config, "head_dim", None) or whole // heads
    fewer, rest = divmod(heads * width, whole)
    if width > whole or rest or not fewer:
        steps = f"multiples of {max(1, whole // heads)} up to {whole}"
        raise LadderError(
            f"This {config.model_type} has {heads} heads of {size}: its width cannot be {width}.",
            cure=f"use {steps}",
        )
    key_heads = getattr(config, "num_key_value_heads", None)
    if key_heads is not None:
        config.num_key_value_heads = max(n for n in range(1, key_heads + 1) if fewer % n == 0)
    config.num_attention_heads, config.hidden_size = fewer, width
    for name in ("intermediate_size", "moe_intermediate_size", "n_inner", "d_ff"):
        if hidden := getattr(config, name, None):
            setattr(config, name, max(8, hidden * width // whole // 8 * 8))
