"""Why a stream must be left alone, and why a graph has none: each reason with its place.

y1 = x1 + f(x2);  y2 = x2 + g(y1)      reversible: two streams, each in the other's branch
x1 = (1 - t(x0)) * x0 + t(x0) * h      highway: the skip path mixes
x2 = x1 + h(x1, x0)                    dense: a branch reads two stream values
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.higher_order import bodies
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block
from ladderize.streams.candidates import find_candidates, flatten
from ladderize.streams.context import Reach


def find_blockers(
    reach: Reach, blocks: Sequence[Block], by_add: Mapping[Node, Block]
) -> tuple[Blocker, ...]:
    """Everything about the stream of `blocks` that a rewrite would get wrong."""
    found = [*_find_gates(reach, blocks), *_find_overwrites(reach, blocks)]
    for segment in {block.segment for block in blocks}:
        anchors = {block.anchor: block for block in blocks if block.segment == segment}
        for block in anchors.values():
            for node in block.branch:
                found += _find_foreign_reads(reach, block, node, anchors, by_add)
    return tuple(found)


def _find_gates(reach: Reach, blocks: Sequence[Block]) -> Iterator[Blocker]:
    for block in blocks:
        if reach.branch(block.anchor, [block.skip]) is not None:
            what = (
                f"the skip path of block {block.index} is gated by what a mixing op makes of the "
                "stream, as in a highway net: it does not carry the stream past the branch"
            )
            yield Blocker.at(block.add, what)


def _find_foreign_reads(
    reach: Reach,
    block: Block,
    node: Node,
    anchors: Mapping[Node, Block],
    by_add: Mapping[Node, Block],
) -> Iterator[Blocker]:
    other = by_add.get(node)
    if other is not None and other.anchor not in block.members | {block.anchor}:
        what = f"the branch of block {block.index} holds a second residual stream"
        yield Blocker.at(node, what + ", as in a reversible net")
    for source in node.all_input_nodes:
        if source in block.members or source in reach.static or reach.shape[source] is None:
            continue
        read = next((anchors[v] for v in reach.walk_back(source) if v in anchors), block)
        if read is not block:
            what = (
                f"block {block.index} also reads the stream before block {read.index}: "
                "a dense connection, or a net that is a ladder already"
            )
            yield Blocker.at(node, what)


def _find_overwrites(reach: Reach, blocks: Sequence[Block]) -> Iterator[Blocker]:
    stream = {s for block in blocks for n in (block.anchor, block.add) for s in ops.storages(n)}
    for node in reach.nodes:
        written = {s for base in ops.written_operands(node) for s in ops.storages(base)}
        if not stream.isdisjoint(written):
            what = (
                f"{ops.op_name(node)} writes a stream value in place that a graph input or "
                "another view shares; write x = x + h, or clone the input first"
            )
            yield Blocker.at(node, what)


# Ops that run a whole layer, and how to have it run as its parts.
FUSED_LAYERS: Mapping[str, str] = {
    "_transformer_encoder_layer_fwd": "a fused encoder layer hides 2 blocks; switch it off with "
    "torch.backends.mha.set_fastpath_enabled(False)"
}


def find_hidden(gm: GraphModule, reach: Reach, blocks: Sequence[Block]) -> list[Blocker]:
    """Calls outside of all branches that hold blocks: in graphs of their own, or fused."""
    inside = {node for block in blocks for node in block.branch}
    found = []
    for node in reach.nodes:
        if ops.op_name(node) in FUSED_LAYERS:
            found.append(Blocker.at(node, FUSED_LAYERS[ops.op_name(node)]))
        hidden = 0 if node in inside or node in reach.static else count_hidden(gm, node)
        if hidden:
            found.append(Blocker.at(node, f"{ops.op_name(node)} hides {hidden} blocks in its body"))
    return found


def count_hidden(gm: GraphModule, node: Node) -> int:
    """How many residual sums the bodies of a higher-order call hold, at any depth."""
    return sum(
        len(find_candidates(Reach(body)).blocks)
        + sum(count_hidden(body, inner) for inner in body.graph.nodes)
        for body in bodies(gm, node)
    )


# ---- a graph without a block -----------------------------------------------------------------

MAX_REASONS = 8


def explain_absence(reach: Reach) -> list[Blocker]:
    """What in a graph without residual blocks looks like one, and why it is none. At most 8."""
    found: list[Blocker] = []
    for node in reach.nodes:
        if reason := _why_no_block(reach, node):
            found.append(Blocker.at(node, reason))
    return found[:MAX_REASONS]


def _why_no_block(reach: Reach, node: Node) -> str:
    if ops.op_name(node) in ("cat", "concat", "concatenate"):
        return _dense(reach, node)
    if ops.kind(node) is not Kind.ADD or reach.shape[node] is None:
        return ""
    summands = flatten(reach, node)[0] or node.all_input_nodes  # of a sum that broadcasts
    leaves = [leaf for leaf in summands if leaf not in reach.static]
    for skip in leaves:
        others = [leaf for leaf in leaves if leaf is not skip]
        for value in reach.walk_back(skip):
            if ops.kind(value) is Kind.MIX and _is_made_from_sources(reach, value, others):
                return (
                    f"a sum whose skip path goes through {ops.op_name(value)}: a projected "
                    "shortcut, or hyper-connections that mix several streams"
                )
            if any(reach.branch(value, [other]) is not None for other in others):
                return (
                    "a sum of a branch and several stream values: hyper-connections, or another "
                    "mixture of more than one stream"
                )
    return ""


def _is_made_from_sources(reach: Reach, value: Node, others: Sequence[Node]) -> bool:
    sources = [source for source in value.all_input_nodes if source not in reach.static]
    return any(reach.branch(source, [o]) is not None for source in sources for o in others)


def _dense(reach: Reach, node: Node) -> str:
    operands = [o for o in node.all_input_nodes if o not in reach.static and reach.shape[o]]
    for kept in operands:
        grown = [operand for operand in operands if operand is not kept]
        if grown and reach.branch(kept, grown[-1:]) is not None:
            return (
                "a concatenation of an earlier value with what was made of it: dense "
                "connections keep every value, no stream is summed up"
            )
    return ""


def refuse_wrapped(parameters: Mapping[str, Any]) -> None:
    """Raise `LadderError` for weights that are tensor subclasses, and so more than one tensor.

    Quantised weights are values and scales in one; no sharding rule divides both.
    """
    wrapped = [
        Blocker(f"{name} is a {type(value).__name__} of {type(value).__module__.partition('.')[0]}")
        for name, value in parameters.items()
        if compat.is_wrapper_subclass(value)
    ]
    if wrapped:
        raise LadderError(
            "These weights cannot be sharded, for they are no plain tensors:",
            wrapped,
            "shard weights that are not quantised; leave mesh= out where they are DTensors already",
        )
