"""Choose the sizes of dynamic dims to check: the whole allowed range, within a memory limit.

length in [1, 32], the graph slices at 12    ── 1, 2, 3, 5, 7, 13, 17, 32
length in [2, ∞)                             ── … up to the memory limit of a run
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from ladderize.graph import ops
from ladderize.testing.verify.inputs import shape_of, user_inputs
from ladderize.testing.verify.verdict import Check

SIZES = "sizes"
MAX_BYTES = 2**28
"""Default memory limit for all values of one run of the original, in bytes."""
MAX_RUNS = 16
MAX_CONSTANTS = 4

Sizes = Mapping[sympy.Symbol, int]


@dataclass(frozen=True)
class Plan:
    """The sizes to check.

    Attributes:
        base: a few small sizes, checked in each dtype.
        further: ends and middles of the ranges, checked in the program's own dtype.
        largest: largest possible sizes of all dims; one of `further` if any dim is dynamic.
        said: text for the verdict; "" if nothing is dynamic.
    """

    base: tuple[Sizes, ...]
    further: tuple[Sizes, ...]
    largest: Sizes
    said: str

    def check(self, failing: Mapping[int, str]) -> Iterator[Check]:
        """The check of sizes; `failing` maps runs in which the original fails to the reason."""
        if not self.said:
            return
        runs = (*self.base, *self.further)
        notes = [f"the original fails at {_spell(runs[i])}: {why}" for i, why in failing.items()]
        yield Check(SIZES, "ok", "; ".join((self.said, *notes)))


def plan_sizes(
    program: ExportedProgram,
    graphs: Sequence[Graph],
    variants: int,
    max_bytes: int,
    fails: Callable[[Sizes], str],
) -> Plan:
    """Choose sizes for `variants` small runs, and sizes that cover the ranges.

    Args:
        program: original, with the ranges.
        graphs: graphs whose constants are tried: behavior may change at one of them.
        variants: number of small runs.
        max_bytes: memory limit for the values of one run, in bytes.
        fails: returns why the original fails at some sizes (position tables are finite), or "".
    """
    ranges = {symbol: _range(program, symbol) for symbol in _sizes_of_inputs(program)}
    base = [{s: _small(v, i, *ranges[s]) for i, s in enumerate(ranges)} for v in range(variants)]
    if not ranges:
        return Plan(tuple(base), (), {}, "")
    cost = _Cost(program)
    limit = max(max_bytes, *(cost.of(sizes) for sizes in base))
    least = {symbol: low for symbol, (low, _) in ranges.items()}
    ends = {s: cost.most(base[0], s, high, limit) for s, (_, high) in ranges.items()}
    largest = cost.shrink(ends, least, limit)
    why = dict.fromkeys(ranges, f"take more than {limit / 2**20:.3g} MiB")
    if reason := fails(largest):
        last = {s: _last_that_runs(base[0], s, end, fails) for s, end in ends.items()}
        failing = [symbol for symbol in ends if last[symbol] < ends[symbol]]
        why |= dict.fromkeys(failing, f"fail in the original ({reason})")
        ends, largest = last, cost.shrink(last, least, limit)
    wanted: list[Sizes] = [least, largest, *(base[0] | {s: end} for s, end in ends.items())]
    constants = _constants(graphs)
    for symbol, end in ends.items():
        inside = [c for c in constants if least[symbol] < c + 1 < end][:MAX_CONSTANTS]
        around = [(least[symbol] + end) // 2, *(n for c in inside for n in (c + 1, c))]
        wanted += [{**base[0], symbol: size} for size in around]
    further: list[Sizes] = []
    for sizes in wanted:
        if sizes not in base and sizes not in further:
            further.append(sizes)
    further = further[: max(MAX_RUNS - variants, 2)]
    return Plan(tuple(base), tuple(further), largest, _say(program, ranges, base, further, why))


def _last_that_runs(
    base: Sizes, symbol: sympy.Symbol, end: int, fails: Callable[[Sizes], str]
) -> int:
    """The largest size of one dim up to `end` at which the original runs."""
    if not fails({**base, symbol: end}):
        return end
    low, above = base[symbol], end
    while above - low > 1:
        middle = (low + above) // 2
        low, above = (low, middle) if fails({**base, symbol: middle}) else (middle, above)
    return low


def _sizes_of_inputs(program: ExportedProgram) -> list[sympy.Symbol]:
    """The symbolic sizes of inputs; other sizes depend on values."""
    chosen = {
        symbol
        for node in user_inputs(program)
        for size in shape_of(node)
        if isinstance(size, torch.SymInt)
        for symbol in size.node.expr.free_symbols
    }
    return [symbol for symbol in program.range_constraints if symbol in chosen]


def _range(program: ExportedProgram, symbol: sympy.Symbol) -> tuple[int, int | None]:
    """The least size (at least 1, since empty tensors compare nothing) and the greatest or None."""
    allowed = program.range_constraints[symbol]
    low, high = (
        int(end) if isinstance(end, sympy.Integer) else None
        for end in (allowed.lower, allowed.upper)
    )
    return max(1, low or 1), high


def _small(variant: int, place: int, low: int, high: int | None) -> int:
    """A size slightly above the least, if the range allows it."""
    size = max(2, low) + 1 + (2 * variant + 3 * place) % 5
    return size if high is None else min(high, size)


def _say(
    program: ExportedProgram,
    ranges: Mapping[sympy.Symbol, tuple[int, int | None]],
    base: Sequence[Sizes],
    further: Sequence[Sizes],
    why: Mapping[sympy.Symbol, str],
) -> str:
    lines = []
    for symbol, (low, high) in ranges.items():
        tried = sorted({sizes[symbol] for sizes in (*base, *further)})
        listed = ", ".join(map(str, tried))
        rest = "" if tried[-1] == high else f", the others {why[symbol]}"
        lines.append(f"{_place_of(program, symbol)}: {listed} of {low} to {high or 'any'}{rest}")
    return "; ".join(lines)


def _place_of(program: ExportedProgram, symbol: sympy.Symbol) -> str:
    """`ids.size(1)`: the first input that has this size."""
    for node in user_inputs(program):
        value = ops.value(node)
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.expr == symbol:
                return f"{node.name}.size({dim})"
    return str(symbol)


def _spell(sizes: Sizes) -> str:
    return "x".join(map(str, sizes.values()))


# ---- memory


class _Cost:
    """What the values of the original's nodes take, as a function of the sizes."""

    def __init__(self, program: ExportedProgram) -> None:
        known = frozenset(program.range_constraints)
        self.fixed = 0
        self.varying: Counter[sympy.Expr] = Counter()
        for node in program.graph.nodes:
            value = ops.value(node)
            if node.op == "placeholder" or not isinstance(value, Tensor):
                continue
            if all(isinstance(size, int) for size in value.shape):
                self.fixed += value.numel() * value.dtype.itemsize
                continue
            number = sympy.prod([s if isinstance(s, int) else s.node.expr for s in value.shape])
            if number.free_symbols <= known:
                self.varying[number] += value.dtype.itemsize

    def of(self, sizes: Sizes) -> int:
        given = dict(sizes)
        return self.fixed + sum(int(n.subs(given)) * size for n, size in self.varying.items())

    def most(self, base: Sizes, symbol: sympy.Symbol, high: int | None, limit: int) -> int:
        """The largest allowed size of one dim with which the run is within `limit`."""
        if high is not None and self.of({**base, symbol: high}) <= limit:
            return high
        low, above = base[symbol], 2 * base[symbol]
        while self.of({**base, symbol: above}) <= limit and above < _MAX_SIZE:
            low, above = above, 2 * above
        while above - low > 1:
            middle = (low + above) // 2
            is_within = self.of({**base, symbol: middle}) <= limit
            low, above = (middle, above) if is_within else (low, middle)
        return low

    def shrink(self, sizes: Sizes, least: Sizes, limit: int) -> Sizes:
        """Halve the largest of `sizes` until the run is within `limit`."""
        found = dict(sizes)
        while self.of(found) > limit:
            symbol = max(found, key=lambda s: found[s] / least[s])
            if found[symbol] == least[symbol]:
                break
            found[symbol] = max(least[symbol], found[symbol] // 2)
        return found


_MAX_SIZE = 4096  # of an unbounded dim


# ---- constants


def _constants(graphs: Sequence[Graph]) -> list[int]:
    """The numbers in `graphs` that sizes may be compared with, the rarest first."""
    counts: Counter[int] = Counter()
    for node in itertools.chain.from_iterable(graph.nodes for graph in graphs):
        counts.update(set(_numbers(node)))
    return sorted(counts, key=lambda number: (counts[number], number))


def _numbers(node: Node) -> list[int]:
    found: list[int] = []

    def see(value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 1 < value < 2**31 and value == int(value):
            found.append(int(value))
        return value

    map_aggregate((node.args, node.kwargs), see)
    return found
