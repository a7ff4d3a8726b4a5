"""The view of one node that a sharding rule gets, and its requests.

A rule reads the placements of the node's inputs through a `Visit`, requests what it needs (a
sharded weight, a slice of a replicated operand, another size in a view), and returns the placement
of the result. It changes nothing itself. If it cannot handle the present inputs, it raises an
exception of `values`, and the node is visited again after the change.
"""

import dataclasses
import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch.fx import Node

from ladderize.errors import module_path
from ladderize.graph.to_aten import wrapped
from ladderize.sharding.expert_stacks import ExpertStacks
from ladderize.sharding.placement import OwnRows, Placement, Shard, local_indices
from ladderize.sharding.rules.quantized import refused_parts
from ladderize.sharding.statics import Unpacked, stand_in
from ladderize.sharding.values import (
    REPLICATED,
    Illegal,
    NeedsCuts,
    NeedsUnpacked,
    Origin,
    RowSelection,
    Value,
    Values,
    inner_cuts,
)

# Inserted by torch.export after a cast; it only reads the dtype.
FORM_READERS = {torch.ops.aten._assert_tensor_metadata}


@dataclass
class Visit:
    """One evaluation of one node.

    Attributes:
        node: the node.
        values: placements of earlier nodes; missing nodes are replicated.
        parameters: fully qualified names of the parameter nodes.
        banned: parameters that must stay replicated.
        cuts: positions at which a parameter's output dim must be cut into chunks.
        whole: ranges of a parameter's output dim that every rank must hold.
        num_ranks: number of ranks.
        stacks: weights of experts that are sharded by experts.
        made: wanted placements of memory that the branch fills.
        outputs: values that the branch adds to the stream.
        unpacked: weights computed from packed parameters.
        sums_norms: whether the ranks may sum the statistic of a norm.
        demands: result: placements of parameters.
        entries: result: replicated operands that enter sharded computation, with selections.
        mixed: result: weights with some whole chunks, with their placements.
        shared: result: operands of which each rank takes an equal share, to be summed with a
            partial value.
        computed: result: entries that the node computes with the experts of this rank.
        masked: result: operands with entries of other ranks' experts to set to 0.
        kept: result: placements of cache states, by site.
        target, args, kwargs: result: the rewritten call; None if unchanged.
    """

    node: Node
    values: Mapping[Node, Values]
    parameters: Mapping[Node, str]
    banned: Container[Node]
    cuts: Mapping[Node, frozenset[int]]
    whole: Mapping[Node, frozenset[tuple[int, int]]]
    num_ranks: int
    stacks: ExpertStacks = field(default_factory=ExpertStacks)
    made: Mapping[Node, Value] = field(default_factory=dict)
    outputs: Container[Node] = ()
    unpacked: Mapping[Node, Unpacked] = field(default_factory=dict)
    sums_norms: bool = True
    demands: dict[Node, Placement] = field(default_factory=dict)
    entries: dict[Node, RowSelection | None] = field(default_factory=dict)
    mixed: dict[Node, Shard] = field(default_factory=dict)
    shared: set[Node] = field(default_factory=set)
    computed: OwnRows | None = None
    masked: dict[Node, OwnRows] = field(default_factory=dict)
    kept: dict[str, Shard] = field(default_factory=dict)
    target: Any = None
    args: tuple[Any, ...] | None = None
    kwargs: Mapping[str, Any] | None = None

    # -- reading

    def operands(self) -> list[Node]:
        """The tensor inputs."""
        return [node for node in self.node.all_input_nodes if is_tensor(node)]

    def argument(self, index: int, name: str = "", default: Any = None) -> Any:
        if index < len(self.node.args):
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def value(self, node: Node) -> Value:
        value = self.values.get(node, REPLICATED)
        assert isinstance(value, Value), f"{node} is a tuple"
        return value

    def is_whole(self, node: Node) -> bool:
        value = self.values.get(node)
        return isinstance(value, Value) and value.is_whole

    def shape(self, node: Node | None = None) -> Sequence[Any]:
        shape: Sequence[Any] = (node or self.node).meta["val"].shape
        return shape

    def parameter(self, node: Any) -> Node | None:
        """The parameter that `node` is, possibly transposed, cast or unpacked; else None."""
        if node in self.unpacked:
            return self.unpacked[node].main
        found = stand_in(node, self.parameters)
        return None if found is None else found.parameter

    def can_shard(self, node: Any) -> bool:
        parameter, whole = self.parameter(node), self.unpacked.get(node)
        parts = [parameter] if whole is None else whole.parameters
        return parameter is not None and not any(part in self.banned for part in parts)

    def sharded(self, operands: Iterable[Node]) -> list[tuple[Node, Shard]]:
        found = ((node, self.value(node).shard) for node in operands)
        return [(node, shard) for node, shard in found if shard is not None]

    def origins(self, operands: Iterable[Node]) -> tuple[Origin, ...]:
        return tuple(dict.fromkeys(o for node in operands for o in self.value(node).origins))

    def output_shard(self, weight: Node, dim: int) -> Shard:
        """The sharding of a column-parallel weight on `dim`, with the requested cuts."""
        parameter, size = self.parameter(weight), int(self.shape(weight)[dim])
        assert parameter is not None
        return self.cut_shard(parameter, dim, size)

    def cut_shard(self, parameter: Node, dim: int, size: int) -> Shard:
        """The sharding of `size` entries of `parameter`, or of a cache state, along `dim`."""
        ranges = self.whole.get(parameter, frozenset())
        ends = {0, size, *self.cuts.get(parameter, ()), *(end for pair in ranges for end in pair)}
        pieces = list(itertools.pairwise(sorted(ends)))
        whole = (i for i, (a, b) in enumerate(pieces) if any(c <= a and b <= d for c, d in ranges))
        return Shard(dim, tuple(b - a for a, b in pieces), tuple(whole))

    # -- requests

    def demand(self, weight: Node, placement: Shard, origin: Origin | None = None) -> None:
        """Shard `weight`. `origin` is given for an output dim, which may have whole parts."""
        parameter = self.parameter(weight)
        assert parameter is not None
        start = 0
        for i, length in enumerate(placement.chunks):
            if length % self.num_ranks and i not in placement.whole:
                part = origin and Origin(parameter, start, length)
                self.illegal(self.describe_size(length), [part or parameter])
            start += length
        if weight in self.unpacked:
            if self.value(weight).placement != placement:
                raise NeedsUnpacked(weight, placement, is_of_outputs=origin is not None)
            return
        found = stand_in(weight, self.parameters)
        assert found is not None
        lies = dataclasses.replace(placement, dim=found.dims[placement.dim])
        whole = wrapped(found.parameter)
        if whole is not None and (reason := refused_parts(whole, lies, self.num_ranks)):
            self.illegal(reason, [found.parameter])
        self.demands[found.parameter] = lies

    def demand_stack(self, weight: Node) -> Origin:
        """Shard a stack of weights by experts, along dim 0."""
        parameter, num_experts = self.parameter(weight), int(self.shape(weight)[0])
        assert parameter is not None
        self.stacks.divided.add(parameter)
        if num_experts % self.num_ranks:
            self.illegal(self.describe_size(num_experts, "experts"), [parameter])
        self.demand(weight, Shard(0, (num_experts,)))
        return Origin(parameter, 0, num_experts)

    @property
    def unpacks(self) -> bool:
        """Whether the node computes a weight."""
        return any(self.node in whole.nodes for whole in self.unpacked.values())

    def describe_size(self, size: Any, unit: str = "entries") -> str:
        return f"{size} {unit} cannot be divided over {self.num_ranks} ranks"

    def enter(self, operand: Node, selection: RowSelection | None = None) -> None:
        self.entries[operand] = selection

    def enter_weight(self, weight: Node, shard: Shard) -> None:
        """Sum the gradients of chunks that every rank holds whole, see `Whole`."""
        self.mixed[weight] = shard

    def share(self, operand: Node) -> None:
        """Divide a replicated `operand` by the number of ranks, to sum it with a partial value."""
        self.enter(operand)
        self.shared.add(operand)

    def select(self, operand: Node, dim: int, shard: Shard) -> None:
        """Select each rank's part of a replicated operand along `dim`, according to `shard`."""
        parts = [local_indices(shard, rank, self.num_ranks) for rank in range(self.num_ranks)]
        rows = tuple(tuple(i for part in ranges for i in part) for ranges in parts)
        self.enter(operand, RowSelection(dim, rows, 0 if shard.outer == 1 else shard.size))

    def align(self, operand: Node, dim_from_right: int, shard: Shard) -> None:
        """Match a replicated `operand` to values sharded like `shard` on `dim_from_right` (< 0)."""
        shape = self.shape(operand)
        dim = len(shape) + dim_from_right
        if dim < 0 or shape[dim] == 1:
            self.enter(operand)
        elif shard.inner != 1:
            self.illegal(f"{self.op_name} separates entries of a merged dim")
        elif self.can_shard(operand) and shard.outer == 1:
            self.demand(operand, dataclasses.replace(shard, dim=dim))
            if shard.whole:
                self.enter_weight(operand, dataclasses.replace(shard, dim=dim))
        else:
            self.select(operand, dim, shard)

    def meet(self, operands: Sequence[Node], mixed_dims: Iterable[int] = ()) -> Value:
        """Broadcast `operands`, which must be sharded on one dim; replicated ones are aligned.

        `mixed_dims` are the (negative) dims of the result along which the op mixes entries.
        """
        sharded = self.sharded(operands)
        if not sharded:
            return REPLICATED
        mixed = [node for node, s in sharded if s.dim - len(self.shape(node)) in mixed_dims]
        if mixed:
            reason = f"{self.op_name} mixes entries of the sharded dim"
            self.illegal(reason, self.origins(mixed))
        dims = {shard.dim - len(self.shape(node)) for node, shard in sharded}
        if len(dims) > 1:
            self.illegal(f"{self.op_name} takes operands sharded on different dims")
        dim = dims.pop()
        shard = self.common_shard(sharded)
        inside = {node for node, _ in sharded}
        for node in operands:
            if node not in inside:
                self.align(node, dim, shard)
        ndim = max(len(self.shape(node)) for node in operands)
        return Value(dataclasses.replace(shard, dim=ndim + dim), self.origins(inside))

    def rewrite(
        self, args: Sequence[Any], target: Any = None, kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.args, self.kwargs = tuple(args), kwargs
        self.target = target or self.node.target

    def set_argument(self, index: int, value: Any) -> None:
        if index >= len(self.node.args):
            self.illegal(f"{self.op_name} gives by keyword an argument that must be divided")
        self.rewrite([value if i == index else arg for i, arg in enumerate(self.node.args)])

    # -- refusing

    def illegal(self, reason: str, culprits: Iterable[Node | Origin] | None = None) -> NoReturn:
        """Refuse. By default, the culprits are the origins of all sharded inputs."""
        if culprits is None:
            known = [self.values.get(node) for node in self.operands()]
            culprits = [o for value in known if isinstance(value, Value) for o in value.origins]
        raise Illegal(reason, culprits)

    def common_shard(self, sharded: Sequence[tuple[Node, Shard]]) -> Shard:
        """The common sharding of the operands, except for the dim; requests cuts if they differ."""
        first = sharded[0][1]
        lies = {(s.chunks, s.whole, s.outer, s.inner) for _, s in sharded}
        if len(lies) == 1:
            return first
        if len({(shard.outer, shard.inner) for _, shard in sharded}) > 1:
            self.illegal(f"{self.op_name} takes operands sharded in different ways")
        cuts = frozenset(cut for _, shard in sharded for cut in inner_cuts(shard.chunks))
        coarse = [node for node, shard in sharded if not cuts <= inner_cuts(shard.chunks)]
        raise self.needs_cuts(coarse or [node for node, _ in sharded], cuts)

    def needs_cuts(self, operands: Iterable[Node], cuts: frozenset[int]) -> NeedsCuts:
        """Translate `cuts` of the operands' sharded dim to cuts of its origins."""
        wanted: dict[Node, frozenset[int]] = {}
        for node in operands:
            value = self.value(node)
            assert value.shard is not None
            for origin in value.origins:
                scale, rest = divmod(origin.length, value.shard.size)
                if rest or not scale:
                    self.illegal(f"{self.op_name} divides a dim that cannot be traced to a weight")
                starts = (origin.start + i * origin.length for i in range(origin.repeats))
                moved = {start + cut * scale for start in starts for cut in cuts}
                known = self.cuts.get(origin.parameter, frozenset())
                wanted[origin.parameter] = wanted.get(origin.parameter, known) | moved
        if all(wanted[p] == self.cuts.get(p, frozenset()) for p in wanted):
            self.illegal(f"{self.op_name} needs chunks that its inputs do not have")
        return NeedsCuts(wanted)

    @property
    def op_name(self) -> str:
        return op_name(self.node)


def is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def op_name(node: Node) -> str:
    name = str(node.target)
    path = module_path(node)
    return f"{name} in {path}" if path else name


def packet(node: Node) -> Any:
    """`aten.view` for `aten.view.default`; for ops outside of `aten`, the name."""
    found = getattr(node.target, "overloadpacket", node.target)
    return found if getattr(node.target, "namespace", "aten") == "aten" else str(found)
