"""The least, usual and most size of each dynamic dim, which an engine is built and tuned for.

In: the sizes of a graph's inputs, which are expressions of symbols, and the options for them. Out:
an `Extent` for each symbol, and for any expression of symbols.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ladderize import compat
from ladderize.errors import Blocker, LadderError

EVERY_OTHER = "*"


@dataclass(frozen=True)
class Extent:
    """The sizes that a dim may have."""

    least: int
    usual: int
    most: int


@dataclass(frozen=True)
class Extents:
    """The extent of each symbol, by its name."""

    of_symbol: Mapping[str, Extent]

    def knows(self, size: int | torch.SymInt) -> bool:
        """Whether a size has an extent; sizes that depend on values do not."""
        symbols = () if isinstance(size, int) else size.node.expr.free_symbols
        return all(str(symbol) in self.of_symbol for symbol in symbols)

    def of(self, size: int | torch.SymInt) -> Extent:
        """The extent of an expression of symbols, from the corners of their extents."""
        if isinstance(size, int):
            return Extent(size, size, size)
        expression = size.node.expr
        symbols = sorted(expression.free_symbols, key=str)
        ranges = [self.of_symbol[str(symbol)] for symbol in symbols]
        corners = itertools.product(*((extent.least, extent.most) for extent in ranges))
        found = [_at(expression, symbols, corner) for corner in corners]
        usual = _at(expression, symbols, [extent.usual for extent in ranges])
        return Extent(min(*found, usual), usual, max(*found, usual))


def _at(expression: Any, symbols: Sequence[Any], sizes: Iterable[int]) -> int:
    return int(expression.xreplace(dict(zip(symbols, sizes, strict=True))))


def find_extents(inputs: Iterable[Node], given: Mapping[str, Sequence[int]]) -> Extents:
    """Extents of all symbols in the values of `inputs`: from the graph's ranges and `given`.

    Raises:
        LadderError: a dim has no bound, or a name in `given` is unknown; the message lists them.
    """
    found: dict[str, Extent] = {}
    unbounded: list[Blocker] = []
    known: set[str] = {EVERY_OTHER}
    met: set[str] = set()
    for node, dim, size in _dynamic_dims(inputs):
        for symbol in compat.symbols_of(size):
            if symbol.name in met:
                continue
            names = [symbol.name, *map(short_name, symbol.sources)]
            met.add(symbol.name)
            known.update(names)
            asked = next((given[name] for name in [*names, EVERY_OTHER] if name in given), None)
            most = symbol.most if asked is None else asked[2]
            if most is None:
                place = (
                    f"dim {dim} of input {node.name}" if dim is not None else f"input {node.name}"
                )
                unbounded.append(Blocker(f"{names[-1]!r}: {place}, of {symbol.least} or more"))
                continue
            found[symbol.name] = _extent(symbol, asked, most)
    if unbounded:
        raise LadderError(
            "TensorRT needs an upper bound for these sizes:",
            unbounded,
            'give lowering_options={"sizes": {"…": (least, usual, most)}}, or bound them when '
            "tracing the model: torch.export.Dim(…, max=…), mark_dynamic(…, max=…)",
        )
    unknown = [
        Blocker(f"sizes[{name!r}]; there are {sorted(known)}") for name in given.keys() - known
    ]
    if unknown:
        raise LadderError("These sizes are not dynamic in the graph:", unknown)
    return Extents(found)


def _extent(symbol: compat.SizeSymbol, asked: Sequence[int] | None, most: int) -> Extent:
    """The extent within the traced range: Dynamo specializes 0 and 1, and traces again."""
    least = symbol.least if asked is None else max(asked[0], symbol.least)
    most = max(least, most if symbol.most is None else min(most, symbol.most))
    usual = asked[1] if asked is not None else most if symbol.hint is None else symbol.hint
    return Extent(least, min(max(usual, least), most), most)


def _dynamic_dims(inputs: Iterable[Node]) -> Iterator[tuple[Node, int | None, torch.SymInt]]:
    for node in inputs:
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            yield node, None, value
        elif isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    yield node, dim, size


def short_name(source: str) -> str:
    """`L['input_ids'].size()[1]` in short form: `input_ids[1]`."""
    match = re.search(r"(?:\['([^']+)'\]|\.(\w+)|\[(\d+)\])\.size\(\)\[(\d+)\]$", source)
    if match is None:
        return source
    name = match[1] or match[2] or f"args[{match[3]}]"
    return f"{name}[{match[4]}]"
