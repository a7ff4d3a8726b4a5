"""What a sharding rule sees of one node, and what it may ask for.

A rule reads the placements of the node's inputs through a `Visit`, asks for what it needs (a weight
divided in a certain way, a slice of a replicated operand, another size in a view), and returns the
placement of the result. It changes nothing itself. When the inputs cannot be had as they are, it
raises one of the three signals below and is visited again after the change.
"""

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch.fx import Node

from ladderize.errors import module_path
from ladderize.placement import Partial, Placement, Replicate, Shard, local_indices


class Illegal(Exception):
    """No rule, or it cannot hold: the `culprits` (parameters) must not be divided.

    `is_consequence`: the branch was left without its other half; some other ban is the cause.
    """

    def __init__(self, reason: str, culprits: Iterable[Node], is_consequence: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_consequence = is_consequence
        self.culprits = tuple(dict.fromkeys(culprits))


class NeedsReduction(Exception):
    """A partial `value` reached an op that is not linear."""

    def __init__(self, value: Node) -> None:
        super().__init__(value.name)
        self.value = value


class NeedsCuts(Exception):
    """Parameters must be divided within finer segments: parameter -> positions of cuts."""

    def __init__(self, cuts: Mapping[Node, frozenset[int]]) -> None:
        super().__init__(cuts)
        self.cuts = cuts


@dataclass(frozen=True)
class Origin:
    """Where a sharded dim comes from: `length` entries from `start` of a parameter's output dim.

    A `length` of 0 says that positions cannot be traced back (after a `cat`).
    """

    parameter: Node
    start: int
    length: int


@dataclass(frozen=True)
class Value:
    """The placement of a tensor inside a branch.

    Attributes:
        placement: how it lies over the ranks.
        origins: sharded: the parameters whose sharding made it so.
        biases: partial: parameters to be added once, after the reduction.
    """

    placement: Placement = field(default_factory=Replicate)
    origins: tuple[Origin, ...] = ()
    biases: tuple[Node, ...] = ()

    @property
    def is_replicated(self) -> bool:
        return isinstance(self.placement, Replicate)

    @property
    def is_partial(self) -> bool:
        return isinstance(self.placement, Partial)

    @property
    def shard(self) -> Shard | None:
        return self.placement if isinstance(self.placement, Shard) else None

    def at(self, dim: int, segments: Sequence[int] | None = None) -> "Value":
        """The same sharding seen at another dim, in other units."""
        assert isinstance(self.placement, Shard)
        lengths = self.placement.segments if segments is None else tuple(segments)
        return Value(Shard(dim, lengths), self.origins)


REPLICATED = Value()
Values = Value | tuple[Value, ...]


@dataclass(frozen=True)
class Selection:
    """Entries of `dim` that each rank takes out of a replicated operand; one row a rank."""

    dim: int
    rows: tuple[tuple[int, ...], ...]


@dataclass
class Visit:
    """One evaluation of one node.

    Attributes:
        node: the node.
        values: placements of what came before it; what is missing is replicated.
        parameters: the fully qualified names of the parameter nodes.
        banned: parameters that must stay replicated.
        cuts: positions at which a parameter's output dim must be cut into segments.
        num_ranks: the number of ranks to divide over.
        demands: result: how parameters must lie.
        entries: result: replicated operands entering sharded computation, and what is selected.
        target, args: result: the rewritten call.
    """

    node: Node
    values: Mapping[Node, Values]
    parameters: Mapping[Node, str]
    banned: Container[Node]
    cuts: Mapping[Node, frozenset[int]]
    num_ranks: int
    demands: dict[Node, Placement] = field(default_factory=dict)
    entries: dict[Node, Selection | None] = field(default_factory=dict)
    target: Any = None
    args: tuple[Any, ...] | None = None

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

    def shape(self, node: Node | None = None) -> Sequence[Any]:
        shape: Sequence[Any] = (node or self.node).meta["val"].shape
        return shape

    def can_shard(self, node: Any) -> bool:
        return node in self.parameters and node not in self.banned

    def sharded(self, operands: Iterable[Node]) -> list[tuple[Node, Shard]]:
        found = ((node, self.value(node).shard) for node in operands)
        return [(node, shard) for node, shard in found if shard is not None]

    def origins(self, operands: Iterable[Node]) -> tuple[Origin, ...]:
        return tuple(dict.fromkeys(o for node in operands for o in self.value(node).origins))

    def output_segments(self, parameter: Node, size: int) -> tuple[int, ...]:
        """The segments of a column-parallel parameter: cut where somebody asked for it."""
        bounds = [0, *sorted(self.cuts.get(parameter, ())), size]
        return tuple(b - a for a, b in itertools.pairwise(bounds))

    # -- asking

    def demand(self, parameter: Node, placement: Shard) -> None:
        for length in placement.segments:
            if length % self.num_ranks:
                self.illegal(self.describe_size(length), [parameter])
        self.demands[parameter] = placement

    def describe_size(self, size: Any, unit: str = "entries") -> str:
        return f"{size} {unit} cannot be divided over {self.num_ranks} ranks"

    def enter(self, operand: Node, selection: Selection | None = None) -> None:
        self.entries[operand] = selection

    def align(self, operand: Node, dim_from_right: int, segments: tuple[int, ...]) -> None:
        """Make a replicated `operand` fit values sharded on `dim_from_right` (negative)."""
        shape = self.shape(operand)
        dim = len(shape) + dim_from_right
        if dim < 0 or shape[dim] == 1:
            self.enter(operand)
        elif self.can_shard(operand):
            self.demand(operand, Shard(dim, segments))
        else:
            parts = [
                local_indices(segments, rank, self.num_ranks) for rank in range(self.num_ranks)
            ]
            rows = tuple(tuple(i for part in ranges for i in part) for ranges in parts)
            self.enter(operand, Selection(dim, rows))

    def meet(self, operands: Sequence[Node], mixed_dims: Iterable[int] = ()) -> Value:
        """Broadcast `operands`: all sharded on one dim of the result, the others made to fit.

        `mixed_dims` (negative, of the result) are those along which the op mixes entries.
        """
        sharded = self.sharded(operands)
        if not sharded:
            return REPLICATED
        dims = {shard.dim - len(self.shape(node)) for node, shard in sharded}
        if len(dims) > 1:
            self.illegal(f"{self.op_name} takes operands sharded on different dims")
        dim = dims.pop()
        if dim in mixed_dims:
            self.illegal(f"{self.op_name} mixes entries of the sharded dim")
        segments = self.common_segments(sharded)
        inside = {node for node, _ in sharded}
        for node in operands:
            if node not in inside:
                self.align(node, dim, segments)
        ndim = max(len(self.shape(node)) for node in operands)
        return Value(Shard(ndim + dim, segments), self.origins(inside))

    def rewrite(self, args: Sequence[Any], target: Any = None) -> None:
        self.args = tuple(args)
        self.target = target or self.node.target

    def set_argument(self, index: int, value: Any) -> None:
        self.rewrite([value if i == index else arg for i, arg in enumerate(self.node.args)])

    # -- refusing

    def illegal(self, reason: str, culprits: Iterable[Node] | None = None) -> NoReturn:
        """Refuse; unless named, the culprits are the parameters behind all sharded inputs."""
        if culprits is None:
            known = [
                value
                for node in self.operands()
                if isinstance(value := self.values.get(node), Value)
            ]
            culprits = [origin.parameter for value in known for origin in value.origins]
        raise Illegal(reason, culprits)

    def common_segments(self, sharded: Sequence[tuple[Node, Shard]]) -> tuple[int, ...]:
        """The segments that all `sharded` operands have; cuts the coarser ones if they differ."""
        segments = {shard.segments for _, shard in sharded}
        if len(segments) == 1:
            return segments.pop()
        cuts = frozenset(cut for _, shard in sharded for cut in inner_cuts(shard.segments))
        raise self.needs_cuts([node for node, _ in sharded], cuts)

    def needs_cuts(self, operands: Iterable[Node], cuts: frozenset[int]) -> NeedsCuts:
        """Translate `cuts` of the operands' sharded dim into cuts of the parameters behind it."""
        wanted: dict[Node, frozenset[int]] = {}
        for node in operands:
            value = self.value(node)
            assert value.shard is not None
            for origin in value.origins:
                scale, rest = divmod(origin.length, value.shard.size)
                if rest or not scale:
                    self.illegal(f"{self.op_name} divides a dim that cannot be traced to a weight")
                moved = {origin.start + cut * scale for cut in cuts}
                known = self.cuts.get(origin.parameter, frozenset())
                wanted[origin.parameter] = wanted.get(origin.parameter, known) | moved
        if all(wanted[p] == self.cuts.get(p, frozenset()) for p in wanted):
            self.illegal(f"{self.op_name} needs segments that its inputs do not have")
        return NeedsCuts(wanted)

    @property
    def op_name(self) -> str:
        return op_name(self.node)


def inner_cuts(segments: Sequence[int]) -> frozenset[int]:
    """Where segments meet: (4, 2, 2) -> {4, 6}."""
    return frozenset(sum(segments[:i]) for i in range(1, len(segments)))


def is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def op_name(node: Node) -> str:
    name = str(node.target)
    path = module_path(node)
    return f"{name} in {path}" if path else name


def packet(node: Node) -> Any:
    """`aten.view` for `aten.view.default`."""
    return getattr(node.target, "overloadpacket", node.target)
