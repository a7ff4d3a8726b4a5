"""Build a report by observing the pipeline, step by step.

    ReportBuilder ── read_standard ── read_rewritten ── ShardBranches ── finish

If the pipeline refuses a graph, the builder holds what was found until then.
"""

import dataclasses
from collections.abc import Iterator, Sequence
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
from ladderize.report.snapshot import module_of, read_branches, snapshot
from ladderize.sharding.folded_lines import folded_lines
from ladderize.streams.block import Block, Stream
from ladderize.streams.contributions import brought
from ladderize.streams.left_out import LeftOut


@dataclass
class ReportBuilder:
    """The unfinished report of one graph.

    Attributes:
        index: index of the graph in the report.
    """

    index: int = 0
    _standard: tuple[StreamReport, ...] = ()
    _rewritten: tuple[StreamReport, ...] = ()
    _found: tuple[CollectiveReport, ...] = ()
    _inserted: tuple[CollectiveReport, ...] = ()
    _sharding: ShardReport | None = None
    _outside: Outside = field(default_factory=Outside)
    _home: dict[Node, str] = field(default_factory=dict)
    _left_out: tuple[dict[int, tuple[LeftOut, ...]], ...] = ()
    _name_of: dict[Block, str] = field(default_factory=dict)
    _brought: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    _home_of_parts: dict[Node, str] = field(default_factory=dict)
    _of_parts: tuple[CollectiveReport, ...] = ()

    def see(self, step: str, state: object) -> None:
        """Record from `state`, a `Rewriting`, what `step` has found or done."""
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
        self._name_of = {
            block: name
            for number, stream in enumerate(state.streams)
            for name, block in _named(stream, number)
        }
        self._left_out = tuple(found.left_out() for found in state.reads)
        self._brought = {
            (number, index): brought(state.analysis, state.streams[number].blocks[index])
            for number, of_stream in enumerate(self._left_out if self._found else ())
            for index in of_stream
        }
        self._home_of_parts = {
            node: self._name_of[left.block]
            for of_stream in self._left_out
            for parts in of_stream.values()
            for left in parts
            if left.summands
            for node in left.nodes
        }
        self._see_parts(state, is_inserted=False)
        self._rewritten = tuple(
            dataclasses.replace(
                stream,
                blocks=tuple(
                    dataclasses.replace(
                        block,
                        reads_after=reads[stream.index][block.index],
                        is_converted=block.index in state.chosen[stream.index],
                        was_stale=block.index in state.stale[stream.index],
                        leaves_out=self._named(self._left_out[stream.index].get(block.index, ())),
                    )
                    for block in stream.blocks
                ),
            )
            for stream in self._standard
        )

    def _named(self, left_out: Sequence[LeftOut]) -> tuple[str, ...]:
        """Names of the blocks or summands that are left out, with the modules that make them."""
        parts = [
            (self._name_of[left.block], module)
            for left in left_out
            for module in [s.module for s in left.summands] or [module_of(left.block)]
        ]
        return tuple(f"{name}: {module}" if module else name for name, module in parts)

    def _see_parts(self, state: Rewriting, *, is_inserted: bool) -> None:
        """Record the collectives of left-out summands whose block has others that are read."""
        if self._home_of_parts:
            found = find_collectives(state.gm, self._home_of_parts, is_inserted)
            self._of_parts += tuple(collective for collective in found if collective.block)

    def _see_sharding(self, state: Rewriting) -> None:
        plan = state.shard_plan
        placements = tuple((name, plan.describe_placement(name)) for name in plan.placements)
        self._sharding = ShardReport(
            plan.num_ranks,
            placements,
            tuple(folded_lines(plan.whole)),
            sum(undivided.num_bytes for undivided in plan.whole),
            sum(undivided.flops for undivided in plan.whole),
            plan.cache_bytes,
            len(plan.whole_experts),
            tuple(map(str, plan.split_experts)),
        )
        self._inserted = find_collectives(state.gm, self._home, is_inserted=True)
        self._see_parts(state, is_inserted=True)

    def finish(
        self, log: Log, name: str, outcome: str, error: LadderError | None = None
    ) -> GraphReport:
        """The report of this graph; with an `error`, of the standard graph and its refusal.

        Args:
            log: log of the steps that ran.
            name: name of the graph.
            outcome: a key of `OUTCOMES` (present/lines.py).
            error: refusal of the pipeline, if any.
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
        """`stream` with the collectives that each block's stale read hides."""
        left_out = self._left_out[stream.index] if self._left_out else {}

        def hidden_by(index: int) -> tuple[str, ...]:
            parts = left_out.get(index, ())
            behind = {self._name_of[left.block] for left in parts}
            is_part = any(left.summands for left in parts)
            found = self._of_parts if is_part else collectives
            of_others = tuple(c.op for c in found if c.block in behind and c.op in LAUNCHES)
            return of_others or (self._brought.get((stream.index, index), ()) if parts else ())

        blocks = (dataclasses.replace(b, hides=hidden_by(b.index)) for b in stream.blocks)
        return dataclasses.replace(stream, blocks=tuple(blocks))


def _named(stream: Stream, number: int) -> Iterator[tuple[str, Block]]:
    """The blocks of `stream` by their names in reports."""
    yield from ((_name(block.index, number), block) for block in stream.blocks)
    stale = enumerate(stream.stale_blocks)
    yield from ((_name(index, number, "stale"), block) for index, block in stale)


def _name(index: int, stream: int, kind: str = "h") -> str:
    return f"{kind}{index}_{stream}" if stream else f"{kind}{index}"
