"""Find the blocks that become parallel: those of one layer, each adding to the previous sum.

    x1 = x0 + h0(x0);  x2 = x1 + h1(x1);  x3 = x2 + h2(x2)       h0, h1 of layer 0, h2 of layer 1
    parallel                              h1 reads x0 like h0; h2 reads x2

Layers are those of the module list; blocks outside of a list form layers of two. If a norm is
between the sums (post-norm), the branches of a layer are not summands of one sum.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence

from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block

BLOCKS_OF_A_LAYER = 2
"""Number of blocks in a layer outside of any module list: an attention and an MLP."""
_CASTS = frozenset({"to", "_to_copy", "alias", "float", "type_as"})


def layer_sources(blocks: Sequence[Block], chosen: Collection[int]) -> dict[int, int]:
    """For each chosen block that is parallel to earlier ones, the index of the first of these.

    Args:
        blocks: blocks of one stream, in order.
        chosen: indices of the blocks to convert.
    """
    return {
        block.index: first.index
        for first, *others in _layers(blocks, are_summands=True)
        for block in others
        if block.index in chosen
    }


def normed_sums(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks that do not add directly to the previous sum of their layer."""
    for layer in _layers(blocks, are_summands=False):
        for before, block in itertools.pairwise(layer):
            if not _adds_to(before, block):
                yield block


def _layers(blocks: Sequence[Block], *, are_summands: bool) -> Iterator[list[Block]]:
    layer: list[Block] = []
    for block in blocks:
        is_next = layer and _is_of(layer, block)
        if is_next and (not are_summands or _adds_to(layer[-1], block)):
            layer.append(block)
            continue
        if layer:
            yield layer
        layer = [block]
    if layer:
        yield layer


def _is_of(layer: Sequence[Block], block: Block) -> bool:
    first = layer[0]
    if first.is_prologue or (first.segment, first.layer) != (block.segment, block.layer):
        return False
    return block.layer is not None or len(layer) < BLOCKS_OF_A_LAYER


def _adds_to(before: Block, block: Block) -> bool:
    """Whether `block` adds to the sum of `before` itself, in any layout."""
    node = block.skip
    while node is not before.add:
        sources = [source for source in node.all_input_nodes if ops.holds_tensor(source)]
        if len(sources) != 1 or not _keeps_value(node, sources[0]):
            return False
        node = sources[0]
    return True


def _keeps_value(node: Node, source: Node) -> bool:
    is_cast = ops.op_name(node) in _CASTS
    return ops.kind(node) is Kind.LAYOUT or (is_cast and _dtype(node) == _dtype(source))


def _dtype(node: Node) -> object:
    return getattr(ops.value(node), "dtype", None)
