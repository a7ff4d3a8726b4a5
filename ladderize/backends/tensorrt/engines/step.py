"""Run a cut graph: its islands run in engines with the latest weights.

step(*args)    same weights as in the last call?  ── no ── bind: each island gets its own
               outer graph: island_0, launch, island_1, launch, wait, island_2, …
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ladderize.backends.tensorrt.engines.assemble import Built
from ladderize.errors import Blocker, LadderError


class CutGraph:
    """A graph whose islands run in engines. Call it with all inputs, including weights.

    If a weight is a different tensor than in the last call, or was written in place, all engines
    get their weights again. Writes through `.data` or to inference tensors are not noticed.

    Args:
        gm: outer graph, which calls the islands with the inputs that are not weights.
        built: engines of the islands.
        weights: weight inputs of each island, with their positions among the arguments.
    """

    def __init__(
        self,
        gm: GraphModule,
        built: Built,
        weights: Mapping[str, Mapping[str, int]],
    ) -> None:
        self.gm = gm
        self.built = built
        self._weights = weights
        self._places = sorted({place for own in weights.values() for place in own.values()})
        self._held: list[_Held] | None = None

    def __call__(self, *args: Any) -> Any:
        """Run the graph.

        Raises:
            LadderError: gradients are enabled and required.
        """
        refuse_gradients(args)
        given = [args[place] for place in self._places]
        if self._held is None or not all(map(_Held.is_still, self._held, given)):
            self._bind(args)
            self._held = list(map(_Held, given))
        return self.gm(*args)

    def _bind(self, args: Sequence[Any]) -> None:
        for name, own in self._weights.items():
            given = {weight: args[place].detach() for weight, place in own.items()}
            self.gm.set_submodule(name, self.built.bind(name, given))


def refuse_gradients(inputs: Sequence[Any]) -> None:
    """Raise if a backward graph would be needed, which engines do not have."""
    if not torch.is_grad_enabled():
        return
    needing = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if needing:
        raise LadderError(
            "TensorRT does not compute gradients, but they are enabled:",
            [Blocker(f"{len(needing)} of the graph's inputs require them")],
            "call the model under torch.no_grad() or torch.inference_mode(), or use "
            "lowering='inductor' to train",
        )


class _Held:
    """The weight that the engines have. The tensor is not kept alive and its memory may be reused,
    so it is identified by a weak reference, its address and its version."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._state = _state(tensor)

    def is_still(self, tensor: Tensor) -> bool:
        return self._tensor() is tensor and self._state == _state(tensor)


def _state(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
