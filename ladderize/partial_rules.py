"""What commutes with a sum over ranks: which ops let a partial value pass without reducing it.

add(partial, partial)    one partial value: the two halves of a parallel block
view(partial)            passed on
gelu(partial)            reduced first
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ladderize.placement import Partial
from ladderize.visit import NeedsReduction, Value, Visit, is_tensor, packet

aten = torch.ops.aten


def _same_dtype(visit: Visit) -> bool:
    source = visit.node.args[0]
    assert isinstance(source, Node)
    return bool(source.meta["val"].dtype == visit.node.meta["val"].dtype)


def _keeps_last_dim(visit: Visit) -> bool:
    source = visit.node.args[0]
    assert isinstance(source, Node)
    value, old, new = visit.value(source), visit.shape(source), visit.shape()
    return not value.biases or bool(len(old) and len(new) and old[-1] == new[-1])


def _is_off(visit: Visit) -> bool:
    """dropout(x, p, train)"""
    return not visit.argument(2, "train") or visit.argument(1, "p") == 0


def _by_number(visit: Visit) -> bool:
    sources = [visit.node.args[i] for i in range(2)]
    number = not (isinstance(sources[1], Node) and is_tensor(sources[1]))
    return number and isinstance(sources[0], Node) and not visit.value(sources[0]).biases


# op -> whether this call lets a partial first argument through
LINEAR: dict[Any, Callable[[Visit], bool]] = {
    **dict.fromkeys((aten.view, aten.reshape, aten._unsafe_view), _keeps_last_dim),
    **dict.fromkeys((aten.clone, aten.contiguous, aten.alias), lambda _: True),
    **dict.fromkeys((aten.to, aten._to_copy), _same_dtype),
    aten.dropout: _is_off,
    **dict.fromkeys((aten.mul, aten.div), _by_number),
}


def join_partials(visit: Visit, partials: list[Node]) -> Value:
    """A partial input: passed on by linear ops, joined by adds, reduced before all others."""
    operands = visit.operands()
    if packet(visit.node) is aten.add and len(operands) == 2 and partials == operands:
        if not visit.node.kwargs and visit.shape(operands[0]) == visit.shape(operands[1]):
            biases = tuple(b for node in operands for b in visit.value(node).biases)
            return Value(Partial(), biases=biases)
    elif len(operands) == 1 and packet(visit.node) in LINEAR and LINEAR[packet(visit.node)](visit):
        return visit.value(operands[0])
    raise NeedsReduction(partials[0])
