"""Lowerings: graph to callable, one a file. A lowering knows no pass but those for its engine."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from ladderize.backends.aot_eager import lower_to_aot_eager
from ladderize.backends.eager import lower_to_eager
from ladderize.backends.inductor import lower_to_inductor
from ladderize.config import LadderConfig

Lowering = Callable[[GraphModule, Sequence[Any], LadderConfig], Callable[..., Any]]

LOWERINGS: dict[str, Lowering] = {
    "inductor": lower_to_inductor,
    "aot_eager": lower_to_aot_eager,
    "eager": lower_to_eager,
}
