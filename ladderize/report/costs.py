"""Costs of a branch in FLOPs and bytes, from the fake values of its graph.

h = linear(silu(linear(norm(x), w1)), w2)

flops             of both products; pointwise ops are negligible
weight_bytes      of w1, w2 and the weight of the norm
reduce_bytes      of h, which tensor parallelism all-reduces

h = linear(attention(q, k, v), w)

attention_flops   of products of two computed values: proportional to queries times keys
cache_bytes       of k and v before heads are repeated: the size of a KV cache
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.graph import ops
from ladderize.graph.flops import flops_of
from ladderize.graph.ops import Kind
from ladderize.report.data import Outside
from ladderize.streams.block import Block
from ladderize.streams.branch_kinds import is_fused_attention, multiplies_values, with_bodies


@dataclass(frozen=True)
class Costs:
    """Computes the costs of the blocks of one graph.

    Attributes:
        gm: the graph, with fake values.
        static: nodes that depend only on parameters, buffers and sizes.
        names: nodes of its parameters and buffers.
    """

    gm: GraphModule
    static: Collection[Node]
    names: Collection[Node]

    def of(self, block: Block) -> dict[str, int | None]:
        """The cost fields of `BlockReport`; None if a size is not known before the run."""
        mixing = self._mixing(block.branch)
        attending = [node for node in mixing if self._attends(node)]
        return {
            "flops": _flops(mixing),
            "weight_bytes": self._weight_bytes(block.branch),
            "reduce_bytes": _largest(block.outputs),
            "attention_flops": _flops(attending),
            "cache_bytes": _cache_bytes(attending),
        }

    def outside(self, blocks: Iterable[Block]) -> Outside:
        """Costs outside `blocks`: last norm and head, without the embedding, which is a lookup."""
        inside = {node for block in blocks for node in block.branch}
        rest = [n for n in self.gm.graph.nodes if n not in inside and n not in self.static]
        rest = [node for node in rest if ops.op_name(node) != "embedding"]
        return Outside(_flops(self._mixing(rest)), self._weight_bytes(rest))

    def _mixing(self, nodes: Iterable[Node]) -> list[Node]:
        return [node for node in with_bodies(self.gm, nodes) if ops.kind(node) is Kind.MIX]

    def _attends(self, node: Node) -> bool:
        """Whether `node` multiplies two computed values: queries and keys, or scores and values."""
        return is_fused_attention(node) or multiplies_values(node, self.static)

    def _weight_bytes(self, nodes: Collection[Node]) -> int:
        return sum(map(_num_bytes, (*self._weights(nodes), *_held_by_modules(nodes))))

    def _weights(self, nodes: Collection[Node]) -> list[torch.Tensor]:
        """The weights that `nodes` read, each once, also through casts and transposes."""
        seen: set[Node] = set()
        stack = [source for node in nodes for source in node.all_input_nodes]
        while stack:
            node = stack.pop()
            if node in seen or node not in self.static:
                continue
            seen.add(node)
            if node not in self.names:
                stack += node.all_input_nodes
        return [t for n in seen if n in self.names or n.op == "get_attr" for t in ops.tensors(n)]


def _held_by_modules(nodes: Iterable[Node]) -> Iterator[torch.Tensor]:
    """Parameters of called modules, which a symbolically traced graph keeps."""
    for node in nodes:
        if node.op == "call_module":
            yield from ops.called_module(node).parameters()


def _flops(mixing: Collection[Node]) -> int | None:
    computed = [t for node in mixing for t in (node, *node.all_input_nodes)]
    return sum(map(flops_of, mixing)) if all(map(_is_sized, computed)) else None


def _cache_bytes(attending: Iterable[Node]) -> int | None:
    """Bytes of keys and values: the second operand of a product, the last two of an attention."""
    found = [
        _least_bytes(held)
        for node in attending
        for held in node.all_input_nodes[1 : 3 if is_fused_attention(node) else 2]
    ]
    return None if None in found else sum(filter(None, found))


def _least_bytes(node: Node) -> int | None:
    """Bytes of `node` before layout ops, which make it larger if they repeat heads."""
    least = None
    while _is_sized(node) and ops.tensors(node):
        size = sum(map(_num_bytes, ops.tensors(node)))
        least = size if least is None else min(least, size)
        if ops.kind(node) is not Kind.LAYOUT or len(node.all_input_nodes) != 1:
            break
        (node,) = node.all_input_nodes
    return least


def _largest(outputs: tuple[Node, ...]) -> int | None:
    """Bytes of the largest output: parallel branches are summed before they are sent."""
    tensors = [tensor for node in outputs for tensor in ops.tensors(node)]
    if not tensors or not all(map(_is_sized, outputs)):
        return None
    return max(map(_num_bytes, tensors))


def _num_bytes(tensor: torch.Tensor) -> int:
    return compat.hint(tensor.numel()) * tensor.element_size()


def _is_sized(node: Node) -> bool:
    """Whether the sizes of `node`'s value are known, if only as hints of symbols."""
    return all(compat.has_hint(size) for tensor in ops.tensors(node) for size in tensor.shape)
