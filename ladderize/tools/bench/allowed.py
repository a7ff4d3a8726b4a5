"""How much communication no order of a ladder can hide: the last block has nothing behind it."""

from collections.abc import Sequence

from ladderize.report.data import BlockReport
from ladderize.tools.predict.timeline.tasks import COMPUTE, LINK
from ladderize.tools.predict.timeline.two_lanes import Task, place


def exposed_at_least(
    blocks: Sequence[BlockReport], seconds: float, reduces: Sequence[float]
) -> float:
    """Exposed seconds of the ladder on two lanes, one for compute, one for all-reduces.

    Block i waits for the all-reduce of block i - 2, the end of the step for all.

    Args:
        blocks: of the step, with their FLOPs; each ends in one all-reduce.
        seconds: of their compute, which is divided by FLOPs.
        reduces: of the all-reduce of each.
    """
    flops = [block.flops or 0 for block in blocks]
    tasks: list[Task] = []
    durations: dict[str, float] = {}
    for i, part in enumerate(flops):
        stale = (f"all-reduce {i - 2}",) if i > 1 else ()
        tasks += [Task(f"h{i}", COMPUTE, stale), Task(f"all-reduce {i}", LINK, (f"h{i}",))]
        durations[f"h{i}"] = seconds * part / sum(flops)
        durations[f"all-reduce {i}"] = reduces[i]
    return max(end for _, end in place(tasks, durations).values()) - seconds
