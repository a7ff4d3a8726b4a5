"""Find weights that a graph computes from parameters: packed words, scales, zero points.

    v = and(shift(view(qweight)), 15);  w = mul(v, index(scales, g_idx));  y = matmul(x, w)

    w is unpacked from qweight, scales, g_idx; qweight, the largest, represents all of them

Such a weight is sharded by sharding its sources, see `rules.unpacking`.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import Node

from ladderize.sharding.rules.products import PRODUCTS
from ladderize.sharding.statics import Unpacked, stand_in
from ladderize.sharding.visit import FORM_READERS, packet
from ladderize.streams.block import Block


def unpacked_weights(block: Block, parameters: Collection[Node]) -> Iterator[Unpacked]:
    """The matrices that products of the branch multiply by and that are unpacked only for them."""
    for node in block.branch:
        form = PRODUCTS.get(packet(node))
        weight = None if form is None else node.args[form.weight]
        if isinstance(weight, Node) and weight not in block.members:
            found = _WeightsOf(block.members, parameters).unpacked(weight)
            if found is not None:
                yield found


def nodes_behind(weight: Node, parameters: Collection[Node]) -> list[Node]:
    """`weight` and all nodes that it is computed from, up to parameters."""
    seen, left = {weight: None}, [weight]
    while left:
        node = left.pop()
        if node not in parameters:
            new = [source for source in node.all_input_nodes if source not in seen]
            seen.update(dict.fromkeys(new))
            left += new
    return list(seen)


@dataclass(frozen=True)
class _WeightsOf:
    """Finds unpacked weights that only `readers` read."""

    readers: Collection[Node]
    parameters: Collection[Node]

    def unpacked(self, weight: Node) -> Unpacked | None:
        if stand_in(weight, self.parameters) is not None or weight.meta["val"].dim() != 2:
            return None
        behind = nodes_behind(weight, self.parameters)
        held = tuple(node for node in behind if node in self.parameters)
        given = [node for node in behind if node.op == "placeholder" and node not in held]
        words = [parameter for parameter in held if _is_packed(parameter)]
        calls = sorted(node for node in behind if node.op == "call_function")
        own = self._own(calls)
        if not words or given or not self._depending(calls, held) <= own:
            return None
        main = max(words, key=_size)
        return Unpacked(weight, tuple(node for node in calls if node in own), held, main)

    def _own(self, calls: list[Node]) -> set[Node]:
        """The calls whose results no other node reads."""
        own: set[Node] = set()
        for node in reversed(calls):
            users = [user for user in node.users if packet(user) not in FORM_READERS]
            if all(user in own or user in self.readers for user in users):
                own.add(node)
        return own

    def _depending(self, calls: list[Node], held: Iterable[Node]) -> set[Node]:
        """The calls that depend on a parameter with two or more dims."""
        found = {parameter for parameter in held if parameter.meta["val"].dim() > 1}
        for node in calls:
            if not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found.difference(held)


def _is_packed(parameter: Node) -> bool:
    """Whether `parameter` is a matrix of integers or one-byte floats."""
    value: torch.Tensor = parameter.meta["val"]
    return value.dim() > 1 and (not value.is_floating_point() or value.element_size() == 1)


def _size(parameter: Node) -> tuple[int, int]:
    """Number of bytes and of entries."""
    value: torch.Tensor = parameter.meta["val"]
    return value.nbytes, value.numel()
