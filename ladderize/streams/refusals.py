"""Reasons why a stream cannot be rewritten or a graph has none, each with its location.

y1 = x1 + f(x2);  y2 = x2 + g(y1)      reversible: two streams, each in the other's branch
x1 = (1 - t(x0)) * x0 + t(x0) * h      highway: the skip path mixes
x2 = x1 + h(x1, x0)                    dense: a branch reads two stream values
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch.distributed.tensor import DTensor
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.higher_order import bodies
from ladderize.graph.ops import Kind
from ladderize.graph.writes import written_operands
from ladderize.streams.block import Block, Stream
from ladderize.streams.candidates import find_candidates, flatten
from ladderize.streams.choose import by_default
from ladderize.streams.context import AnalysisContext
from ladderize.streams.hidden_sums import find_hidden_sums
from ladderize.streams.joins import StaleReads
from ladderize.streams.left_out import Connectivity


def find_blockers(
    context: AnalysisContext, blocks: Sequence[Block], by_add: Mapping[Node, Block]
) -> tuple[Blocker, ...]:
    """The reasons why rewriting the stream of `blocks` would be wrong."""
    found = [
        *_find_gates(context, blocks),
        *_find_overwrites(context, blocks),
        *_find_reads_behind(context, blocks),
    ]
    for segment in {block.segment for block in blocks}:
        anchors = {block.anchor: block for block in blocks if block.segment == segment}
        for block in anchors.values():
            for node in block.branch:
                found += _find_foreign_reads(context, block, node, anchors, by_add)
    return tuple(found)


def _find_gates(context: AnalysisContext, blocks: Sequence[Block]) -> Iterator[Blocker]:
    for block in blocks:
        if context.branch(block.anchor, [block.skip]) is not None:
            what = (
                f"the skip path of block {block.index} is gated by a mixing op on the stream, "
                "as in a highway network: it does not carry the stream past the branch"
            )
            yield Blocker.at(block.add, what)


def _find_reads_behind(context: AnalysisContext, blocks: Sequence[Block]) -> Iterator[Blocker]:
    """Reads between two blocks of a value that a branch computes from the stream by cheap ops.

    The value becomes as stale as its branch, but nodes between the blocks need the fresh stream.
    """
    inside = {
        node: block
        for block in blocks
        for node, is_mixed in context.reach(block.anchor, block.outputs).items()
        if node is not block.anchor and not is_mixed
    }
    branches = {node for block in blocks for node in block.branch}
    sums = {node for block in blocks for node in (*block.partial_sums, block.add)}
    for block, following in itertools.pairwise(blocks):
        start = context.position[block.anchor]
        between = context.ancestors([following.anchor], start, stop=branches)
        for node in sorted(between - sums, key=context.position.__getitem__):
            for source in context.sources[node]:
                if source in inside:
                    what = (
                        f"what follows block {block.index} reads {source} of the branch of block "
                        f"{inside[source].index}, which would be stale too; compute it separately"
                    )
                    yield Blocker.at(node, what)


def _find_foreign_reads(
    context: AnalysisContext,
    block: Block,
    node: Node,
    anchors: Mapping[Node, Block],
    by_add: Mapping[Node, Block],
) -> Iterator[Blocker]:
    other = by_add.get(node)
    if (
        other is not None
        and other.anchor not in block.members | {block.anchor}
        and other.anchor not in context.static  # a state that starts from zeros in each branch
    ):
        what = f"the branch of block {block.index} holds a second residual stream"
        yield Blocker.at(node, what + ", as in a reversible network")
    for source in node.all_input_nodes:
        if source in block.members or source in context.static or context.shape[source] is None:
            continue
        read = next((anchors[v] for v in context.walk_back(source) if v in anchors), block)
        if read is not block:
            what = (
                f"block {block.index} also reads the stream before block {read.index}: "
                "a dense connection, or a model that is already a ladder"
            )
            yield Blocker.at(node, what)


def _find_overwrites(context: AnalysisContext, blocks: Sequence[Block]) -> Iterator[Blocker]:
    stream = {s for block in blocks for n in (block.anchor, block.add) for s in ops.storages(n)}
    for node in context.nodes:
        written = {s for base in written_operands(node) for s in ops.storages(base)}
        if not stream.isdisjoint(written):
            what = (
                f"{ops.op_name(node)} writes a stream value in place that a graph input or "
                "another view shares; write x = x + h, or clone the input first"
            )
            yield Blocker.at(node, what)


# Ops that run a whole layer, and how to run the layer as separate ops.
FUSED_LAYERS: Mapping[str, str] = {
    "_transformer_encoder_layer_fwd": "a fused encoder layer hides 2 blocks; switch it off with "
    "torch.backends.mha.set_fastpath_enabled(False)"
}


def find_hidden(context: AnalysisContext, inside: Collection[Node]) -> list[Blocker]:
    """The calls outside of all branches that hold blocks: in subgraphs, or fused.

    Args:
        inside: nodes of all branches.
    """
    found = []
    for node in context.nodes:
        if ops.op_name(node) in FUSED_LAYERS:
            found.append(Blocker.at(node, FUSED_LAYERS[ops.op_name(node)]))
        hidden = 0 if node in inside or node in context.static else count_hidden(context.gm, node)
        if hidden:
            found.append(Blocker.at(node, f"{ops.op_name(node)} hides {hidden} blocks in its body"))
    return found


def count_hidden(gm: GraphModule, node: Node) -> int:
    """Number of residual sums in the bodies of a higher-order call, at any depth."""
    return sum(
        len(find_candidates(AnalysisContext(body)).blocks)
        + sum(count_hidden(body, inner) for inner in body.graph.nodes)
        for body in bodies(gm, node)
    )


def refuse_unfit(context: AnalysisContext, streams: Sequence[Stream]) -> None:
    """Raise `LadderError` if there is nothing to convert or a stream cannot be rewritten.

    A stream that is already a ladder is not refused; it stays unchanged.
    """
    inside = {node for s in streams for block in s.blocks for node in block.branch}
    if hidden := find_hidden(context, inside):
        raise LadderError(
            "These calls hold blocks that cannot be rewritten:",
            hidden,
            "call the layers themselves instead of the higher-order op around them",
        )
    if hidden := list(find_hidden_sums(context, inside)):
        raise LadderError(
            "These unknown ops may add to the residual stream:",
            hidden,
            "describe them with `ladderize.graph.engine_ops.understand`, or switch them off in the "
            "engine",
        )
    if not any(stream.blocks for stream in streams):
        raise LadderError(
            "No residual block was found in this graph: no value is added to what a linear, a "
            "convolution, an attention or the like computes from it.",
            explain_absence(context),
            cure="compile the whole model, with fullgraph=True; options={'strict': False} "
            "compiles the standard graph",
        )
    standard = [stream for stream in streams if not stream.stale_blocks]
    blockers = [blocker for stream in standard for blocker in stream.blockers]
    if blockers:
        raise LadderError("This residual stream cannot be made a ladder:", blockers)
    if standard == list(streams) and not any(_can_read_earlier(stream) for stream in streams):
        raise LadderError(
            "Need at least two consecutive blocks, so that one can read the stream earlier:",
            [Blocker.at(block.add, "a single block") for s in streams for block in s.blocks],
            "compile the whole model",
        )


def _can_read_earlier(stream: Stream) -> bool:
    return bool(StaleReads.of(stream, by_default(stream), Connectivity()).left_out())


# ---- a graph without a block -----------------------------------------------------------------

MAX_REASONS = 8


def explain_absence(context: AnalysisContext) -> list[Blocker]:
    """Up to 8 sums and cats of a graph that resemble a residual block, and why they are not one."""
    found: list[Blocker] = []
    for node in context.nodes:
        if reason := _why_no_block(context, node):
            found.append(Blocker.at(node, reason))
    return found[:MAX_REASONS]


def _why_no_block(context: AnalysisContext, node: Node) -> str:
    if ops.op_name(node) in ("cat", "concat", "concatenate"):
        return _dense(context, node)
    if ops.kind(node) is not Kind.ADD or context.shape[node] is None:
        return ""
    summands = flatten(context, node)[0] or node.all_input_nodes  # for a sum that broadcasts
    leaves = [leaf for leaf in summands if leaf not in context.static]
    for skip in leaves:
        others = [leaf for leaf in leaves if leaf is not skip]
        for value in context.walk_back(skip):
            if ops.kind(value) is Kind.MIX and _is_made_from_sources(context, value, others):
                return (
                    f"a sum whose skip path goes through {ops.op_name(value)}: a projected "
                    "shortcut, or hyper-connections that mix several streams"
                )
            if any(context.branch(value, [other]) is not None for other in others):
                return (
                    "a sum of a branch and several stream values: hyper-connections, or another "
                    "mixture of more than one stream"
                )
    return ""


def _is_made_from_sources(context: AnalysisContext, value: Node, others: Sequence[Node]) -> bool:
    sources = [source for source in value.all_input_nodes if source not in context.static]
    return any(context.branch(source, [o]) is not None for source in sources for o in others)


def _dense(context: AnalysisContext, node: Node) -> str:
    operands = [o for o in node.all_input_nodes if o not in context.static and context.shape[o]]
    for kept in operands:
        grown = [operand for operand in operands if operand is not kept]
        if grown and context.branch(kept, grown[-1:]) is not None:
            return (
                "a concatenation of an earlier value with one computed from it: dense "
                "connections keep every value and sum no stream"
            )
    return ""


def refuse_wrapped(parameters: Mapping[str, Any], takes_quantized: bool = False) -> None:
    """Raise `LadderError` for weights that are wrapper subclasses of several tensors.

    Args:
        parameters: parameters by name.
        takes_quantized: whether to accept quantized weights (values with scales), but not DTensors.
    """
    wrapped = [
        Blocker(f"{name} is a {type(value).__name__} of {type(value).__module__.partition('.')[0]}")
        for name, value in parameters.items()
        if compat.is_wrapper_subclass(value) and (isinstance(value, DTensor) or not takes_quantized)
    ]
    if wrapped:
        raise LadderError(
            "These weights cannot be sharded because they are not plain tensors:",
            wrapped,
            "compile quantized models with mesh=; if weights are DTensors already, leave out mesh=",
        )
