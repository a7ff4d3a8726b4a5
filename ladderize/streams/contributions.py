"""What each block adds to its stream: what is in flight when the next block reads, and the rest.

    x4 = x3 + (routed + shared)       in flight: routed        landed: shared

In flight are the routed experts. They are known by the patterns of module paths that the user
gives; else by their operations: a router's choice, and products behind it. In a model without
either, what comes off a collective is in flight.
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
    """What a block adds to its stream.

    Attributes:
        block: the block.
        in_flight, landed: its summands.
        has_experts: whether it dispatches to experts, which may begin before the block ahead is
            done.
    """

    block: Block
    in_flight: tuple[Summand, ...]
    landed: tuple[Summand, ...]
    has_experts: bool

    @property
    def is_split(self) -> bool:
        """Whether a part of it is in flight, not all."""
        return bool(self.in_flight and self.landed)


Contributions = Mapping[Block, Contribution]


def find_contributions(
    context: AnalysisContext, streams: Sequence[Stream], config: LadderConfig
) -> dict[Block, Contribution]:
    """The contribution of each block; empty where `connectivity` is "ladder".

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
            'name the experts with routed="*.mlp.experts"; for a model without experts take '
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
    """Those behind a router's choice of experts."""

    def is_routed(each: Summand) -> bool:
        kind = kind_behind(context.gm, each.value, each.block.members, context.static)
        return kind == MOE

    return {summand for summand in _all(summands) if is_routed(summand)}


def _named(summands: _Summands, patterns: Sequence[str]) -> set[Summand]:
    """Those that a module of one of the `patterns` takes part in."""
    paths = {each: {module_path(node) for node in each.nodes} for each in _all(summands)}
    everywhere = {path for own in paths.values() for path in own}
    unmatched = [p for p in patterns if not any(_is_in(path, p) for path in everywhere)]
    if unmatched:
        raise LadderError(
            "These patterns of routed= match no module of a branch:",
            [Blocker(repr(pattern)) for pattern in unmatched],
            "give the path of the experts as `explain` shows it, with * for the number of the "
            'layer: "model.layers.*.mlp.experts"',
        )
    return {s for s, own in paths.items() if any(_is_in(p, each) for p in own for each in patterns)}


def _is_in(path: str, pattern: str) -> bool:
    """Whether `path` is that of a module of the `pattern`, or of one inside."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def _by_collectives(context: AnalysisContext, summands: _Summands) -> dict[Block, Contribution]:
    moving = {each for each in _all(summands) if _comes_off_collective(context, each)}
    return {
        block: _contribution(block, own, moving, has_experts=_dispatches(context, block))
        for block, own in summands.items()
    }


def _comes_off_collective(context: AnalysisContext, summand: Summand) -> bool:
    """Whether cheap steps alone lead to it from a collective in its branch."""
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
    """Whether an all-to-all takes values to experts of other ranks."""
    return any("all_to_all" in op for node in block.branch for op in launched(context, node))


def launched(context: AnalysisContext, node: Node) -> list[str]:
    """The collectives of the forward pass that `node` launches."""
    found = (op for op, _ in launched_by_call(context.gm, node))
    return [op for op in found if not op.endswith(BACKWARD)]


def brought(context: AnalysisContext, block: Block) -> tuple[str, ...]:
    """The collectives in a branch whose results it computes with, as experts do with tokens.

    They may run behind a block that the branch leaves out.
    """
    behind: dict[Node, set[Node]] = {}  # of what is made of their results, the launches
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
