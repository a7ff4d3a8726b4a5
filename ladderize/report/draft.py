"""A report in the making: filled by the pipeline on its way, finished by the front end.

    Draft ── see_streams (standard graph) ── see_reads (rewritten) ── see_sharding ── finish

When the pipeline refuses, the draft holds what had been found until then.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from ladderize.block import Stream
from ladderize.errors import LadderError
from ladderize.plan import ShardPlan
from ladderize.report.collectives import find_collectives
from ladderize.report.data import (
    CollectiveReport,
    GraphReport,
    PassReport,
    Refusal,
    ShardReport,
    StreamReport,
)
from ladderize.report.snapshot import read_branches, snapshot
from ladderize.runner import Log


@dataclass
class Draft:
    """What is known so far of one graph.

    Attributes:
        index: the number of the graph in the report.
        log: the passes that ran.
    """

    index: int = 0
    log: Log = field(default_factory=Log)
    _streams: tuple[StreamReport, ...] = ()
    _collectives: tuple[CollectiveReport, ...] = ()
    _sharding: ShardReport | None = None
    _home: dict[Node, str] = field(default_factory=dict)

    def see_streams(
        self, gm: GraphModule, names: Mapping[Node, str], streams: Sequence[Stream]
    ) -> None:
        """Call with the standard graph."""
        self._streams = snapshot(gm, names, streams, self.index)
        self._home = {
            node: f"h{block.index}" + (f"_{number}" if number else "")
            for number, stream in enumerate(streams)
            for block in stream.blocks
            for node in block.branch
        }
        self._collectives = find_collectives(gm, self._home, is_inserted=False)

    def see_reads(
        self, gm: GraphModule, streams: Sequence[Stream], chosen: Sequence[frozenset[int]]
    ) -> None:
        """Call with the rewritten graph, before it is sharded or put into regions again."""
        reads = read_branches(gm, streams)
        self._streams = tuple(
            dataclasses.replace(
                stream,
                blocks=tuple(
                    dataclasses.replace(
                        block,
                        reads_after=reads[stream.index][block.index],
                        is_converted=block.index in chosen[stream.index],
                    )
                    for block in stream.blocks
                ),
            )
            for stream in self._streams
        )

    def see_sharding(self, gm: GraphModule, plan: ShardPlan) -> None:
        """Call with the sharded graph."""
        placements = tuple((name, str(placed)) for name, placed in plan.placements.items())
        self._sharding = ShardReport(plan.num_ranks, placements, plan.notes)
        self._collectives += find_collectives(gm, self._home, is_inserted=True)

    def finish(self, name: str, outcome: str, error: LadderError | None = None) -> GraphReport:
        """The report of this graph, refused when there is an `error`."""
        refusal = Refusal(error.summary, error.blockers, error.cure) if error else None
        return GraphReport(
            index=self.index,
            name=name,
            outcome=outcome,
            streams=self._streams,
            refusal=refusal,
            passes=tuple(PassReport(n, r.changed, s) for n, r, s in self.log.entries),
            collectives=self._collectives,
            sharding=self._sharding,
        )
