"""Distinguish a stale block from half of a parallel block with the same graph, by their modules.

    x1 = x0 + h0(x0);  x2 = x1 + h1(x0)      nothing else reads x1

This may be one parallel block, `attention(x0) + mlp(x0)`. It is two blocks, the second one stale,
if branches of the same modules (in other layers) are added separately elsewhere in the stream.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from torch.fx import Node

from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, module_path
from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block, Stream
from ladderize.streams.context import AnalysisContext
from ladderize.streams.layers import layer_indices

BranchKind = tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """A run of a block's sums, starting at the skip, with the values that they add."""

    sums: tuple[Node, ...]
    outputs: tuple[Node, ...]
    kind: BranchKind


def separate_stale_halves(context: AnalysisContext, stream: Stream) -> Stream:
    """`stream` with falsely parallel blocks split into a block and the stale blocks after it."""
    blocks = (*stream.blocks, *stream.stale_blocks)
    if not any(block.partial_sums for block in blocks):
        return stream
    known = _known_kinds(context, blocks)
    parts = {block: _separate(context, block, known) for block in blocks if block.partial_sums}
    halves = {block: found for block, found in parts.items() if len(found) > 1}
    stale = [block for block in stream.stale_blocks if block not in halves]
    for block, (first, *behind) in halves.items():
        stale += behind if block in stream.blocks else [first, *behind]
    return replace(
        stream,
        blocks=tuple(halves[block][0] if block in halves else block for block in stream.blocks),
        stale_blocks=tuple(sorted(stale, key=lambda block: context.position[block.add])),
    )


def refuse_undecided(
    context: AnalysisContext, streams: Sequence[Stream], config: LadderConfig
) -> None:
    """Raise `LadderError` for parallel blocks that may also be a block and a stale block.

    These have some, but not all, branches that are separate blocks elsewhere, unless
    `expect_blocks=` is set. If layers are chosen, blocks with branches of several layers are
    refused too.
    """
    found: list[Blocker] = []
    for stream in streams:
        if not any(block.partial_sums for block in stream.blocks):
            continue
        known = _known_kinds(context, stream.blocks)
        parts = {b: _blocks_of(context, b, _parts(context, b)) or [b] for b in stream.blocks}
        layers = iter(layer_indices([part for own in parts.values() for part in own]))
        for block, own in parts.items():
            those = sorted({layer for layer in islice(layers, len(own)) if layer is not None})
            alone = [part for part in own if _kind(context, part, part.outputs) in known]
            what = f"block {block.index} adds several branches at once, "
            if len(those) > 1 and config.layers is not None:
                found.append(Blocker.at(block.add, f"{what}of layers {those}"))
            elif len(own) > 1 and alone and config.expect_blocks is None:
                found.append(Blocker.at(block.add, f"{what}one of which is a block elsewhere"))
    if found:
        raise LadderError(
            "These blocks are either parallel or already stale in part:",
            found,
            "for parallel blocks, count each as one with expect_blocks= and choose with blocks=; "
            "for stale ones, convert the standard model",
        )


def _known_kinds(context: AnalysisContext, blocks: Iterable[Block]) -> set[BranchKind]:
    return {kind for block in blocks if all(kind := _kind(context, block, block.outputs))}


def _separate(context: AnalysisContext, block: Block, known: set[BranchKind]) -> list[Block]:
    """The blocks that `block` is the sum of; empty if it is a single block."""
    return _blocks_of(context, block, _known_parts(_parts(context, block), known))


def _blocks_of(context: AnalysisContext, block: Block, parts: Sequence[_Part]) -> list[Block]:
    """The parts as blocks; empty if they share nodes."""
    branches = [_branch(context, block, part.outputs) for part in parts]
    if not all(branches) or sum(map(len, branches)) > len(frozenset().union(*branches)):
        return []
    skips = (block.skip, *(part.sums[-1] for part in parts))
    return [
        replace(
            block,
            skip=skip,
            branch=branch,
            outputs=part.outputs,
            add=part.sums[-1],
            partial_sums=part.sums[:-1],
            module=module_path(part.sums[-1]),
        )
        for part, branch, skip in zip(parts, branches, skips, strict=False)
    ]


def _parts(context: AnalysisContext, block: Block) -> list[_Part]:
    """One part for each sum from the skip to the block's add."""

    def leaves(node: Node) -> list[Node]:
        if node not in block.partial_sums:
            return [node]
        return [leaf for summand in context.summands(node) for leaf in leaves(summand)]

    found: list[_Part] = []
    value = block.skip
    while value is not block.add:
        sums = (*block.partial_sums, block.add)
        following = next((s for s in sums if value in context.summands(s)), None)
        if following is None:
            return []  # an in-place op wrote the skip
        added = (leaf for s in context.summands(following) if s is not value for leaf in leaves(s))
        outputs = tuple(leaf for leaf in added if leaf in block.outputs)
        found.append(_Part((following,), outputs, _kind(context, block, outputs)))
        value = following
    makers = [tuple(_makers(context, block, part.outputs)) for part in found]
    return found if len(set(makers)) == len(makers) else []  # else indistinguishable


def _known_parts(parts: Sequence[_Part], known: set[BranchKind]) -> list[_Part]:
    """`parts` merged to runs of `known` kinds; the last runs are as short as possible."""
    ends: dict[int, list[_Part]] = {0: []}
    for end in range(1, len(parts) + 1):
        for start in range(end - 1, -1, -1):
            run = parts[start:end]
            joined = _Part(
                tuple(s for part in run for s in part.sums),
                tuple(output for part in run for output in part.outputs),
                tuple(sorted(path for part in run for path in part.kind)),
            )
            if start in ends and joined.kind in known:
                ends.setdefault(end, [*ends[start], joined])
    return ends.get(len(parts), [])


def _kind(context: AnalysisContext, block: Block, outputs: Sequence[Node]) -> BranchKind:
    """The modules that computed `outputs`, without layer: `layers.*.mlp.down_proj`, or ""."""
    return tuple(sorted(map(_of_any_layer, _makers(context, block, outputs))))


def _makers(context: AnalysisContext, block: Block, outputs: Sequence[Node]) -> list[str]:
    """The module path of the last mixing op of each of `outputs`."""
    branches = (_branch(context, block, [output]) for output in outputs)
    mixing = ((n for n in reversed(nodes) if ops.kind(n) is Kind.MIX) for nodes in branches)
    return [next(filter(None, map(module_path, nodes)), "") for nodes in mixing]


def _of_any_layer(path: str) -> str:
    """`path` with its first index replaced by `*`. Later ones, as in `branches.1`, are kept."""
    names = path.split(".")
    layer = next((i for i, name in enumerate(names) if name.isdecimal()), None)
    return ".".join("*" if i == layer else name for i, name in enumerate(names))


def _branch(context: AnalysisContext, block: Block, outputs: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes from the anchor to `outputs`, including skips inside the branch."""
    return tuple(n for n in context.reach(block.anchor, outputs) if n is not block.anchor)
