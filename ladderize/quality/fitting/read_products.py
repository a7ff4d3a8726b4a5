"""Find the products with a weight that first mix what a converted block reads.

    r1 = lerp(x1, x0, blend_1);  a1 = norm(r1)      q = linear(a1, wq)      gate = linear(a1, wg)
                                 read: a1           weights: wq, wg

In: a graph with blended reads. Out: its reads in graph order, with the graph inputs of the weights.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.passes.blend_reads import blend_inputs


@dataclass(frozen=True)
class FirstWeight:
    """A weight that only one product reads.

    Attributes:
        node: graph input that holds it.
        has_output_rows: whether its shape is `[outputs, inputs]`, not `[inputs, outputs]`.
    """

    node: Node
    has_output_rows: bool


@dataclass(frozen=True)
class FirstRead:
    """The value that the first products of a block read.

    Attributes:
        block: index of the block.
        read: value that they multiply, `[…, inputs]`.
        until: first of the products in graph order.
        weights: weights of the products.
    """

    block: int
    read: Node
    until: Node
    weights: list[FirstWeight] = field(default_factory=list)


@dataclass(frozen=True)
class FoundReads:
    """The result of `find_first_reads`.

    Attributes:
        reads: reads of the converted blocks, in graph order.
        left: other nodes that mix or select what a block reads, each with the block's index.
    """

    reads: list[FirstRead]
    left: list[tuple[int, Node]]


_PRODUCTS = {  # positions and names of the operands, and whether the weight's rows are the outputs
    "linear": (0, "input", 1, "weight", True),
    "addmm": (1, "mat1", 2, "mat2", False),
    "mm": (0, "input", 1, "mat2", False),
    "matmul": (0, "input", 1, "other", False),
    "__matmul__": (0, "input", 1, "other", False),
}
_STEPS = (ops.Kind.ADD, ops.Kind.LAYOUT, ops.Kind.CHEAP)


def find_first_reads(gm: GraphModule, weights: Collection[Node]) -> FoundReads:
    """Find the reads of the blended blocks of `gm` that products with a weight multiply.

    Args:
        gm: graph edited by `BlendReads`.
        weights: graph inputs of matrices that may be fitted; those with two readers are ignored.
    """
    blends = blend_inputs(gm)
    reads: dict[Node, FirstRead] = {}
    left = []
    block_of: dict[Node, int | None] = {}  # of values that depend on a read; None if it was mixed
    for node in gm.graph.nodes:
        given = [each for each in node.all_input_nodes if each in block_of]
        if blend := next((blends[each] for each in node.all_input_nodes if each in blends), None):
            block_of[node] = blend.block
        elif given:
            blocks = {block_of[each] for each in given}
            block = blocks.pop() if len(blocks) == 1 else None
            is_step = block is not None and ops.kind(node) in _STEPS
            block_of[node] = block if is_step else None
            if product := _product(node, weights, block_of):
                read, weight, number = product
                first = reads.setdefault(read, FirstRead(number, read, until=node))
                first.weights.append(weight)
            elif not is_step and ops.kind(node) in (ops.Kind.MIX, ops.Kind.LAYOUT):
                numbers = [block_of[each] for each in given]
                left += [(number, node) for number in numbers if number is not None][:1]
    return FoundReads(list(reads.values()), left)


def _product(
    node: Node, weights: Collection[Node], block_of: dict[Node, int | None]
) -> tuple[Node, FirstWeight, int] | None:
    """The read of a product, its weight and the index of the block; None for other nodes."""
    row = _PRODUCTS.get(ops.op_name(node))
    if row is None:
        return None
    at, name, weight_at, weight_name, has_output_rows = row
    read, weight = _operand(node, at, name), _operand(node, weight_at, weight_name)
    if read is None or weight is None or weight not in weights or len(weight.users) > 1:
        return None
    block = block_of.get(read)
    return None if block is None else (read, FirstWeight(weight, has_output_rows), block)


def _operand(node: Node, position: int, name: str) -> Node | None:
    found = node.args[position] if len(node.args) > position else node.kwargs.get(name)
    return found if isinstance(found, Node) else None
