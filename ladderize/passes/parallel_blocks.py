"""Let each second block of a stream read what the one before it reads, and add both at once.

    before   a1 = add(x0, h0(x0));  a2 = add(a1, h1(a1))
    after    s = add(h0(x0), h1(x0));  a2 = add(x0, s)

Attention and MLP of a layer run in parallel then, as in GPT-J and PaLM (Chowdhery et al., arXiv
2204.02311, Section 2), with one all-reduce for both: what the ladder is compared with. Pairs that
are not chained by plain sums, as in post-norm nets, are left as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.passes import PassResult
from ladderize.passes.reroute import RerouteReads
from ladderize.streams.block import Block, Stream
from ladderize.streams.joins import StaleReads


@dataclass(frozen=True)
class ParallelBlocks:
    streams: tuple[Stream, ...]
    preserves_values: ClassVar[bool] = False

    def __call__(self, gm: GraphModule) -> PassResult:
        pairs = [list(_pairs(stream)) for stream in self.streams]
        sources = [{other.index: first.index for first, other in found} for found in pairs]
        RerouteReads(tuple(map(StaleReads, self.streams, sources)))(gm)
        for found in pairs:
            for pair in found:
                _add_at_once(gm, *pair)
        return PassResult(sum(map(len, pairs)))


def _pairs(stream: Stream) -> Iterator[tuple[Block, Block]]:
    blocks = [block for block in stream.blocks if not block.is_prologue]
    for first, second in zip(blocks[::2], blocks[1::2], strict=False):
        between = _between(first.add, second.skip)
        readers = {user for node in between for user in node.users if not _is_assert(user)}
        if (
            between
            and readers - second.members - set(between) == {second.add}
            and first.segment == second.segment
            and len(first.outputs) == len(second.outputs) == 1
        ):
            yield first, second


def _between(total: Node, skip: Node) -> list[Node]:
    """From the first block's sum to what the second adds to: itself, and casts that change nothing.

    Empty where something else is in between.
    """
    path = [skip]
    while path[-1] is not total:
        (source, *others) = path[-1].all_input_nodes or (None,)
        if source is None or others or ops.op_name(path[-1]) not in _CASTS:
            return []
        if _dtype(source) != _dtype(skip):
            return []
        path.append(source)
    return path


_CASTS = frozenset({"to", "_to_copy", "alias", "float", "type_as"})


def _dtype(node: Node) -> Any:
    return getattr(ops.value(node), "dtype", None)


def _is_assert(node: Node) -> bool:
    return ops.op_name(node).startswith("_assert")


def _add_at_once(gm: GraphModule, first: Block, second: Block) -> None:
    (out,), (other,) = first.outputs, second.outputs
    between = _between(first.add, second.skip)
    with gm.graph.inserting_before(second.add):
        both = gm.graph.node_copy(first.add, lambda node: node)
    both.args = (out, other)
    second.add.replace_input_with(other, both)
    second.add.replace_input_with(second.skip, first.skip)
    for node in between:
        for user in list(node.users):  # what nobody reads is a sum no more
            gm.graph.erase_node(user)
        gm.graph.erase_node(node)
