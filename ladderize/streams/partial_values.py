"""Partial sums of a block's summands as symbolic expressions.

    r = add(x3, view(shared));   u = norm(r)        r: x3 + view(s3)      u: norm(x3 + view(s3))

Expressions are read from a graph node by node, and built from a specification by
`PartialRead.build`, then compared. `s3` is a landed summand of block 3; a second one is `t3`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sympy
from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.streams.block import Stream
from ladderize.streams.contributions import Contribution, Contributions
from ladderize.streams.partial_reads import PartialRead
from ladderize.streams.summands import leaves_of

LETTERS, IN_FLIGHT = "stuvwacdefgijklmnopq", "r"
"""Letters of a block's landed summands, in order, and of its summands in flight."""
_CASTS = frozenset({"to", "_to_copy", "type", "type_as", "float", "half", "bfloat16", "double"})


@dataclass
class PartialValues:
    """Expressions found so far while going through a graph in order.

    Attributes:
        splits: contributions of the blocks with only some summands in flight.
        known: expressions of these blocks' skips, landed summands, and values made from them.
        values: expressions of the values that contain a landed summand.
    """

    splits: Contributions
    known: dict[Node, sympy.Basic] = field(default_factory=dict)
    values: dict[Node, sympy.Basic] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        streams: Sequence[Stream],
        splits: Contributions,
        symbols: Mapping[Node, sympy.Symbol],
    ) -> "PartialValues":
        """The initial state, with the skips and landed summands of split blocks.

        Args:
            streams: streams of the graph.
            splits: contributions of the blocks with only some summands in flight.
            symbols: names of sums and anchors.
        """
        known: dict[Node, sympy.Basic] = {}
        for block in (block for stream in streams for block in stream.blocks):
            if block in splits:
                known[block.skip] = symbols.get(block.skip, symbols[block.anchor])
                known |= _names(splits[block], symbols)
        return cls(splits, known)

    def see(self, node: Node) -> None:
        """Update the state with `node`, which is not in a branch."""
        carried = {n: self.known[n] for n in node.all_input_nodes if n in self.known}
        has_part = any(map(_holds_part, carried.values()))
        is_cast = bool(carried) and ops.op_name(node) in _CASTS
        if node in self.known or not (has_part or is_cast):
            return
        is_plain_sum = ops.kind(node) is Kind.ADD and not node.kwargs
        is_whole = is_plain_sum and len(carried) == len(node.all_input_nodes)
        found = sympy.Add(*carried.values()) if is_whole else called(node, carried)
        self.known[node] = found
        if has_part:
            self.values[node] = found


def _holds_part(value: sympy.Basic) -> bool:
    return any(str(symbol)[0] in LETTERS for symbol in value.free_symbols)


def _names(own: Contribution, symbols: Mapping[Node, sympy.Symbol]) -> dict[Node, sympy.Symbol]:
    anchor = str(symbols[own.block.anchor])
    return {
        summand.value: sympy.Symbol(letter + anchor[1:])
        for letter, summand in zip(LETTERS, own.landed, strict=False)
    }


def called(node: Node, operands: Mapping[Node, sympy.Basic]) -> sympy.Basic:
    """The expression of `node` applied to `operands`; its other operands are ignored."""
    if ops.op_name(node) in _CASTS:
        return next(iter(operands.values()))
    return sympy.Function(ops.op_name(node))(*operands.values())


def read_as_symbols(read: PartialRead, symbols: Mapping[Node, sympy.Symbol]) -> sympy.Basic:
    """The specified value of `read`."""
    block = read.before.block
    names: dict[Node, sympy.Basic] = {
        block.skip: symbols.get(block.skip, symbols[block.anchor]),
        **_names(read.before, symbols),
    }
    return read.build(names.__getitem__, called, lambda a, b: sympy.Add(a, b))


def terms_of(own: Contribution, outputs: Sequence[Node]) -> dict[str, list[Node]]:
    """The present summands of a block's sum, by the letters of their functions.

    Args:
        own: contribution of the block in the standard graph.
        outputs: operands of its sum in the present graph.
    """
    letters = {s.value: letter for letter, s in zip(LETTERS, own.landed, strict=False)}
    letters |= {summand.value: IN_FLIGHT for summand in own.in_flight}
    found: dict[str, list[Node]] = {}
    for output in outputs:
        for value, _ in leaves_of(output, own.block.members):
            found.setdefault(letters.get(value, "h"), []).append(value)
    return found
