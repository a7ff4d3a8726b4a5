"""Sets are grown and shrunk by measurement, not by adding the damage of single blocks."""

from ladderize.quality.sensitivity.set_search import exchange, grow, shrink

ALONE = {1: 1.0, 2: 2.0, 3: 0.1, 4: 0.2, 5: 0.3}


class Damages:
    """Blocks cost what they cost alone, and 3 and 4 together 10 more."""

    def __init__(self):
        self.measured = []

    def __call__(self, base, sets):
        self.measured += [(base, each) for each in sets]
        assert all(len(base ^ each) <= 2 for each in sets)  # little is run again
        return [self.of(each) for each in sets]

    @staticmethod
    def of(blocks):
        return sum(ALONE[block] for block in blocks) + 10 * ({3, 4} <= blocks)


def test_growing_avoids_what_is_cheap_alone_and_dear_together():
    damages = Damages()
    found = list(grow(damages, ALONE, width=2))
    assert [sorted(blocks) for blocks, _ in found[:4]] == [[3], [3, 5], [1, 3, 5], [1, 2, 3, 5]]
    assert [sorted(blocks) for blocks, _ in found[4:]] == [[1, 2, 3, 4, 5]]
    assert [round(damage, 6) for _, damage in found] == [0.1, 0.4, 1.4, 3.4, 13.6]
    assert len(damages.measured) == 5 + 2 + 2 + 2 + 1  # each alone, then two candidates a step


def test_shrinking_leaves_out_what_carries_the_set():
    damages = Damages()
    everything = frozenset(ALONE)
    found = list(shrink(damages, everything, damages.of(everything), width=2))
    assert [sorted(blocks) for blocks, _ in found] == [[1, 2, 3, 5], [1, 3, 5], [3, 5], [3]]
    assert [round(damage, 6) for _, damage in found] == [3.4, 1.4, 0.4, 0.1]
    assert len(damages.measured) == 5 + 2 + 2 + 2  # all of them once, then two candidates a step


def test_one_block():
    assert list(grow(Damages(), [2], width=8)) == [(frozenset({2}), 2.0)]
    assert list(shrink(Damages(), frozenset({2}), 2.0, width=8)) == []


class Traps(Damages):
    """Nested sets lead to {3, 5}; {1, 2} costs less than any other pair."""

    @staticmethod
    def of(blocks):
        return Damages.of(blocks) - 2.9 * ({1, 2} <= blocks)

    def __call__(self, base, sets):
        self.measured += [(base, each) for each in sets]
        return [self.of(each) for each in sets]


def test_exchanging_leaves_the_nested_sets():
    damages = Traps()
    found, damage = exchange(damages, frozenset({1, 5}), damages.of({1, 5}), ALONE, width=3)
    assert (sorted(found), round(damage, 6)) == ([1, 2], 0.1)
    assert damage == damages.of(found)


def test_exchanging_stops_where_nothing_is_better():
    damages = Damages()
    start = frozenset({3, 5})
    assert exchange(damages, start, damages.of(start), ALONE, width=2) == (start, 0.4)
    assert len(damages.measured) == 2 + 3 + 2 * 2  # who leaves, who enters, their pairs
    everything = frozenset(ALONE)
    assert exchange(damages, everything, 13.6, ALONE, width=2) == (everything, 13.6)
