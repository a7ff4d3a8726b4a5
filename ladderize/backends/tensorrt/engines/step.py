"""What a cut graph does at each call: its islands run in engines that have the latest weights.

step(*args)    weights as at the call before?  ── no ── bind: each island gets its own
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
    """A graph whose islands run in engines. Called with all its inputs, weights included.

    When a weight is another tensor than at the call before, or was written in place, the engines
    are given their weights anew (a write through `.data` or to an inference tensor leaves no trace
    and is not noticed).

    Args:
        gm: calls of islands, which are given what is no weight, and all that is between them.
        built: the engines.
        weights: by island, its inputs that are weights, with their places among the arguments.
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
        """Run it.

        Raises:
            LadderError: gradients are enabled and wanted.
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
    """Raise where a backward graph would be wanted: an engine has none."""
    if not torch.is_grad_enabled():
        return
    needing = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if needing:
        raise LadderError(
            "TensorRT computes no gradients, which are enabled:",
            [Blocker(f"{len(needing)} of the graph's inputs require them")],
            "call the model under torch.no_grad() or torch.inference_mode(), or "
            "lowering='inductor' to train",
        )


class _Held:
    """A weight as the engines have it. The tensor is not kept alive, and another one may get its
    memory: so it is known by itself, by where it is and by how often it was written."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._state = _state(tensor)

    def is_still(self, tensor: Tensor) -> bool:
        return self._tensor() is tensor and self._state == _state(tensor)


def _state(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
