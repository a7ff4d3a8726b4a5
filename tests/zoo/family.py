"""A row of the zoo: how to make a model, its inputs, and the modules that read its stream."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ladderize.testing.stale_reads import Reads

VOCABULARY = 64


@dataclass(frozen=True, eq=False)
class Family:
    """One family of models.

    Attributes:
        name: of the test.
        make: a tiny model with random weights of the size that training would give them.
        inputs: the keyword arguments that it is called with.
        reads: the modules whose input is exactly what a block reads, as `eager_ladder` takes them.
        blocks: how many those modules read for.
        prologue: how many more come before the first layer, in none, and stay standard.
        trains: whether gradients are compared too.
        dtype: of weights and inputs: float64 where float32's noise would hide a wrong read.
        is_deep: whether staleness 2 and a part of the blocks are tried as well.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    reads: Reads
    blocks: int
    prologue: int = 0
    trains: bool = True
    dtype: torch.dtype = torch.float32
    is_deep: bool = False

    @property
    def found(self) -> int:
        """How many blocks the analysis finds."""
        return self.prologue + self.blocks

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return enlarge(self.make()).to(self.dtype).eval()

    def feed(self) -> dict[str, Any]:
        """The inputs, the floating ones in the dtype of the weights."""
        return {
            name: value.to(self.dtype)
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in self.inputs().items()
        }


def hugging_face(model: str, **config: Any) -> Callable[[], nn.Module]:
    """A maker of `transformers`' class of that name with this configuration."""

    def make() -> nn.Module:
        kind = getattr(transformers, model)
        return kind(kind.config_class(**config))

    return make


def enlarge(model: nn.Module) -> nn.Module:
    """Random weights of order 1 / sqrt(inputs), and random biases.

    Fresh ones are so small, or zero, at such widths that a misplaced read would hide within the
    tolerance.
    """
    generator = random_generator(0)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() > 1:
                    parameter.copy_(noise * _num_inputs(module, parameter) ** -0.5)
                else:
                    parameter.copy_(0.2 * noise + (0 if name.endswith("bias") else 1))
    return model


def _num_inputs(module: nn.Module, weight: Tensor) -> int:
    is_kernel = isinstance(module, (nn.Conv1d, nn.Conv2d))
    return weight.shape[1:].numel() if is_kernel else weight.shape[-1]


def random_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_ids(batch: int = 2, length: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(4, VOCABULARY, (batch, length), generator=random_generator(seed))


def text() -> dict[str, Any]:
    return {"input_ids": token_ids()}


def text_to_text() -> dict[str, Any]:
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(length=5, seed=2)}


def image(size: int = 32) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, size, size, generator=random_generator(1))}
