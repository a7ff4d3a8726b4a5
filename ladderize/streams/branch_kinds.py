"""The kind of a block's branch, determined from its operations, never from module names.

scores = matmul(q, k);  softmax(scores);  matmul(…, v)       attention (or a fused attention op)
topk(linear(x)), linear, linear                              MoE: experts chosen by values
conv(x), linear                                              conv
linear(gelu(linear(x)))                                      MLP
a recurrence over positions, a Fourier transform, …          other
"""

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.graph.higher_order import bodies
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block

ATTENTION, MOE, CONV, MLP, OTHER = "attention", "MoE", "conv", "MLP", "other"

# Fused kernels, by parts of their names.
_ATTENTIONS = ("scaled_dot_product", "attention", "flash_attn", "multi_head", "multihead")
_SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})
_CHOICES = frozenset({"topk", "argmax", "one_hot", "grouped_mm", "_grouped_mm"})
_PRODUCTS = frozenset(
    """linear matmul __matmul__ __rmatmul__ mm bmm addmm addbmm baddbmm mv einsum""".split()
)
_ACTIVATIONS = frozenset(
    """relu relu6 gelu silu tanh sigmoid erf glu elu selu celu mish softplus leaky_relu prelu
    hardswish hardtanh hardsigmoid logsigmoid pow square""".split()
)
# Ops that move values between positions in a recurrence or a shift; an MLP has none.
_SHIFTS = frozenset(
    """stack cat concat concatenate pad roll flip cumsum cumprod logcumsumexp setitem
    index_put index_copy unfold""".split()
)
# Tensor parallelism: these move values between ranks, not between positions or features. In the
# bodies of autograd functions, Dynamo switches grad mode off and on.
_TRANSFERS = frozenset(
    """all_reduce all_gather_into_tensor reduce_scatter_tensor from_local redistribute to_local
    reduce _set_grad_enabled""".split()
)


@dataclass(frozen=True)
class _Branch:
    """The nodes of one branch; `static` nodes depend only on parameters and sizes."""

    nodes: Sequence[Node]
    static: Collection[Node]

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(_name(node) for node in self.nodes if not _joins_chunks(node))

    @cached_property
    def mixing(self) -> list[Node]:
        return [node for node in self.nodes if ops.kind(node) is Kind.MIX]

    @property
    def has_convolution(self) -> bool:
        return any("conv" in _name(node) for node in self.mixing)

    @property
    def mixes_only_by_weights(self) -> bool:
        """Whether the only mixing ops are linears and convolutions with weights."""
        return all(
            "conv" in _name(node)
            or _name(node) in _TRANSFERS
            or (_name(node) in _PRODUCTS and not multiplies_values(node, self.static))
            for node in self.mixing
        )


def kind_of_block(gm: GraphModule, block: Block, static: Collection[Node]) -> str:
    """The kind of each of the block's parallel branches, joined by " + "."""
    kinds = [kind_behind(gm, output, block.members, static) for output in block.outputs]
    return " + ".join(dict.fromkeys(kinds))


def kind_behind(
    gm: GraphModule, output: Node, members: Collection[Node], static: Collection[Node]
) -> str:
    """The kind of the operations that compute `output` in the branch with nodes `members`."""
    nodes = [output, *_walk(output, members, lambda node: node.all_input_nodes)]
    branch = _Branch(list(with_bodies(gm, nodes)), static)
    return next((kind for kind, holds in _RULES if holds(branch)), OTHER)


def with_bodies(gm: GraphModule, nodes: Iterable[Node]) -> Iterator[Node]:
    """`nodes`, with higher-order calls replaced by the nodes of their bodies."""
    for node in nodes:
        held = bodies(gm, node)
        if not held or is_fused_attention(node):
            yield node
        for body in held:
            yield from with_bodies(body, body.graph.nodes)


def _is_attention(branch: _Branch) -> bool:
    if any(map(is_fused_attention, branch.mixing)):
        return True
    soft = [node for node in branch.nodes if _name(node) in _SOFTMAX]
    return any(
        _meets_product(branch, node, lambda n: n.all_input_nodes)
        and _meets_product(branch, node, lambda n: n.users)
        for node in soft
    )


def _meets_product(branch: _Branch, start: Node, step: Callable[[Node], Iterable[Node]]) -> bool:
    """Whether the first mixing ops that `step` leads to from `start` multiply values."""
    members = set(branch.nodes)
    mixing = set(branch.mixing)
    reached = _walk(start, members, lambda node: () if node in mixing else step(node))
    return any(multiplies_values(node, branch.static) for node in reached)


def is_fused_attention(node: Node) -> bool:
    return any(part in _name(node) for part in _ATTENTIONS)


def _joins_chunks(node: Node) -> bool:
    """Whether `node` concatenates all chunks of one value in order.

    Ranks gather along dim 0; `cat(gathered.chunk(ranks), dim)` moves the parts to another dim.
    """
    parts = node.args[0] if _name(node) in ("cat", "concat", "concatenate") and node.args else ()
    if not isinstance(parts, (tuple, list)) or not parts:
        return False
    if not all(isinstance(part, Node) and part.target is operator.getitem for part in parts):
        return False
    whole = {part.args[0] for part in parts}
    (first, *others) = whole
    in_order = [part.args[1] for part in parts] == list(range(len(parts)))
    return not others and in_order and ops.op_name(first) == "chunk"


def multiplies_values(node: Node, static: Collection[Node]) -> bool:
    """Whether `node` is a matrix product of two computed values, neither of them a weight."""
    if _name(node) not in _PRODUCTS or _name(node) == "linear":
        return False
    return sum(source not in static for source in node.all_input_nodes) > 1


def _is_moe(branch: _Branch) -> bool:
    return not branch.names.isdisjoint(_CHOICES) and not branch.names.isdisjoint(_PRODUCTS)


def _is_conv(branch: _Branch) -> bool:
    # Mamba has a convolution and a scan, which multiplies values with values.
    return branch.has_convolution and branch.mixes_only_by_weights


def _is_mlp(branch: _Branch) -> bool:
    return (
        branch.mixes_only_by_weights
        and not branch.names.isdisjoint(_PRODUCTS)
        and not branch.names.isdisjoint(_ACTIVATIONS)
        and branch.names.isdisjoint(_SHIFTS)
    )


_RULES = ((ATTENTION, _is_attention), (MOE, _is_moe), (CONV, _is_conv), (MLP, _is_mlp))


def _name(node: Node) -> str:
    """The op's name without the underscore of an in-place call."""
    name = ops.op_name(node)
    return name.removesuffix("_") if not name.endswith("__") else name


def _walk(
    start: Node, members: Collection[Node], step: Callable[[Node], Iterable[Node]]
) -> list[Node]:
    """The members reached from `start` by repeated `step`s, without `start` itself."""
    seen: dict[Node, None] = {}
    stack = [start]
    while stack:
        for node in step(stack.pop()):
            if node in members and node not in seen and node is not start:
                seen[node] = None
                stack.append(node)
    return list(seen)
