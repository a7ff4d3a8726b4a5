"""`hf:DIR_OR_CONFIG`: build a transformers model from a local configuration, without downloads.

config.json ── architectures[0], or the causal LM of its model_type ── model, example inputs
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ladderize.errors import LadderError
from ladderize.frontends.checkpoints.configurations import model_class, new_model, read_config
from ladderize.frontends.sharded.tracing import shapes_only
from ladderize.tools.sources.model_names import find_configuration
from ladderize.tools.sources.reduced_sizes import reduce_sizes


@dataclass(frozen=True)
class InputSizes:
    """Sizes of the example inputs that are made for a configuration.

    Attributes:
        batch: number of examples.
        length: tokens per example.
        image: height and width in pixels, if the configuration does not set them.
        is_dynamic: whether batch and length stay symbolic: dims 0 and 1 of integer inputs, dim 0
            of all others.
    """

    batch: int = 2
    length: int = 32
    image: int = 224
    is_dynamic: bool = False


def seeded() -> None:
    """Seed torch, so that random weights and inputs are the same in every process."""
    torch.manual_seed(0)


def open_configuration(
    text: str, sizes: InputSizes, *, has_weights: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The model of `hf:PATH` in eval mode, and keyword arguments for it.

    Its weights are read from the safetensors files in PATH; without any they are random, with a
    fixed seed.

    Args:
        text: name of the configuration, with `hf:`.
        sizes: sizes of the inputs.
        has_weights: if False, parameters are on the meta device.

    Raises:
        LadderError: transformers is missing, the configuration does not exist or has no known
            class, or the weights are not safetensors.
    """
    model = configured_model(text, has_weights=has_weights)
    return model, make_inputs(model, sizes)


def configured_model(text: str, *, has_weights: bool = True) -> Any:
    """The model of `hf:PATH` in eval mode, as `open_configuration` opens it."""
    named = find_configuration(text)
    config = read_config(named.path)
    reduce_sizes(config, named.layers, named.width)
    return build(config, named.path, has_weights=has_weights)


def build(config: Any, path: Path | None = None, *, has_weights: bool = True) -> Any:
    """The model of `config` in its dtype, in eval mode, without a KV cache.

    Raises:
        LadderError: transformers has no class for it, or its weights cannot be read.
    """
    kind = model_class(config)
    config.use_cache = False
    if path is not None and path.is_dir() and has_weights and _holds_weights(path):
        model = kind.from_pretrained(
            path, config=config, local_files_only=True, use_safetensors=True
        )
        return model.eval()
    if has_weights:
        _refuse_too_large(config)
    seeded()
    with nullcontext() if has_weights else shapes_only():
        return new_model(config)


def _refuse_too_large(config: Any) -> None:
    """Refuse random weights that do not fit into this machine's memory."""
    with shapes_only():
        needed = sum(parameter.nbytes for parameter in new_model(config).parameters())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise LadderError(
            f"Random weights of this {config.model_type} take {needed >> 30:,} GiB; this machine "
            f"has {memory >> 30:,} GiB.",
            cure="explain, plan and plot need no weights; hf:NAME,layers=2,width=512 is smaller",
        )


def _holds_weights(folder: Path) -> bool:
    """Whether `folder` has safetensors files; pickles are refused."""
    if any(folder.glob("*.safetensors")):
        return True
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise LadderError(
            f"The weights in {folder} are pickles ({pickles[0]}), which are not read.",
            cure="save them with safe_serialization=True, or pass only the config.json",
        )
    return False


# ---- inputs


def make_inputs(model: Any, sizes: InputSizes) -> dict[str, Any]:
    """Random inputs with a fixed seed, by the name of the model's main input.

    Raises:
        LadderError: inputs of that name are unknown.
    """
    name = model.main_input_name
    if name not in _INPUTS:
        raise LadderError(
            f"Cannot make example inputs: {type(model).__name__} takes {name}.",
            cure="write a function that returns (model, args, kwargs), and pass module:function",
        )
    generator = torch.Generator().manual_seed(1)
    made = {name: _INPUTS[name](model.config, sizes, generator)}
    if made[name].is_floating_point():
        made[name] = made[name].to(model.dtype)
    if model.config.is_encoder_decoder and name != "decoder_input_ids":
        made["decoder_input_ids"] = _tokens(model.config, sizes, generator)
    return made


def _tokens(config: Any, sizes: InputSizes, generator: torch.Generator) -> torch.Tensor:
    text = config.get_text_config(decoder=True)
    most = getattr(text, "max_position_embeddings", None) or sizes.length
    shape = (sizes.batch, min(sizes.length, most))
    return torch.randint(0, text.vocab_size, shape, generator=generator)


def _pixels(config: Any, sizes: InputSizes, generator: torch.Generator) -> torch.Tensor:
    size = getattr(config, "image_size", None) or sizes.image
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(config, "num_channels", 3)
    return torch.randn(sizes.batch, channels, height, width, generator=generator)


def _features(config: Any, sizes: InputSizes, generator: torch.Generator) -> torch.Tensor:
    frames = 2 * config.max_source_positions
    return torch.randn(sizes.batch, config.num_mel_bins, frames, generator=generator)


def _sound(config: Any, sizes: InputSizes, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001
    return torch.randn(sizes.batch, 16_000, generator=generator)


_INPUTS: dict[str, Callable[[Any, InputSizes, torch.Generator], torch.Tensor]] = {
    "input_ids": _tokens,
    "pixel_values": _pixels,
    "input_features": _features,
    "input_values": _sound,
}
