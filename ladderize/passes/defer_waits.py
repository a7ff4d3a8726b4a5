"""Defer waits and move launches forward according to `find_schedules`.

    before   l0 w0 x1 | h1 l1 w1 x2 | h2 l2 w2 x3          h1 reads x0, h2 reads x1
    after    l0 | h1 l1 w0 x1 | h2 l2 w1 x2 | w2 x3

Only the order of nodes changes; writes to memory and their reads keep their order. Launches of
different kinds may pass each other. This is the same on all ranks, because they have the same
graph.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from ladderize.config.hardware import Hardware
from ladderize.config.options import LadderConfig
from ladderize.graph.dataflow import find_memory_order
from ladderize.passes import PassResult
from ladderize.passes.lane_times import Durations, exposed
from ladderize.passes.node_order import arrange, launches_first, ordered
from ladderize.passes.schedule import MAX_AHEAD, find_schedules


@dataclass(frozen=True)
class DeferWaits:
    """Choose the order with the least exposed time in the model of `lane_times.py`.

    The written order is kept if no schedule is as good.

    Attributes:
        hardware: hardware for durations in seconds; None estimates them from FLOPs and bytes.
        max_ahead: maximum number of later launches of its channel past which a wait is deferred.
            The buffers of all these launches are in flight at once.
    """

    hardware: Hardware | None = None
    max_ahead: int = MAX_AHEAD
    preserves_values: ClassVar[bool] = True

    @classmethod
    def of(cls, config: LadderConfig) -> "DeferWaits":
        return cls(config.known_hardware, config.launches_ahead)

    def __call__(self, gm: GraphModule) -> PassResult:
        durations = Durations.of(gm.graph, self.hardware)
        written = list(gm.graph.nodes)
        memory = find_memory_order(written)
        best, moved, least = written, 0, exposed(written, durations)
        for schedule in find_schedules(gm.graph, durations, self.max_ahead):
            if not schedule.waits and not schedule.launches:
                continue
            order, kept = ordered(gm.graph, schedule, memory)
            order = launches_first(order, durations, memory)
            time = exposed(order, durations)
            if time <= least:
                best, moved, least = order, kept, time
        if best is not written:
            arrange(best)
        return PassResult(changed=moved)
