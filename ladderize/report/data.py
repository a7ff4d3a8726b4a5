"""The data of a report: frozen dataclasses of plain values that keep no graph alive.

    ReportData ── graphs ── streams ── segments, blocks        what was found
       │         ├───── refusal                            why a graph is not rewritten
       │         └───── steps, collectives, sharding       what was done
       └── breaks, options, versions

Values of a stream are named as in `recurrence.py`: block i reads `x<i>` in the standard model and
writes `y<i>`; `b<i>` is a value inside branch i. Streams other than stream 0 add their number:
`x3_1`.
"""

import dataclasses
import json
from dataclasses import dataclass

from ladderize.backends.flights import FlightReport
from ladderize.backends.tensorrt.engines.engine_report import EnginesReport
from ladderize.errors import Blocker, LadderError

WARNING = "A ladder computes another function: converted weights must be trained or healed."
SAID = "config.json"
"""Key in the options for the ladder entry of the model's config.json."""


@dataclass(frozen=True)
class BlockReport:
    """One block, `y = x + h(reads)`.

    Attributes:
        graph, stream, segment, index: indices of its graph, stream and segment, and its own index
            in the stream, all from 0.
        layer: index in the module list that holds it, None if there is none.
        is_prologue: whether it precedes the first layer and is in none. A prologue stays standard
            unless `blocks=` chooses it, and the first layer reads its output.
        module: module of the branch's products (`model.layers.3.mlp`), "" if unknown.
        kind: kind of its branch: attention, MLP, MoE, conv or other; those of parallel branches
            are joined by " + ".
        source: line of the residual add, as `file:line`, "" if unknown.
        reads_before: values that its branch reads in the standard model.
        reads_after: values that its branch reads in the rewritten graph.
        leaves_out: blocks or summands that it no longer reads, each as block name and module
            (`h3: model.layers.1.mlp.experts`).
        is_converted: whether the options choose it. The first block of a segment may be converted,
            but has nothing earlier to read.
        was_stale: whether it already reads stale in the given graph and is left unchanged.
        hides: collectives that its stale read gives time to run: those of the blocks that it
            leaves out or, if they have none, those in its own branch. Empty without a stale read,
            and on one device.
        num_nodes: number of operations in its branch.
        flops: FLOPs of its branch in one forward run, counted by `graph/flops.py`.
        weight_bytes: bytes of the parameters and buffers that its branch reads.
        reduce_bytes: bytes that its branch adds to the stream, which tensor parallelism
            all-reduces.
        attention_flops: part of `flops` that multiplies computed values, queries with keys.
        cache_bytes: bytes of the keys and values that it attends to, before heads are repeated.

    The last five describe the captured graph: all ranks together if ladderize shards it, one rank
    if the model was already sharded. Dynamic sizes have the values of the call. None means that a
    size is not known before the model runs.
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
        """Whether its reads differ from those in the standard model."""
        return self.reads_before != self.reads_after


@dataclass(frozen=True)
class SegmentReport:
    """A run of blocks whose anchors have one shape.

    Attributes:
        index: index among the segments of its stream.
        first, last: indices of its first and last block.
        shape: shape of the stream; symbols are text.
        dtype: dtype of the stream ("bfloat16"), "" if unknown.
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
        index: index among the streams of its graph.
        blocks: its blocks in order.
        segments: its segments in order.
        stale: module and line of each residual add that already reads stale, in a ladder that is
            left unchanged. In a ladder that is extended, they are among `blocks`.
        blockers: reasons why this stream cannot be rewritten.
    """

    index: int
    blocks: tuple[BlockReport, ...]
    segments: tuple[SegmentReport, ...]
    stale: tuple[str, ...] = ()
    blockers: tuple[Blocker, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """Why a graph is not rewritten: the contents of the `LadderError`."""

    summary: str
    blockers: tuple[Blocker, ...] = ()
    cure: str = ""


@dataclass(frozen=True)
class StepReport:
    """One step of the pipeline before autograd.

    Attributes:
        name: name of the step; for a pass, of its class.
        kind: "pass", "analysis" or "check".
        edits: number of edits of a pass; 0 for other steps.
        seconds: wall time in seconds.
    """

    name: str
    kind: str
    edits: int
    seconds: float


@dataclass(frozen=True)
class CollectiveReport:
    """A collective launched in the graph.

    Attributes:
        op: name of the collective (`all_reduce`).
        group: name of its process group.
        block: name of the block whose branch holds it (`h3`, or `stale3` if it already read
            stale), "" outside of the branches.
        is_inserted: whether ladderize inserted it; otherwise it was in the traced graph.
        source: module path and line of the call.
    """

    op: str
    group: str
    block: str
    is_inserted: bool
    source: str


@dataclass(frozen=True)
class ShardReport:
    """How branches and vocabulary are sharded over the ranks of a mesh.

    Attributes:
        num_ranks: number of ranks.
        placements: name and placement of each sharded parameter.
        kept_whole: branches and parameters that could not be sharded, with reason and cost.
        extra_bytes: bytes of parameters that each rank holds for them beyond an even share.
        extra_flops: FLOPs per forward run that each rank computes for them beyond an even share.
        cache_bytes: bytes of caches per rank beyond an even share.
        num_by_expert: number of parameters sharded by whole experts.
        split_experts: reasons why other experts are split over all ranks.
    """

    num_ranks: int
    placements: tuple[tuple[str, str], ...]
    kept_whole: tuple[str, ...]
    extra_bytes: int = 0
    extra_flops: int = 0
    cache_bytes: int = 0
    num_by_expert: int = 0
    split_experts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outside:
    """Costs outside of the branches, mostly of the head.

    Attributes:
        flops: FLOPs of one forward run; None if a size is not known before the model runs.
        weight_bytes: bytes of the parameters that are read, without embeddings.
    """

    flops: int | None = 0
    weight_bytes: int = 0


@dataclass(frozen=True)
class GraphReport:
    """One captured graph.

    Attributes:
        index: index in the order of capture.
        name: name of the function, or of the part of it after a graph break.
        outcome: a key of `OUTCOMES` (present/lines.py).
        streams: its residual streams.
        refusal: why it is not rewritten, if it is not.
        steps: steps of the pipeline that ran.
        collectives: collectives that it launches.
        sharding: how it is sharded, None without a mesh.
        outside: costs outside of its branches.
        engines: TensorRT engines, None for other lowerings.
        flights: collectives in the compiled order, forward and backward; empty before lowering,
            and if the code came from a cache.
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
    """What was found in a model and how it is rewritten, as plain data.

    Attributes:
        graphs: captured graphs, one per compilation; several after graph breaks.
        breaks: places and reasons of graph breaks.
        options: options that differ from the defaults of `LadderConfig`, as text; the ladder entry
            of the model's config.json, if any, comes first under the key `SAID`.
        versions: versions of ladderize, torch and Python.
    """

    graphs: tuple[GraphReport, ...]
    breaks: tuple[Blocker, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every graph can be (or was) converted as the options ask."""
        return bool(self.graphs) and not self.refused

    @property
    def streams(self) -> tuple[StreamReport, ...]:
        """The streams of all graphs."""
        return tuple(stream for graph in self.graphs for stream in graph.streams)

    @property
    def blocks(self) -> tuple[BlockReport, ...]:
        """The blocks of all streams, in order."""
        return tuple(block for stream in self.streams for block in stream.blocks)

    @property
    def dtype(self) -> str:
        """The dtype of the first stream; "" without one."""
        return next((stream.segments[0].dtype for stream in self.streams), "")

    @property
    def num_stale(self) -> int:
        """Number of blocks that read stale (or would); the first block of a segment does not."""
        return sum(block.is_rewired for block in self.blocks)

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """The refusals of graphs that are not rewritten."""
        return tuple(graph.refusal for graph in self.graphs if graph.refusal is not None)

    def raise_refusal(self) -> None:
        """Raise the `LadderError` of the first refused graph, if there is one."""
        for refusal in self.refused:
            raise LadderError(refusal.summary, refusal.blockers, refusal.cure)

    @property
    def steps(self) -> tuple[StepReport, ...]:
        """All steps that ran: passes, analyses and checks, in order."""
        return tuple(step for graph in self.graphs for step in graph.steps)

    @property
    def passes(self) -> tuple[StepReport, ...]:
        """The steps that may edit the graph."""
        return tuple(step for step in self.steps if step.kind == "pass")

    @property
    def collectives(self) -> tuple[CollectiveReport, ...]:
        """The collectives of all graphs, found or inserted."""
        return tuple(entry for graph in self.graphs for entry in graph.collectives)

    def to_json(self) -> str:
        """The whole report as JSON, with the counts of its headline first."""
        counts = {"num_blocks": len(self.blocks), "num_stale": self.num_stale}
        return json.dumps({**counts, **dataclasses.asdict(self)}, indent=1)
