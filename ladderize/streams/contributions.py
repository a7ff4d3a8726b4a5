"""The summands of each block: those in flight when the next block reads, and those landed.

    x4 = x3 + (routed + shared)       in flight: routed        landed: shared

Routed experts are in flight. They are found by the user's module path patterns, or else by their
operations: a router's choice and the matrix products after it. In a model without routed experts,
the results of collectives are in flight.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch.fx import Node

from ladderize.config.connectivity import LADDER, patterns_of
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, module_path
from ladderize.graph import ops
from ladderize.graph.collectives import BACKWARD, LAUNCHES, is_wait, launched_by_call
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block, Stream
from ladderize.streams.branch_kinds import MOE, kind_behind
from ladderize.streams.context import AnalysisContext
from ladderize.streams.summands import Summand, is_sum_of_summands, summands_of


@dataclass(frozen=True, eq=False)
class Contribution:
    """The summands that a block adds to its stream.

    Attributes:
        block: the block.
        in_flight, landed: summands of the block.
        has_experts: whether it dispatches to experts. The dispatch may start before the previous
            block is done.
    """

    block: Block
    in_flight: tuple[Summand, ...]
    landed: tuple[Summand, ...]
    has_experts: bool

    @property
    def is_split(self) -> bool:
        """Whether some summands are in flight and some have landed."""
        return bool(self.in_flight and self.landed)


Contributions = Mapping[Block, Contribution]


def find_contributions(
    context: AnalysisContext, streams: Sequence[Stream], config: LadderConfig
) -> dict[Block, Contribution]:
    """The contribution of each block; empty if `connectivity` is "ladder".

    Raises:
        LadderError: nothing is in flight, or a pattern of `routed=` matches nothing.
    """
    if config.connectivity == LADDER:
        return {}
    blocks = [block for stream in streams for block in stream.blocks]
    summands = {block: summands_of(block) for block in blocks}
    patterns = patterns_of(config.routed)
    routed = _named(summands, patterns) if patterns else _by_router(context, summands)
    found = {
        block: _contribution(block, own, routed, has_experts=not routed.isdisjoint(own))
        for block, own in summands.items()
    }
    if not routed:
        found = _by_collectives(context, summands)
    if not any(contribution.in_flight for contribution in found.values()):
        raise LadderError(
            f"Nothing is in flight that connectivity={config.connectivity!r} could leave out:",
            [Blocker("no block has routed experts, and the model launches no collective")],
            'name the experts with routed="*.mlp.experts"; for a model without experts use '
            "connectivity='ladder'",
        )
    return found


def _contribution(
    block: Block, own: Sequence[Summand], moving: Collection[Summand], *, has_experts: bool
) -> Contribution:
    in_flight = tuple(summand for summand in own if summand in moving)
    landed = tuple(summand for summand in own if summand not in moving)
    if in_flight and not is_sum_of_summands(block):
        return Contribution(block, tuple(own), (), has_experts)
    return Contribution(block, in_flight, landed, has_experts)


# ---- which summands are in flight --------------------------------------------------------------

_Summands = Mapping[Block, tuple[Summand, ...]]


def _by_router(context: AnalysisContext, summands: _Summands) -> set[Summand]:
    """The summands computed by experts that a router chooses."""

    def is_routed(each: Summand) -> bool:
        kind = kind_behind(context.gm, each.value, each.block.members, context.static)
        return kind == MOE

    return {summand for summand in _all(summands) if is_routed(summand)}


def _named(summands: _Summands, patterns: Sequence[str]) -> set[Summand]:
    """The summands that modules matching `patterns` take part in."""
    paths = {each: {module_path(node) for node in each.nodes} for each in _all(summands)}
    everywhere = {path for own in paths.values() for path in own}
    unmatched = [p for p in patterns if not any(_is_in(path, p) for path in everywhere)]
    if unmatched:
        raise LadderError(
            "These patterns of routed= match no module of a branch:",
            [Blocker(repr(pattern)) for pattern in unmatched],
            "use the path of the experts that `explain` shows, with * for the layer index: "
            '"model.layers.*.mlp.experts"',
        )
    return {s for s, own in paths.items() if any(_is_in(p, each) for p in own for each in patterns)}


def _is_in(path: str, pattern: str) -> bool:
    """Whether the module `path` matches `pattern`, or is inside one that does."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def _by_collectives(context: AnalysisContext, summands: _Summands) -> dict[Block, Contribution]:
    moving = {each for each in _all(summands) if _comes_off_collective(context, each)}
    return {
        block: _contribution(block, own, moving, has_experts=_dispatches(context, block))
        for block, own in summands.items()
    }


def _comes_off_collective(context: AnalysisContext, summand: Summand) -> bool:
    """Whether a summand is the result of a collective in its branch, up to cheap steps."""
    seen: set[Node] = set()
    stack = [summand.value]
    while stack:
        node = stack.pop()
        if node in seen or node not in summand.block.members:
            continue
        seen.add(node)
        if launched(context, node):
            return True
        if ops.kind(node) in (Kind.CHEAP, Kind.LAYOUT, Kind.ADD):
            stack.extend(node.all_input_nodes)
    return False


def _dispatches(context: AnalysisContext, block: Block) -> bool:
    """Whether the branch has an all-to-all, which sends tokens to the experts of other ranks."""
    return any("all_to_all" in op for node in block.branch for op in launched(context, node))


def launched(context: AnalysisContext, node: Node) -> list[str]:
    """The collectives of the forward pass that `node` launches."""
    found = (op for op, _ in launched_by_call(context.gm, node))
    return [op for op in found if not op.endswith(BACKWARD)]


def brought(context: AnalysisContext, block: Block) -> tuple[str, ...]:
    """The collectives whose results the branch itself uses, as experts use dispatched tokens.

    They can be hidden by a block that the branch leaves out.
    """
    behind: dict[Node, set[Node]] = {}  # for each value, the launches that it is computed from
    computed_with: dict[Node, None] = {}
    for node in block.branch:
        launches = set().union(*(behind.get(source, ()) for source in node.all_input_nodes))
        if any(op in LAUNCHES for op in launched(context, node)):
            launches = {node}
        elif ops.kind(node) is Kind.MIX and not is_wait(node):
            computed_with |= dict.fromkeys(launches)
            launches = set()
        behind[node] = launches
    return tuple(op for node in computed_with for op in launched(context, node))


def _all(summands: _Summands) -> Iterable[Summand]:
    return (summand for own in summands.values() for summand in own)
