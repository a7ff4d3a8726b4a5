"""A report in the making: it observes the pipeline, step by step.

    ReportBuilder ── read_standard ── read_rewritten ── ShardBranches ── finish

When the pipeline refuses, the builder holds what had been found until then.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.fx import Node

from ladderize.errors import LadderError
from ladderize.graph.collectives import LAUNCHES
from ladderize.passes.rewriting_state import Rewriting
from ladderize.passes.runner import Log
from ladderize.report.communication import find_collectives
from ladderize.report.data import (
    CollectiveReport,
    GraphReport,
    Outside,
    Refusal,
    ShardReport,
    StepReport,
    StreamReport,
)
from ladderize.report.snapshot import read_branches, snapshot
from ladderize.streams.block import Block, Stream


@dataclass
class ReportBuilder:
    """What is known so far of one graph.

    Attributes:
        index: the number of the graph in the report.
    """

    index: int = 0
    _standard: tuple[StreamReport, ...] = ()
    _rewritten: tuple[StreamReport, ...] = ()
    _found: tuple[CollectiveReport, ...] = ()
    _inserted: tuple[CollectiveReport, ...] = ()
    _sharding: ShardReport | None = None
    _outside: Outside = field(default_factory=Outside)
    _home: dict[Node, str] = field(default_factory=dict)
    _left_out: tuple[dict[int, set[str]], ...] = ()

    def see(self, step: str, state: object) -> None:
        """Take from `state`, a `Rewriting`, what `step` has found or done."""
        assert isinstance(state, Rewriting)
        seen = {
            "read_standard": self._see_streams,
            "read_rewritten": self._see_reads,
            "ShardBranches": self._see_sharding,
        }
        if step in seen:
            seen[step](state)

    def _see_streams(self, state: Rewriting) -> None:
        found = snapshot(state.analysis, state.streams, state.standard, self.index)
        self._standard, self._outside = found
        self._rewritten = self._standard
        self._home = {
            node: name
            for number, stream in enumerate(state.streams)
            for name, block in _named(stream, number)
            for node in block.branch
        }
        self._found = find_collectives(state.gm, self._home, is_inserted=False)

    def _see_reads(self, state: Rewriting) -> None:
        reads = read_branches(state.rewritten)
        name_of = {
            block: name
            for number, stream in enumerate(state.streams)
            for name, block in _named(stream, number)
        }
        self._left_out = tuple(
            {index: {name_of[block] for block in left} for index, left in found.left_out().items()}
            for found in state.reads
        )
        self._rewritten = tuple(
            dataclasses.replace(
                stream,
                blocks=tuple(
                    dataclasses.replace(
                        block,
                        reads_after=reads[stream.index][block.index],
                        is_converted=block.index in state.chosen[stream.index],
                        was_stale=block.index in state.stale[stream.index],
                    )
                    for block in stream.blocks
                ),
            )
            for stream in self._standard
        )

    def _see_sharding(self, state: Rewriting) -> None:
        plan = state.shard_plan
        placements = tuple((name, str(placed)) for name, placed in plan.placements.items())
        self._sharding = ShardReport(
            plan.num_ranks,
            placements,
            tuple(map(str, plan.whole)),
            sum(undivided.num_bytes for undivided in plan.whole),
            sum(undivided.flops for undivided in plan.whole),
        )
        self._inserted = find_collectives(state.gm, self._home, is_inserted=True)

    def finish(
        self, log: Log, name: str, outcome: str, error: LadderError | None = None
    ) -> GraphReport:
        """The report of this graph; with an `error` of the standard one, which it stays.

        Args:
            log: the steps that ran.
            name: of the graph.
            outcome: a key of `OUTCOMES` (present/lines.py).
        """
        steps = tuple(StepReport(e.name, e.kind, e.result.changed, e.seconds) for e in log.entries)
        graph = GraphReport(self.index, name, outcome, steps=steps, outside=self._outside)
        if error is not None:
            refusal = Refusal(error.summary, error.blockers, error.cure)
            return dataclasses.replace(
                graph, streams=self._standard, collectives=self._found, refusal=refusal
            )
        collectives = (*self._found, *self._inserted)
        return dataclasses.replace(
            graph,
            streams=tuple(self._with_hidden(stream, collectives) for stream in self._rewritten),
            collectives=collectives,
            sharding=self._sharding,
        )

    def _with_hidden(
        self, stream: StreamReport, collectives: tuple[CollectiveReport, ...]
    ) -> StreamReport:
        """`stream`, whose blocks know what their stale reads hide."""
        names = self._left_out[stream.index] if self._left_out else {}

        def hidden_by(index: int) -> tuple[str, ...]:
            behind = names.get(index, set())
            return tuple(c.op for c in collectives if c.block in behind and c.op in LAUNCHES)

        blocks = (dataclasses.replace(b, hides=hidden_by(b.index)) for b in stream.blocks)
        return dataclasses.replace(stream, blocks=tuple(blocks))


def _named(stream: Stream, number: int) -> Iterator[tuple[str, Block]]:
    """Its blocks by the names that the reports have for them."""
    yield from ((_name(block.index, number), block) for block in stream.blocks)
    stale = enumerate(stream.stale_blocks)
    yield from ((_name(index, number, "stale"), block) for index, block in stale)


def _name(index: int, stream: int, kind: str = "h") -> str:
    return f"{kind}{index}_{stream}" if stream else f"{kind}{index}"
