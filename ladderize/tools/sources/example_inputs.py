"""What sources make up where a model brings no inputs or weights: sizes, seeds."""

from dataclasses import dataclass

import torch

HUGGING_FACE = "hf:"
"""How the name of a transformers configuration begins."""


@dataclass(frozen=True)
class InputSizes:
    """Of the example inputs that are made for a configuration.

    Attributes:
        batch: examples.
        length: tokens of each.
        image: height and width in pixels where the configuration tells none.
        is_dynamic: whether batch and length stay symbolic: dims 0 and 1 of integer inputs, dim 0
            of all others.
    """

    batch: int = 2
    length: int = 32
    image: int = 224
    is_dynamic: bool = False


def seeded() -> None:
    """Random weights and inputs are the same in every process."""
    torch.manual_seed(0)
