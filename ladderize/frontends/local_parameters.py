"""What one rank feeds its sharded graph: local parts of the parameters, and its index inputs.

full parameters of the user's model ── Parts ── arguments of the compiled local graphs

Local parts are copied once and kept beside the user's full parameters, for all graphs that divide
them alike (prefill and decode share one set). `release_parameters.py` frees the full ones.
"""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.fx import GraphModule
from torch.utils.weak import WeakTensorKeyDictionary

from ladderize.errors import LadderError
from ladderize.sharding.placement import Shard, take_local
from ladderize.sharding.plan import ShardPlan


@dataclass(frozen=True)
class Place:
    """Which part of a parameter is meant: that of `rank`, divided by `placement`."""

    placement: Shard
    group_name: str
    rank: int
    num_ranks: int

    def take(self, full: Tensor) -> Tensor:
        return take_local(full, self.placement, self.rank, self.num_ranks)


@dataclass
class Part:
    """A local part, and the version of the full parameter that it was cut from."""

    local: Tensor
    version: int


class Parts:
    """The local parts of full parameters, kept while these live.

    A part is copied anew when its parameter was written in place (a write through `.data` or to an
    inference tensor leaves no trace and is not noticed).

    Attributes:
        read_whole: parameters that a compiled graph reads whole.
        released: parameters without memory, with the bytes that they had.
    """

    def __init__(self) -> None:
        self._parts: MutableMapping[Tensor, dict[Place, Part]] = WeakTensorKeyDictionary()
        self.read_whole: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self.released: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()

    def of(self, full: Tensor) -> dict[Place, Part]:
        """The parts that are kept of `full`."""
        return self._parts.get(full, {})

    def get(self, full: Tensor, place: Place) -> Tensor:
        """The part of `full` at `place`, up to date."""
        part = self.of(full).get(place)
        if not self.is_released(full):
            version = 0 if full.is_inference() else full._version
            if part is None or part.version != version:
                with torch.inference_mode(False), torch.no_grad():
                    part = Part(place.take(full), version)
                self._parts.setdefault(full, {})[place] = part
        if part is None:
            self.require_memory(full)
        assert part is not None
        if part.local.requires_grad != full.requires_grad:
            part.local.requires_grad_(full.requires_grad)
        return part.local

    def is_released(self, full: Tensor) -> bool:
        return bool(self.released) and full in self.released

    def require_memory(self, full: Any) -> None:
        """Raise `LadderError` for a parameter whose memory was freed."""
        if self.released and isinstance(full, Tensor) and full in self.released:
            raise LadderError(
                "The memory of a parameter that is needed whole was freed: gradients are enabled, "
                "or this graph divides it in another way or not at all.",
                cure="ladderize.restore_full_parameters(model), on all ranks; or call the model "
                "under torch.no_grad()",
            )


PARTS = Parts()


class LocalInputs:
    """The local arguments of a sharded graph, in the place of the full ones that Dynamo passes.

    While gradients are recorded parts are not kept but cut out anew at every call: each rank's
    parameters then receive the gradient of its own part.
    """

    def __init__(self, gm: GraphModule, plan: ShardPlan, mesh: DeviceMesh) -> None:
        nodes = gm.graph.find_nodes(op="placeholder")
        rank, group = mesh.get_local_rank(), mesh.get_group().group_name
        self._places = {
            i: Place(placement, group, rank, mesh.size())
            for i, node in enumerate(nodes)
            if isinstance(placement := plan.parameter_nodes.get(node), Shard)
        }
        self._values = [node.meta["val"] for node in nodes]
        self._indices = [index.tensor(rank, mesh.device_type) for index in plan.index_inputs]
        self._has_run = False

    def examples(self, example_inputs: Sequence[Any]) -> list[Any]:
        """Fake inputs of the local graph, from those of the full one."""
        return [
            *(self._example(i, full) for i, full in enumerate(example_inputs)),
            *self._values[len(example_inputs) :],
        ]

    def feed(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """A callable that takes the full inputs and gives the local ones to `compiled`."""

        def call(*full: Any) -> Any:
            local = [self._local(i, value) for i, value in enumerate(full)]
            self._has_run = True
            return compiled(*local, *self._indices)

        return call

    def _example(self, i: int, full: Any) -> Any:
        if i not in self._places:
            return full
        local = self._values[i]  # fake, already of the local shape
        with local.fake_mode:
            part = torch.empty_like(local)
            if isinstance(full, torch.nn.Parameter):
                return torch.nn.Parameter(part, full.requires_grad)
            return part.requires_grad_(full.requires_grad)

    def _local(self, i: int, full: Any) -> Any:
        place = self._places.get(i)
        if place is None:
            PARTS.require_memory(full)
            if not self._has_run and isinstance(full, torch.nn.Parameter):
                PARTS.read_whole[full] = True
            return full
        if full.requires_grad and torch.is_grad_enabled():
            PARTS.require_memory(full)
            return place.take(full)
        return PARTS.get(full, place)
