"""Find the reference's stream values in a run of the candidate, independent of node names.

    reference   x0  y0 = 0.3 …   y1 = -1.2 …   y2 = 0.7 …
    candidate   … node 14: 0.3 … is y0 … node 31: -1.2 … is y1 … (no node is y2: block 2 is wrong)

Every sum `y` must be found, in stream order, except sums inside a parallel layer. An anchor `x`
after a transition `T` may be missing. Each rank has its own locator.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ladderize.streams.block import Block, Stream

Name = tuple[int, str, int]
"""A stream value: stream number, "x" (anchor) or "y" (sum), and block index."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """A stream value to find.

    Attributes:
        name: name of the value.
        block: block that it belongs to.
        node: node that computes it in the original's graph.
        value: value in the reference.
        must_be: whether a candidate has to compute it.
    """

    name: Name
    block: Block
    node: Node
    value: Tensor
    must_be: bool

    def error(self, value: Any) -> float:
        """The error of `value`, relative to the largest wanted magnitude (at least 1e-12).

        Infinite if shapes differ, or `value` is not a floating tensor or not finite.
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
    """The values to find in each stream, in order, without anchors equal to the sum before them.

    Args:
        streams: streams of the original.
        values: values of the reference.
        close: largest error at which two values count as equal.
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
        wanted: values to find in each stream, in order.
        close: largest error at which a value counts as found.
        found: node that computes each value found.
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
        """The first sum of each stream that this rank never computed."""
        missing = [
            [wanted for wanted in values[start:] if wanted.must_be]
            for start, values in zip(self._next, self.wanted, strict=True)
        ]
        return [values[0] for values in missing if values]
