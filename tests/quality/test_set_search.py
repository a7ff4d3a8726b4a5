"""Sets are grown and shrunk by measuring, not by adding up what single blocks cost."""

from ladderize.quality.sensitivity.set_search import grow, shrink

ALONE = {1: 1.0, 2: 2.0, 3: 0.1, 4: 0.2, 5: 0.3}


class Damages:
    """Blocks cost what they cost alone, and 3 and 4 together 10 more."""

    def __init__(self):
        self.measured = []

    def __call__(self, base, sets):
        self.measured += [(base, each) for each in sets]
        assert all(len(base ^ each) <= 1 for each in sets)
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
