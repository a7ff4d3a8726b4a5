"""What a branch computes, reads and sends, in FLOPs and bytes, from the fake values of its graph.

h = linear(silu(linear(norm(x), w1)), w2)

flops           of both products; what is pointwise computes next to nothing
weight_bytes    of w1, w2 and the weight of the norm
reduce_bytes    of h, which tensor parallelism sums up over the ranks
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from ladderize import compat, ops
from ladderize.block import Block
from ladderize.ops import Kind
from ladderize.report.kinds import with_bodies
from ladderize.work import flops_of


@dataclass(frozen=True)
class Costs:
    """Of the blocks of one graph.

    Attributes:
        gm: the graph, with fake values.
        static: what depends on parameters, buffers and sizes alone.
        names: its parameters and buffers.
    """

    gm: GraphModule
    static: Collection[Node]
    names: Mapping[Node, str]

    def of(self, block: Block) -> dict[str, int | None]:
        """The cost fields of `BlockReport`; None where a size is not known before the run."""
        mixing = [n for n in with_bodies(self.gm, block.branch) if ops.kind(n) is Kind.MIX]
        computed = [t for node in mixing for t in (node, *node.all_input_nodes)]
        return {
            "flops": sum(map(flops_of, mixing)) if all(map(_is_sized, computed)) else None,
            "weight_bytes": sum(map(_num_bytes, self._weights(block))),
            "reduce_bytes": _largest(block.outputs),
        }

    def _weights(self, block: Block) -> list[torch.Tensor]:
        """Each once, through the casts and transposes that other nodes hold."""
        seen: set[Node] = set()
        stack = [source for node in block.branch for source in node.all_input_nodes]
        while stack:
            node = stack.pop()
            if node in seen or node not in self.static:
                continue
            seen.add(node)
            if node not in self.names:
                stack += node.all_input_nodes
        held = [t for n in seen if n in self.names or n.op == "get_attr" for t in ops.tensors(n)]
        return [*held, *_held_by_modules(block)]


def _held_by_modules(block: Block) -> Iterator[torch.Tensor]:
    """In a symbolically traced module the layers keep their parameters."""
    for node in block.branch:
        if node.op == "call_module":
            yield from ops.called_module(node).parameters()


def _largest(outputs: tuple[Node, ...]) -> int | None:
    """Parallel branches are summed up before they are sent, so that they count once."""
    tensors = [tensor for node in outputs for tensor in ops.tensors(node)]
    if not tensors or not all(map(_is_sized, outputs)):
        return None
    return max(map(_num_bytes, tensors))


def _num_bytes(tensor: torch.Tensor) -> int:
    return compat.hint(tensor.numel()) * tensor.element_size()


def _is_sized(node: Node) -> bool:
    """Whether the sizes of `node`'s value are those of a call, not only symbols."""
    return all(compat.has_hint(size) for tensor in ops.tensors(node) for size in tensor.shape)
