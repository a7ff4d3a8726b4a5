"""The values that hold a part of what a block added, as expressions of named ones.

    r = add(x3, view(shared));   u = norm(r)        r: x3 + view(s3)      u: norm(x3 + view(s3))

Read out of a graph as it stands, node by node, and of a specification, by `PartialRead.build`: the
two are compared. `s3` is a summand of block 3 that has landed; a second one is `t3`.
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
"""Of the summands of a block that have landed, in their order, and of those in flight."""
_CASTS = frozenset({"to", "_to_copy", "type", "type_as", "float", "half", "bfloat16", "double"})


@dataclass
class PartialValues:
    """What is known so far of a graph that is gone through in order.

    Attributes:
        splits: what the blocks add of which a part is in flight.
        known: the expressions of the values that such a part is added to and of the parts.
        values: of the values with a part.
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
        """None yet.

        Args:
            streams: whose blocks are split.
            splits: what those add.
            symbols: the names of sums and anchors.
        """
        known: dict[Node, sympy.Basic] = {}
        for block in (block for stream in streams for block in stream.blocks):
            if block in splits:
                known[block.skip] = symbols.get(block.skip, symbols[block.anchor])
                known |= _names(splits[block], symbols)
        return cls(splits, known)

    def see(self, node: Node) -> None:
        """Take notice of `node`, which is in no branch."""
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
    """What `node` computes of `operands`, its others aside."""
    if ops.op_name(node) in _CASTS:
        return next(iter(operands.values()))
    return sympy.Function(ops.op_name(node))(*operands.values())


def read_as_symbols(read: PartialRead, symbols: Mapping[Node, sympy.Symbol]) -> sympy.Basic:
    """The value of `read` as it should be."""
    block = read.before.block
    names: dict[Node, sympy.Basic] = {
        block.skip: symbols.get(block.skip, symbols[block.anchor]),
        **_names(read.before, symbols),
    }
    return read.build(names.__getitem__, called, lambda a, b: sympy.Add(a, b))


def terms_of(own: Contribution, outputs: Sequence[Node]) -> dict[str, list[Node]]:
    """What the sum of a block adds now: the values by the letters of their functions.

    Args:
        own: what the block adds in the standard graph.
        outputs: the operands of its sum in the graph as it stands.
    """
    letters = {s.value: letter for letter, s in zip(LETTERS, own.landed, strict=False)}
    letters |= {summand.value: IN_FLIGHT for summand in own.in_flight}
    found: dict[str, list[Node]] = {}
    for output in outputs:
        for value, _ in leaves_of(output, own.block.members):
            found.setdefault(letters.get(value, "h"), []).append(value)
    return found
