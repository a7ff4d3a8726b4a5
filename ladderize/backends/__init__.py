"""Lowerings from graph to callable, one per file. A lowering runs only passes for its engine."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from ladderize.backends.aot_eager import lower_to_aot_eager
from ladderize.backends.eager import lower_to_eager
from ladderize.backends.inductor import lower_to_inductor
from ladderize.backends.lowered import Lowered
from ladderize.backends.tensorrt.lower import lower_to_tensorrt
from ladderize.config.options import LadderConfig

Lower = Callable[[GraphModule, Sequence[Any], LadderConfig], Lowered]

LOWERINGS: dict[str, Lower] = {
    "inductor": lower_to_inductor,
    "tensorrt": lower_to_tensorrt,
    "aot_eager": lower_to_aot_eager,
    "eager": lower_to_eager,
}
