"""One rank's inputs of a sharded graph: parameters, or parts of them, and index inputs.

full parameters of the user's model ── arguments of the compiled local graphs

    w  64 x 32, sharded on dim 0   w itself: the graph slices it (`passes/slice_parameters.py`)
    w  64 x 32, sharded on dim 1   the same
    w  [q|k|v]                     a copy of ranges of each, updated when a change of w is detected

If a graph cannot slice, a contiguous part is a stored view (TensorRT engines hold weights) or a
copy (after `release_parameters.py` has freed the full parameters). Parts are stored with the full
parameters, for all graphs with the same placement (prefill and decode share one set).
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.frontends.mesh.local_parts import PARTS, Part, Place, tensors_in
from ladderize.frontends.mesh.whole_gradients import WholeGradients
from ladderize.graph.to_aten import wrapped
from ladderize.graph.writes import written_values
from ladderize.passes.slice_parameters import SliceParameters
from ladderize.passes.spell_linears import SpellLinears
from ladderize.sharding.placement import Shard, view_local
from ladderize.sharding.plan import ShardPlan


class LocalInputs:
    """The arguments of a sharded graph, in place of those that Dynamo passes.

    With grad mode enabled, each parameter gets the gradient of this rank's part, because the graph
    slices it or its part is taken again at every call. `WholeGradients` completes the gradient.
    """

    def __init__(
        self,
        gm: GraphModule,
        plan: ShardPlan,
        mesh: DeviceMesh,
        example_inputs: Sequence[Any],
        *,
        slices: bool = True,
        is_released: bool = False,
    ) -> None:
        """
        Args:
            gm: sharded graph; slices of its parameters are added.
            plan: sharding plan of the graph.
            mesh: mesh with this rank.
            example_inputs: inputs of the graph before it was sharded.
            slices: whether the graph may slice parameters.
            is_released: whether parameters of the model were released, so that their parts are
                dense copies.
        """
        nodes = gm.graph.find_nodes(op="placeholder")
        rank, group = mesh.get_local_rank(), mesh.get_group().group_name
        places = {
            i: Place(
                placement,
                group,
                rank,
                mesh.size(),
                is_view=placement.is_one_stretch
                and _may_be_view(example_inputs[i], placement, mesh.size(), slices, is_released),
            )
            for i, node in enumerate(nodes)
            if isinstance(placement := plan.parameter_nodes.get(node), Shard)
        }
        written = written_values(gm.graph)
        self._sliced = {
            i: place
            for i, place in places.items()
            if slices and not is_released and place.is_view and nodes[i] not in written
        }
        self._places = {i: place for i, place in places.items() if i not in self._sliced}
        self._first = next(iter(places), None)
        self._trained = [i for i in places if _is_trained(example_inputs[i])]
        self._gradients = WholeGradients(
            [places[i].placement for i in self._trained], mesh.get_group()
        )
        self._values = [node.meta["val"] for node in nodes]
        self._wrapped = [wrapped(node) for node in nodes]
        self._indices = [index.tensor(rank, mesh.device_type) for index in plan.index_inputs]
        self._full = example_inputs
        self._last: dict[int, Callable[[], Part | None]] = dict.fromkeys(self._places, _nothing)
        spelled = SpellLinears()(gm).changed
        if self._slice(gm, nodes) or spelled:
            gm.recompile()

    def _slice(self, gm: GraphModule, nodes: Sequence[Node]) -> int:
        if self._sliced:
            place = next(iter(self._sliced.values()))
            SliceParameters(
                {nodes[i]: place.placement for i, place in self._sliced.items()},
                {nodes[i]: self._full[i] for i in self._sliced},
                place.rank,
                place.num_ranks,
            )(gm)
        return len(self._sliced)

    def examples(self) -> list[Any]:
        """The fake inputs of the local graph, from those of the full graph."""
        full, self._full = self._full, ()
        return [
            *(self._example(i, each) for i, each in enumerate(full)),
            *self._values[len(full) :],
        ]

    def feed(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """A callable that takes the full inputs and calls `compiled` with the local ones.

        Its cost is linear in the stored parts, not in the parameters. It checks all parameters only
        if it is called for another model (one graph may serve several), or after memory of any
        parameter was freed.
        """
        seen: Callable[[], Any] = _nothing
        num_changes = -1

        def call(*full: Any) -> Any:
            nonlocal seen, num_changes
            is_other = self._first is None or seen() is not full[self._first]
            if is_other or num_changes != PARTS.num_changes:
                self._look_at(full)
                num_changes = PARTS.num_changes
                seen = _nothing if self._first is None else weakref.ref(full[self._first])
            if not self._places and not self._trained:
                return compiled(*full, *self._indices)
            local = [*full, *self._indices]
            if self._trained:
                self._follow(local)
            for i, place in self._places.items():
                local[i] = self._local(i, local[i], place)
            return compiled(*local)

        return call

    def _follow(self, inputs: list[Any]) -> None:
        """Replace trained parameters by views that complete their gradients."""
        full = [inputs[i] for i in self._trained]
        for parameter in full:
            PARTS.require_memory(parameter)
        views = self._gradients.follow(full)
        for i, view in zip(self._trained, views, strict=True):
            inputs[i] = view

    def _look_at(self, full: Sequence[Any]) -> None:
        """Note the parameters that the graph slices or reads whole, and require their memory."""
        for i, value in enumerate(full):
            if i not in self._places:
                PARTS.require_memory(value)
            if i in self._sliced:
                PARTS.note(value, self._sliced[i])
            elif i not in self._places and isinstance(value, torch.nn.Parameter):
                PARTS.read_whole[value] = True

    def _example(self, i: int, full: Any) -> Any:
        place = self._places.get(i)
        if place is None:
            return full
        local = self._values[i]  # fake, already of the local shape
        with local.fake_mode, torch.no_grad():
            if (fake := self._wrapped[i]) is not None:
                return place.take(fake)
            part = torch.empty_like(local)
            if place.is_view:
                part = place.take(part.new_empty_strided(full.shape, full.stride())).detach()
            if isinstance(full, torch.nn.Parameter):
                return torch.nn.Parameter(part, full.requires_grad)
            return part.requires_grad_(full.requires_grad)

    def _local(self, i: int, full: Tensor, place: Place) -> Tensor:
        if full.requires_grad and torch.is_grad_enabled():
            return place.take(full)
        part = self._last[i]()
        if part is None or not part.is_of(full) or part.local.requires_grad != full.requires_grad:
            part = PARTS.get(full, place)
            self._last[i] = weakref.ref(part)  # a lookup in `PARTS` is ten times slower
        return part.local


def _is_trained(example: Any) -> bool:
    """Whether the graph was traced with gradients of an input."""
    return torch.is_grad_enabled() and isinstance(example, Tensor) and example.requires_grad


def _may_be_view(
    full: Tensor, placement: Shard, num_ranks: int, slices: bool, is_released: bool
) -> bool:
    """Whether a rank's part, a contiguous range of `full`, may be a view of it."""
    if not compat.is_wrapper_subclass(full):
        return full.is_contiguous() and (placement.dim == 0 or not is_released)
    if is_released or not slices:
        return False
    with torch.no_grad():
        parts = tensors_in(view_local(full, placement, 0, num_ranks))
    return all(part.is_contiguous() for part in parts)  # kernels need dense values and scales


def _nothing() -> None:
    """A reference to a part that no longer exists."""
