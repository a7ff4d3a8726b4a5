"""What one rank feeds its sharded graph: local parts of the parameters, and its index inputs.

full parameters of the user's model ── take_local ── arguments of the compiled local graph
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.fx import GraphModule

from ladderize.placement import Placement, take_local
from ladderize.plan import ShardPlan


class LocalInputs:
    """The local arguments of a sharded graph, in the place of the full ones that Dynamo passes.

    Local parts are copied once and kept beside the user's full parameters. They are copied anew
    when a parameter was replaced or written in place (a write through `.data` or to an inference
    tensor leaves no trace and is not noticed). While gradients are recorded they are cut out anew
    at every call instead: each rank's parameters then receive the gradient of its own part.
    """

    def __init__(self, gm: GraphModule, plan: ShardPlan, mesh: DeviceMesh) -> None:
        nodes = gm.graph.find_nodes(op="placeholder")
        self._placements: dict[int, Placement] = {
            i: plan.parameter_nodes[node]
            for i, node in enumerate(nodes)
            if node in plan.parameter_nodes
        }
        self._values = [node.meta["val"] for node in nodes]
        self._rank, self._num_ranks = mesh.get_local_rank(), mesh.size()
        self._indices = [index.tensor(self._rank, mesh.device_type) for index in plan.index_inputs]
        self._kept: dict[int, tuple[Tensor, int, Tensor]] = {}

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
            return compiled(*local, *self._indices)

        return call

    def _example(self, i: int, full: Any) -> Any:
        if i not in self._placements:
            return full
        local = self._values[i]  # fake, already of the local shape
        with local.fake_mode:
            return torch.empty_like(local).requires_grad_(full.requires_grad)

    def _local(self, i: int, full: Any) -> Any:
        placement = self._placements.get(i)
        if placement is None:
            return full
        if full.requires_grad and torch.is_grad_enabled():
            return take_local(full, placement, self._rank, self._num_ranks)
        version = 0 if full.is_inference() else full._version
        kept = self._kept.get(i)
        if kept is None or kept[0] is not full or kept[1] != version:
            with torch.no_grad():
                local = take_local(full, placement, self._rank, self._num_ranks)
            kept = self._kept[i] = (full, version, local.requires_grad_(full.requires_grad))
        return kept[2]
