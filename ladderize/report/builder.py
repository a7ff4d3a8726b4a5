"""A report in the making: filled by the pipeline on its way, finished by the front end.

    Draft ── see_streams (standard graph) ── see_reads (rewritten) ── see_sharding ── finish

When the pipeline refuses, the draft holds what had been found until then.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from ladderize.backends.tensorrt.engines.engine_report import EnginesReport
from ladderize.errors import LadderError
from ladderize.passes.runner import Log
from ladderize.report.communication import find_collectives
from ladderize.report.data import (
    CollectiveReport,
    GraphReport,
    Outside,
    PassReport,
    Refusal,
    ShardReport,
    StreamReport,
)
from ladderize.report.snapshot import read_branches, snapshot
from ladderize.sharding.plan import ShardPlan
from ladderize.streams.block import Block, Stream


@dataclass
class Draft:
    """What is known so far of one graph.

    Attributes:
        index: the number of the graph in the report.
        log: the passes that ran.
    """

    index: int = 0
    log: Log = field(default_factory=Log)
    _standard: tuple[StreamReport, ...] = ()
    _rewritten: tuple[StreamReport, ...] = ()
    _found: tuple[CollectiveReport, ...] = ()
    _inserted: tuple[CollectiveReport, ...] = ()
    _sharding: ShardReport | None = None
    _engines: EnginesReport | None = None
    _outside: Outside = field(default_factory=Outside)
    _home: dict[Node, str] = field(default_factory=dict)

    def see_streams(
        self, gm: GraphModule, names: Mapping[Node, str], streams: Sequence[Stream]
    ) -> None:
        """Call with the standard graph."""
        self._standard, self._outside = snapshot(gm, names, streams, self.index)
        self._home = {
            node: name + (f"_{number}" if number else "")
            for number, stream in enumerate(streams)
            for name, block in _named(stream)
            for node in block.branch
        }
        self._found = find_collectives(gm, self._home, is_inserted=False)

    def see_reads(
        self, gm: GraphModule, streams: Sequence[Stream], chosen: Sequence[frozenset[int]]
    ) -> None:
        """Call with the rewritten graph, before it is sharded or put into regions again."""
        reads = read_branches(gm, streams)
        self._rewritten = tuple(
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
            for stream in self._standard
        )

    def see_sharding(self, gm: GraphModule, plan: ShardPlan) -> None:
        """Call with the sharded graph."""
        placements = tuple((name, str(placed)) for name, placed in plan.placements.items())
        self._sharding = ShardReport(
            plan.num_ranks,
            placements,
            tuple(map(str, plan.whole)),
            sum(undivided.num_bytes for undivided in plan.whole),
            sum(undivided.flops for undivided in plan.whole),
        )
        self._inserted = find_collectives(gm, self._home, is_inserted=True)

    def see_engines(self, engines: EnginesReport) -> None:
        """Call once it is lowered to TensorRT."""
        self._engines = engines

    def finish(self, name: str, outcome: str, error: LadderError | None = None) -> GraphReport:
        """The report of this graph; with an `error` of the standard one, which it stays."""
        passes = tuple(PassReport(n, r.changed, s) for n, r, s in self.log.entries)
        graph = GraphReport(self.index, name, outcome, passes=passes, outside=self._outside)
        if error is not None:
            refusal = Refusal(error.summary, error.blockers, error.cure)
            return dataclasses.replace(
                graph, streams=self._standard, collectives=self._found, refusal=refusal
            )
        return dataclasses.replace(
            graph,
            streams=self._rewritten,
            collectives=(*self._found, *self._inserted),
            sharding=self._sharding,
            engines=self._engines,
        )


def _named(stream: Stream) -> Iterator[tuple[str, Block]]:
    """Its blocks by the names that the reports have for them."""
    yield from ((f"h{block.index}", block) for block in stream.blocks)
    yield from ((f"stale{number}", block) for number, block in enumerate(stream.stale_blocks))
