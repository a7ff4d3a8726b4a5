"""How much communication no order of a ladder can hide: the last block has nothing behind it."""

from collections.abc import Sequence

from ladderize.report.data import BlockReport


def exposed_at_least(blocks: Sequence[BlockReport], seconds: float, communicating: float) -> float:
    """Exposed seconds of the ladder on two lanes, one for compute, one for all-reduces.

    Block i waits for the all-reduces of the blocks before i - 1, the end of the step for all.

    Args:
        blocks: of the step, with their FLOPs; each ends in one all-reduce.
        seconds: of their compute, which is divided by FLOPs.
        communicating: of all their all-reduces.
    """
    flops = [block.flops or 0 for block in blocks]
    each = communicating / len(blocks)
    now = exposed = 0.0
    done: list[float] = []
    for i, part in enumerate(flops):
        ready = done[i - 2] if i > 1 else 0.0
        exposed += max(0.0, ready - now)
        now = max(now, ready) + seconds * part / sum(flops)
        done.append(max(now, done[-1] if done else 0.0) + each)
    return exposed + done[-1] - now
