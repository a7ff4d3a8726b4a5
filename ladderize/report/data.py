"""What a report holds: frozen dataclasses of plain data, with no graph kept alive behind them.

    ReportData ── graphs ── streams ── segments, blocks        what was found
       │         ├───── refusal                            why a graph is left as it is
       │         └───── steps, collectives, sharding       what was done
       └── breaks, options, versions

Values of a stream are named as in `recurrence.py`: block i reads `x<i>` in the standard model and
writes `y<i>`; `b<i>` is a value inside of branch i. Behind stream 0 the number of the stream
follows: `x3_1`.
"""

import dataclasses
import json
from dataclasses import dataclass

from ladderize.backends.flights import FlightReport
from ladderize.backends.tensorrt.engines.engine_report import EnginesReport
from ladderize.errors import Blocker, LadderError

WARNING = "A ladder computes another function: converted weights must be trained or healed."
SAID = "config.json"
"""The name among the options of what the model's config.json says of the ladder."""


@dataclass(frozen=True)
class BlockReport:
    """One block, `y = x + h(reads)`.

    Attributes:
        graph, stream, segment, index: where it stands; `index` counts from 0 in its stream.
        layer: index in the module list that holds it, None when it is in none.
        is_prologue: whether it is in none and comes before the first layer: unless the options
            choose it by `blocks=`, it stays standard and the first layer reads what it leaves.
        module: the module that its branch multiplies in (`model.layers.3.mlp`), "" when unknown.
        kind: of its branch: attention, MLP, MoE, conv, other; several joined by " + " where the
            block sums up parallel branches.
        source: the line of the residual add, as `file:line`, "" when unknown.
        reads_before: the values that its branch reads in the standard model.
        reads_after: what it reads in the rewritten graph; the same where nothing was rewritten.
        leaves_out: what it no longer reads: the blocks, or the summands of them, each as the name
            of the block and the module that makes it (`h3: model.layers.1.mlp.experts`).
        is_converted: whether the options choose it. The first block of a segment is converted but
            has nothing earlier to read.
        was_stale: whether it reads stale in the graph that was given already, and stays as it is.
        hides: the collectives that its stale read gives time to run: those of the blocks that it
            leaves out; where they have none, those of its own branch that it computes with. Empty
            without a stale read, and on one device.
        num_nodes: operations in its branch.
        flops: of its branch in one forward run, as `graph/flops.py` counts them.
        weight_bytes: of the parameters and buffers that its branch reads.
        reduce_bytes: of what its branch adds to the stream, which tensor parallelism all-reduces.
        attention_flops: those of `flops` that multiply computed values, of queries with keys.
        cache_bytes: of the keys and values that it attends to, before heads are repeated.

    The last five are those of the graph that was captured: of all ranks where ladderize is to
    shard it, of one where the model was sharded before. Dynamic sizes count with those of the
    call; None where a size is not known before the model runs.
    """

    graph: int
    stream: int
    segment: int
    index: int
    layer: int | None
    module: str
    kind: str
    source: str
    reads_before: tuple[str, ...]
    reads_after: tuple[str, ...]
    is_converted: bool
    num_nodes: int
    hides: tuple[str, ...] = ()
    flops: int | None = None
    weight_bytes: int | None = None
    reduce_bytes: int | None = None
    attention_flops: int | None = 0
    cache_bytes: int | None = 0
    is_prologue: bool = False
    was_stale: bool = False
    leaves_out: tuple[str, ...] = ()

    @property
    def is_rewired(self) -> bool:
        """Whether it reads something else than in the standard model."""
        return self.reads_before != self.reads_after


@dataclass(frozen=True)
class SegmentReport:
    """A run of blocks whose anchors have one shape.

    Attributes:
        index: among the segments of its stream.
        first, last: indices of its blocks.
        shape: of the stream there, ints and symbols as text.
        dtype: of the stream there ("bfloat16"), "" when unknown.
    """

    index: int
    first: int
    last: int
    shape: tuple[int | str, ...]
    dtype: str = ""


@dataclass(frozen=True)
class StreamReport:
    """A residual stream.

    Attributes:
        index: among the streams of its graph.
        stale: places (module and line) of the residual sums that read stale already, of a ladder
            that is left alone. Where one is extended, these are `blocks` like the others.
        blockers: what keeps this stream from being rewritten.
    """

    index: int
    blocks: tuple[BlockReport, ...]
    segments: tuple[SegmentReport, ...]
    stale: tuple[str, ...] = ()
    blockers: tuple[Blocker, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """Why a graph is left as it is: what `LadderError` says."""

    summary: str
    blockers: tuple[Blocker, ...] = ()
    cure: str = ""


@dataclass(frozen=True)
class StepReport:
    """One step of the pipeline before autograd.

    Attributes:
        name: of the step; a pass has that of its class.
        kind: "pass", "analysis" or "check".
        edits: how many a pass made; 0 for the others.
        seconds: wall time.
    """

    name: str
    kind: str
    edits: int
    seconds: float


@dataclass(frozen=True)
class CollectiveReport:
    """A collective launched in the graph.

    Attributes:
        op: its name (`all_reduce`).
        group: name of its process group.
        block: name of the block whose branch holds it (`h3`; `stale3` where it read stale before
            anything was rewritten), "" outside of the branches.
        is_inserted: put in by ladderize, else found in the traced graph.
        source: where it is called, as module path and line.
    """

    op: str
    group: str
    block: str
    is_inserted: bool
    source: str


@dataclass(frozen=True)
class ShardReport:
    """How the branches, and the vocabulary, are divided over the ranks of a mesh.

    Attributes:
        placements: of each divided parameter, as (name, placement).
        kept_whole: branches and parameters that could not be divided, why, and what it costs.
        extra_bytes: of parameters that each rank holds beyond an even share for it.
        extra_flops: of one forward run that each rank computes beyond an even share for it.
        num_by_expert: parameters of which each rank holds whole experts.
        split_experts: reasons why other experts are split over all ranks.
    """

    num_ranks: int
    placements: tuple[tuple[str, str], ...]
    kept_whole: tuple[str, ...]
    extra_bytes: int = 0
    extra_flops: int = 0
    num_by_expert: int = 0
    split_experts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outside:
    """What is computed outside of the branches, mostly by the head.

    Attributes:
        flops: of one forward run; None where a size is not known before the model runs.
        weight_bytes: of the parameters that are read; those of an embedding do not count.
    """

    flops: int | None = 0
    weight_bytes: int = 0


@dataclass(frozen=True)
class GraphReport:
    """One captured graph.

    Attributes:
        index: in the order of capture.
        name: of the function, or of the piece of it that a graph break left.
        outcome: a key of `OUTCOMES` (present/lines.py).
        outside: what is computed outside of its branches.
        engines: of TensorRT, None for other lowerings.
        flights: the collectives in the order that was compiled, forward and backward; empty before
            the graph is lowered, and where its code came out of a cache.
    """

    index: int
    name: str
    outcome: str
    streams: tuple[StreamReport, ...] = ()
    refusal: Refusal | None = None
    steps: tuple[StepReport, ...] = ()
    collectives: tuple[CollectiveReport, ...] = ()
    sharding: ShardReport | None = None
    outside: Outside = Outside()
    engines: EnginesReport | None = None
    flights: tuple[FlightReport, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """What was found in a model and what is done about it, as plain data.

    Attributes:
        graphs: the captured graphs; one for each compilation, several where a call broke up.
        breaks: where Dynamo cut the call, and why.
        options: those that differ from the defaults of `LadderConfig`, as text, behind what the
            model's config.json says of the ladder, if it does (`SAID`).
        versions: of ladderize and torch.
    """

    graphs: tuple[GraphReport, ...]
    breaks: tuple[Blocker, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every graph can be (or was) made a ladder as the options ask."""
        return bool(self.graphs) and not self.refused

    @property
    def streams(self) -> tuple[StreamReport, ...]:
        """Of all graphs."""
        return tuple(stream for graph in self.graphs for stream in graph.streams)

    @property
    def blocks(self) -> tuple[BlockReport, ...]:
        """Of all streams, in order."""
        return tuple(block for stream in self.streams for block in stream.blocks)

    @property
    def dtype(self) -> str:
        """Of the first stream; "" without one."""
        return next((stream.segments[0].dtype for stream in self.streams), "")

    @property
    def num_stale(self) -> int:
        """Blocks that read stale, or would; the first one of a segment does not."""
        return sum(block.is_rewired for block in self.blocks)

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Why graphs are left as they are: summary, blockers and cure of each."""
        return tuple(graph.refusal for graph in self.graphs if graph.refusal is not None)

    def raise_refusal(self) -> None:
        """Raise the `LadderError` of the first graph that is left as it is, if there is one."""
        for refusal in self.refused:
            raise LadderError(refusal.summary, refusal.blockers, refusal.cure)

    @property
    def steps(self) -> tuple[StepReport, ...]:
        """Everything that ran: passes, analyses and checks, in order."""
        return tuple(step for graph in self.graphs for step in graph.steps)

    @property
    def passes(self) -> tuple[StepReport, ...]:
        """The steps that may edit the graph."""
        return tuple(step for step in self.steps if step.kind == "pass")

    @property
    def collectives(self) -> tuple[CollectiveReport, ...]:
        """Those launched in the graphs, found there or put in."""
        return tuple(entry for graph in self.graphs for entry in graph.collectives)

    def to_json(self) -> str:
        """Everything that the report holds, as JSON, behind the counts of its headline."""
        counts = {"num_blocks": len(self.blocks), "num_stale": self.num_stale}
        return json.dumps({**counts, **dataclasses.asdict(self)}, indent=1)
