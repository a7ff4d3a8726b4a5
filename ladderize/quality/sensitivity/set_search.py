"""Search for the sets of blocks that cost least: grow, shrink and exchange, and measure each set.

    {} ── with the cheapest of `width` candidates, each measured ── … ── all
    all ── without the costliest of `width` blocks, each measured ── … ── {}
    a set of some size ── with one block exchanged for another, while that lowers its damage

Damage does not add up: one block can carry a set. So a candidate is ranked by what it cost in its
latest measurement, and measured again, with the set that it would join, before it is taken.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

Blocks = frozenset[int]
Measure = Callable[[Blocks, Sequence[Blocks]], Sequence[float]]
"""The damage of each of some sets, which differ little from the first argument."""


def grow(measure: Measure, blocks: Collection[int], width: int) -> Iterator[tuple[Blocks, float]]:
    """Sets of 1, 2, … blocks, each with one block more than the one before, and their damage.

    All blocks are measured alone first.

    Args:
        measure: measures sets.
        blocks: those that can be converted.
        width: candidates that are measured for each step.
    """
    order = sorted(blocks)
    alone = measure(frozenset(), [frozenset({block}) for block in order])
    added = dict(zip(order, alone, strict=True))
    chosen: Blocks = frozenset()
    damage = 0.0
    while len(chosen) < len(order):
        candidates = sorted(added, key=lambda block: (added[block], block))[:width]
        if chosen:
            found = measure(chosen, [chosen | {block} for block in candidates])
        else:
            found = [added[block] for block in candidates]
        for block, total in zip(candidates, found, strict=True):
            added[block] = total - damage
        best = min(candidates, key=lambda block: (added[block], block))
        damage += added.pop(best)
        chosen |= {best}
        yield chosen, damage


def shrink(
    measure: Measure, start: Blocks, damage: float, width: int, least: int = 1
) -> Iterator[tuple[Blocks, float]]:
    """Sets with one block less each, from `start` down to `least` blocks, and their damage.

    Args:
        measure: measures sets.
        start: where to begin.
        damage: that of `start`.
        width: candidates that are measured for each step, but for the first one: there all are.
        least: the number of blocks to stop at.
    """
    saved = dict.fromkeys(sorted(start), 0.0)
    chosen = start
    candidates = list(saved)
    while len(chosen) > least:
        found = measure(chosen, [chosen - {block} for block in candidates])
        for block, total in zip(candidates, found, strict=True):
            saved[block] = damage - total
        best = max(candidates, key=lambda block: (saved[block], -block))
        damage -= saved.pop(best)
        chosen -= {best}
        yield chosen, damage
        candidates = sorted(saved, key=lambda block: (-saved[block], block))[:width]


def exchange(
    measure: Measure, start: Blocks, damage: float, blocks: Collection[int], width: int
) -> tuple[Blocks, float]:
    """`start` with blocks exchanged for others, one pair at a time, while that lowers the damage.

    Args:
        measure: measures sets.
        start: where to begin; its size stays.
        damage: that of `start`.
        blocks: those that can be converted.
        width: candidates to leave and to enter; each pair of them is measured.
    """
    while others := set(blocks) - start:
        leaving = _cheapest(measure, start, [(b, start - {b}) for b in sorted(start)], width)
        entering = _cheapest(measure, start, [(b, start | {b}) for b in sorted(others)], width)
        pairs = [start - {old} | {new} for old in leaving for new in entering]
        found = measure(start, pairs)
        lowest = min(found)
        if lowest >= damage:
            break
        start, damage = pairs[list(found).index(lowest)], lowest
    return start, damage


def _cheapest(
    measure: Measure, base: Blocks, candidates: Sequence[tuple[int, Blocks]], width: int
) -> list[int]:
    """The blocks whose sets have the least damage."""
    found = measure(base, [blocks for _, blocks in candidates])
    ranked = sorted(zip(found, (block for block, _ in candidates), strict=True))
    return [block for _, block in ranked[:width]]
