"""Find ops of other libraries with unknown meaning that may add to the stream.

    y, x1 = engine.add_and_norm(h0, x0, weight)     h0 is computed from x0; a result has their shape
    engine.norm_and_quantize(y, h0, x0, scale)      the same, written into x0

Such an op outside of all branches breaks the stream: the blocks around it would silently stay
standard. Inside a branch it does no harm. `graph/engine_ops.py` has the known ops.
"""

import itertools
import operator
from collections.abc import Collection, Iterator

from torch.fx import Node

from ladderize.errors import Blocker
from ladderize.graph import ops
from ladderize.graph.engine_ops import meaning_of
from ladderize.graph.schemas import schema_of
from ladderize.graph.writes import written_operands
from ladderize.streams.context import AnalysisContext

TORCHS_OWN = frozenset(
    "aten prims prim higher_order inductor ladderize symm_mem quantized quantized_decomposed "
    "_c10d_functional _c10d_functional_autograd c10d c10d_functional mkldnn onednn "
    "torchvision".split()
)
"""Op namespaces whose sums are recognized, or are deliberately not residual sums."""


def find_hidden_sums(context: AnalysisContext, inside: Collection[Node]) -> Iterator[Blocker]:
    """The ops of other libraries that may add the result of a branch to the stream.

    Args:
        inside: nodes of all branches.
    """
    for node in context.nodes:
        schema = schema_of(node)
        if schema is None or node in inside or node in context.static:
            continue
        if schema.name.partition("::")[0] in TORCHS_OWN or meaning_of(schema) is not None:
            continue
        if _takes_stream_and_branch(context, node):
            yield Blocker.at(node, f"{schema.name} takes the stream and a value computed from it")


def _takes_stream_and_branch(context: AnalysisContext, node: Node) -> bool:
    results = {context.shape.get(operand) for operand in written_operands(node)}
    results |= {ops.expressions(tensor.shape) for tensor in ops.tensors(node)}
    operands = [
        context.as_written(node, operand)
        for operand in node.all_input_nodes
        if context.shape[operand] is not None and context.shape[operand] in results
    ]
    return any(
        context.branch(value, [branch]) is not None
        for kept, branch in itertools.permutations(operands, 2)
        for value in _origins(context, kept)
    )


def _origins(context: AnalysisContext, kept: Node) -> Iterator[Node]:
    """The values before `kept` where a branch may read the stream, also through a getitem."""
    for value in context.walk_back(kept):
        if value not in context.static:
            yield value
            yield from (s for s in value.all_input_nodes if value.target is operator.getitem)
