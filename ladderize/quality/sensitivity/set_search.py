"""Search for the sets of blocks with the least damage: grow, shrink, exchange, measure.

    {} ── add the cheapest of `width` measured candidates ── … ── all
    all ── remove the costliest of `width` measured blocks ── … ── {}
    a set ── exchange one block for another, while that lowers the damage

Damage is not additive: one block can dominate a set. So a candidate is ranked by its latest
measurement, and measured again with the set that it would join.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

Blocks = frozenset[int]
Measure = Callable[[Blocks, Sequence[Blocks]], Sequence[float]]
"""Returns the damage of each of several sets, which differ little from the first argument."""


def grow(measure: Measure, blocks: Collection[int], width: int) -> Iterator[tuple[Blocks, float]]:
    """Yield sets of 1, 2, … blocks, each with one more block than the last, and their damage.

    All blocks are measured alone first.

    Args:
        measure: measures sets.
        blocks: blocks that can be converted.
        width: number of candidates measured per step.
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
    """Yield sets with one block less each, from `start` down to `least` blocks, and their damage.

    Args:
        measure: measures sets.
        start: set to start from.
        damage: damage of `start`.
        width: number of candidates measured per step; the first step measures all.
        least: number of blocks at which to stop.
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
    """Exchange blocks of `start` for others, one pair at a time, while that lowers the damage.

    Args:
        measure: measures sets.
        start: set to start from; its size is kept.
        damage: damage of `start`.
        blocks: blocks that can be converted.
        width: number of candidates to leave and to enter; every pair is measured.
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
