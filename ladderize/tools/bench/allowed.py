"""How much communication no order of a ladder can hide: the last block has nothing behind it."""

from collections.abc import Sequence

from ladderize.report.data import BlockReport
from ladderize.tools.predict.timeline.two_lanes import Branch, place, reduce_of, tasks_of


def exposed_at_least(
    blocks: Sequence[BlockReport], seconds: float, reduces: Sequence[float]
) -> float:
    """Exposed seconds of the ladder on two lanes, one for compute, one for all-reduces.

    Block i waits for the all-reduce of block i - 2, the end of the step for all.

    Args:
        blocks: blocks of the step, with their FLOPs; each ends in one all-reduce.
        seconds: their compute in total, which is divided by FLOPs.
        reduces: duration of the all-reduce of each.
    """
    flops = [block.flops or 0 for block in blocks]
    branches = [Branch(f"h{i}", (0, i), ((0, i - 2),)) for i in range(len(flops))]
    durations: dict[str, float] = {}
    for branch, part, reduce in zip(branches, flops, reduces, strict=False):
        durations[branch.name] = seconds * part / sum(flops)
        durations[reduce_of(branch.name)] = reduce
    return max(end for _, end in place(tasks_of(branches), durations).values()) - seconds
