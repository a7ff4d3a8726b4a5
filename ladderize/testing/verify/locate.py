"""Find the reference's stream values in a run of the candidate, whatever its nodes are named.

    reference   x0  y0 = 0.3 …   y1 = -1.2 …   y2 = 0.7 …
    candidate   … node 14: 0.3 … is y0 … node 31: -1.2 … is y1 … (no node is y2: block 2 departs)

Every sum `y` must be there, in the order of its stream, but for sums inside of a parallel layer; an
anchor `x` that lies behind a `T` may have been left out. Each rank has a locator of its own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ladderize.streams.block import Block, Stream

Name = tuple[int, str, int]
"""A value of a stream: the stream's number, "x" (an anchor) or "y" (a sum), the block's index."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """A stream value to be found.

    Attributes:
        name: which one.
        node: that computes it in the original's graph.
        value: of the reference.
        must_be: whether a candidate has to compute it.
    """

    name: Name
    block: Block
    node: Node
    value: Tensor
    must_be: bool

    def error(self, value: Any) -> float:
        """How far `value` is off, relative to the largest magnitude wanted (at least 1e-12).

        Infinite where it is something else: another shape, not a floating tensor, not finite.
        """
        return relative_error(value, self.value)


def relative_error(value: Any, wanted: Tensor) -> float:
    if not isinstance(value, Tensor) or value.shape != wanted.shape:
        return float("inf")
    if not value.is_floating_point():
        same = not wanted.is_floating_point() and bool(torch.equal(value, wanted))
        return 0.0 if same else float("inf")
    if wanted.numel() == 0:
        return 0.0
    wanted, value = wanted.detach().double(), value.detach().double()
    infinite = wanted.isinf() & (value == wanted)  # a mask
    size = wanted.abs().masked_fill(infinite, 0).max().clamp(min=1e-12)
    off = float((value - wanted).masked_fill(infinite, 0).abs().max() / size)
    return off if off == off else float("inf")


def wanted_values(
    streams: Sequence[Stream],
    values: dict[Node, Any],
    close: float,
    optional: Collection[Node] = (),
) -> list[list[Wanted]]:
    """For each stream what is to be found, in order. Anchors that equal the sum before are that.

    Args:
        streams: of the original.
        values: of the reference.
        close: the largest error at which two values are one.
        optional: sums that a candidate need not compute.
    """
    wanted = []
    for number, stream in enumerate(streams):
        found: list[Wanted] = []
        for block in stream.blocks:
            x = Wanted((number, "x", block.index), block, block.anchor, values[block.anchor], False)
            if not found or x.error(found[-1].value) > close:
                found.append(x)
            name = (number, "y", block.index)
            must_be = block.add not in optional
            found.append(Wanted(name, block, block.add, values[block.add], must_be))
        wanted.append(found)
    return wanted


@dataclass
class Locator:
    """Watches one rank's run.

    Attributes:
        wanted: for each stream, in order.
        close: the largest error at which a value is the wanted one.
        found: the node that computes each.
    """

    wanted: list[list[Wanted]]
    close: float
    found: dict[Name, Node] = field(default_factory=dict)
    _next: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._next = [0] * len(self.wanted)

    def see(self, node: Node, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        for stream, values in enumerate(self.wanted):
            self._advance(stream, values, node, value)

    def _advance(self, stream: int, values: list[Wanted], node: Node, value: Tensor) -> None:
        place = self._next[stream]
        for ahead, candidate in enumerate(values[place:], place):
            if candidate.error(value) <= self.close:
                self.found[candidate.name] = node
                self._next[stream] = ahead + 1
                return
            if candidate.must_be:
                return

    def departures(self) -> list[Wanted]:
        """Of each stream the first sum that this rank never computed."""
        missing = [
            [wanted for wanted in values[start:] if wanted.must_be]
            for start, values in zip(self._next, self.wanted, strict=True)
        ]
        return [values[0] for values in missing if values]
