"""The variants that a plan compares, each as blocks and the graph of their tasks.

standard   h1 waits for the all-reduce of h0
ladder     a converted h1 reads an earlier sum and does not wait
farskip    h1 waits for the landed summand of h0, not for its routed experts; also "instella"
parallel   attention and MLP of a layer read the same sum and share an all-reduce
desync:n   every n-th block and the last one have an all-reduce
bound      no all-reduce
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ladderize.config.connectivity import LADDER
from ladderize.config.hardware import Hardware
from ladderize.streams.block import stale_sources
from ladderize.tools.predict.planning.workload import Phase, PlannedBlock, PlannedCosts, Workload
from ladderize.tools.predict.timeline.spans import Span
from ladderize.tools.predict.timeline.steps import TimelineStep
from ladderize.tools.predict.timeline.two_lanes import (
    Branch,
    Task,
    as_step,
    dispatch_of,
    landed_of,
    place,
    reduce_of,
    tasks_of,
)

VARIANTS = ("standard", "ladder", "parallel", "bound")


@dataclass(frozen=True)
class PlannedNet:
    """One variant of a model.

    Attributes:
        name: one of `VARIANTS`, a connectivity, or "desync:n".
        blocks: blocks in order.
        outside: costs of the head.
        sources: for each block that reads stale, the block whose anchor it reads.
        is_reduced: whether ranks communicate.
        period: number of blocks per all-reduce; the last block always has one.
        reads_landed: indices of blocks that read the landed summand of the block before them.
    """

    name: str
    blocks: tuple[PlannedBlock, ...]
    outside: PlannedCosts
    sources: Mapping[int, int] = dataclasses.field(default_factory=dict)
    is_reduced: bool = True
    period: int = 1
    reads_landed: frozenset[int] = frozenset()

    @cached_property
    def _tasks(self) -> tuple[Task, ...]:
        return tasks_of(self._branches())

    def _branches(self) -> Iterator[Branch]:
        for number, block in enumerate(self.blocks):
            source = self.sources.get(block.index, number)
            reads = ((0, source - 1),)
            is_due = (number + 1) % self.period == 0 or number + 1 == len(self.blocks)
            is_exchanged = self.is_reduced and block.exchanged_bytes > 0
            sends = is_exchanged or (self.is_reduced and is_due and block.reduce_bytes > 0)
            is_split = block.index + 1 in self.reads_landed
            yield Branch(
                block.name,
                (0, number),
                reads,
                sends,
                is_dispatched=is_exchanged,
                landed=((0, number - 1),) if block.index in self.reads_landed else (),
                has_landed_reduce=is_split and sends and not block.is_local,
            )

    def seconds(self, phase: Phase, hardware: Hardware) -> float:
        """Seconds of one run, with the head."""
        placed = self._place(phase, hardware)
        return max(end for _, end in placed.values()) + self._head(phase, hardware)

    def step(self, phase: Phase, hardware: Hardware) -> TimelineStep:
        """One run as a step of a timeline, without the head."""
        return as_step(self.name, self._tasks, self._place(phase, hardware))

    def _place(self, phase: Phase, hardware: Hardware) -> dict[str, Span]:
        return place(self._tasks, self._durations(phase, hardware), hardware.contention)

    def _head(self, phase: Phase, hardware: Hardware) -> float:
        if self.outside == PlannedCosts():
            return 0.0
        return self.outside.seconds(phase, hardware)

    def _durations(self, phase: Phase, hardware: Hardware) -> dict[str, float]:
        found: dict[str, float] = {}
        for block in self.blocks:
            work = block.costs.seconds(phase, hardware, block.ranks(hardware.ranks))
            found[block.name] = work + (block.num_branches - 1) * hardware.launch
            sent = block.reduce_bytes * phase.tokens
            reduced = hardware.reduce_seconds(sent)
            found[reduce_of(block.name)] = found[landed_of(block.name)] = reduced
            if block.exchanged_bytes:
                exchange = hardware.exchange_seconds(block.exchanged_bytes * phase.tokens)
                found[dispatch_of(block.name)] = found[reduce_of(block.name)] = exchange
        return found


def standard(workload: Workload) -> PlannedNet:
    return PlannedNet("standard", workload.blocks, workload.outside)


def ladder(workload: Workload, chosen: Collection[int] | None = None) -> PlannedNet:
    """The ladder that converts the blocks `chosen` (None: those of the workload)."""
    chosen = workload.chosen if chosen is None else chosen
    sources = stale_sources(workload.blocks, chosen, workload.staleness)
    return PlannedNet(LADDER, workload.blocks, workload.outside, sources)


def converted(workload: Workload, chosen: Collection[int] | None = None) -> PlannedNet:
    """`ladder`, with the connectivity of the workload."""
    if workload.connectivity == LADDER:
        return ladder(workload, chosen)
    chosen = workload.chosen if chosen is None else chosen
    stale = [block for block in workload.blocks if block.index in chosen and block.leaves_out]
    sources = stale_sources(workload.blocks, {block.index for block in stale}, workload.staleness)
    landed = frozenset(block.index for block in stale if block.reads_landed)
    return PlannedNet(
        workload.connectivity, workload.blocks, workload.outside, sources, reads_landed=landed
    )


def parallel(workload: Workload) -> PlannedNet:
    """Attention and MLP of a layer in parallel. Experts of other ranks keep their all-to-alls."""
    if workload.is_expert_parallel:
        together = dict(_same_reads(workload.blocks))
        return PlannedNet("parallel", workload.blocks, workload.outside, together)
    return PlannedNet("parallel", tuple(_merged(workload.blocks)), workload.outside)


def desync(workload: Workload, period: int) -> PlannedNet:
    """The desync residual that reduces every `period`-th block, and the last one."""
    return PlannedNet(f"desync:{period}", workload.blocks, workload.outside, period=period)


def bound(workload: Workload) -> PlannedNet:
    return PlannedNet("bound", workload.blocks, workload.outside, is_reduced=False)


def variants(workload: Workload, period: int = 0) -> tuple[PlannedNet, ...]:
    """The variants of `VARIANTS`, in order.

    The connectivity of the workload, if not "ladder", follows the ladder. The desync residual, if
    `period` is given, precedes the bound.
    """
    other = () if workload.connectivity == LADDER else (converted(workload),)
    apart = (desync(workload, period),) if period else ()
    nets = (standard(workload), ladder(workload), *other, parallel(workload))
    return *nets, *apart, bound(workload)


def _same_reads(blocks: Sequence[PlannedBlock]) -> Iterator[tuple[int, int]]:
    """For each block after the attention of its layer, its index and that of the attention."""
    for before, block in pairwise(blocks):
        if before.is_attention and before.layer == block.layer is not None:
            yield block.index, before.index


def _merged(blocks: Sequence[PlannedBlock]) -> Iterator[PlannedBlock]:
    """The blocks, with each attention merged with the next block of its layer."""
    left = list(blocks)
    while left:
        block = left.pop(0)
        if left and block.is_attention and left[0].layer == block.layer is not None:
            other = left.pop(0)
            block = dataclasses.replace(
                block, costs=block.costs + other.costs, num_branches=2, is_attention=False
            )
        yield block
