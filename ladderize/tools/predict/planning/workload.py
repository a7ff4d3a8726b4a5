"""The costs of a model for any batch and length, scaled from the report of one trace.

    FLOPs       of weights: by tokens               of attention: by queries * keys
    bytes       of weights: constant                of the KV cache: by keys
    all-reduce  by tokens

A trace of 2 examples of 32 tokens suffices. Batch, queries and keys of a run are a `Phase`: a
prompt has as many queries as keys, a decode step has one query.
"""

import dataclasses
from dataclasses import dataclass

from ladderize.config.connectivity import LADDER
from ladderize.config.hardware import Hardware
from ladderize.errors import Blocker, LadderError
from ladderize.report.data import BlockReport, GraphReport, SegmentReport
from ladderize.report.naming import LANDED, block_name, parse
from ladderize.report.report import Report
from ladderize.streams.branch_kinds import ATTENTION
from ladderize.tools.predict.timeline.division import Division


@dataclass(frozen=True)
class Phase:
    """One run of a model: batch size, and new and attended tokens per example."""

    batch: int
    queries: int
    keys: float

    @property
    def tokens(self) -> int:
        return self.batch * self.queries


@dataclass(frozen=True)
class PlannedCosts:
    """Costs of a block, or of everything outside the blocks, over all ranks.

    Attributes:
        flops: FLOPs per token, without attention.
        attention_flops: FLOPs per query and key.
        weight_bytes: bytes of parameters.
        cache_bytes: bytes of keys and values per token.
    """

    flops: float = 0.0
    attention_flops: float = 0.0
    weight_bytes: float = 0.0
    cache_bytes: float = 0.0

    def flops_in(self, phase: Phase) -> float:
        return phase.tokens * (self.flops + self.attention_flops * phase.keys)

    def bytes_in(self, phase: Phase) -> float:
        return self.weight_bytes + self.cache_bytes * phase.batch * phase.keys

    def seconds(self, phase: Phase, hardware: Hardware, ranks: int = 1) -> float:
        """Compute time in `phase`, divided over `ranks`, in seconds."""
        return hardware.compute_seconds(self.flops_in(phase), self.bytes_in(phase), ranks)

    def __add__(self, other: "PlannedCosts") -> "PlannedCosts":
        return PlannedCosts(
            self.flops + other.flops,
            self.attention_flops + other.attention_flops,
            self.weight_bytes + other.weight_bytes,
            self.cache_bytes + other.cache_bytes,
        )


@dataclass(frozen=True)
class PlannedBlock:
    """A block as the planner sees it.

    Attributes:
        index: index in the stream.
        segment: index of the segment; the block reads no anchor before it.
        layer: layer of the block, None if it has none.
        is_attention: whether its only branch is an attention.
        costs: costs of its branch.
        reduce_bytes: bytes of its all-reduce per token; 0 if it is kept whole and sends nothing.
        exchanged_bytes: bytes that a rank passes to each of the two all-to-alls, dispatch and
            combine, per token of the whole batch; 0 without expert parallelism.
        is_local: whether the costs are those of one rank.
        num_branches: number of parallel branches.
        is_prologue: whether it precedes the first layer and has no layer.
        leaves_out: whether it leaves out anything of the stream when converted.
        reads_landed: whether, when converted, it still reads the landed summand of the block
            before it.
    """

    index: int
    segment: int
    layer: int | None
    is_attention: bool
    costs: PlannedCosts
    reduce_bytes: float
    exchanged_bytes: float = 0.0
    is_local: bool = False
    num_branches: int = 1
    is_prologue: bool = False
    leaves_out: bool = True
    reads_landed: bool = False

    @property
    def name(self) -> str:
        return f"h{self.index}"

    def ranks(self, ranks: int) -> int:
        """The number of ranks to divide its costs by: `ranks`, or 1 if whole or local."""
        return ranks if self.reduce_bytes and not self.is_local else 1


@dataclass(frozen=True)
class Workload:
    """A model, and the blocks of it to convert.

    Attributes:
        blocks: blocks of its stream.
        outside: costs of the head, which each rank computes whole.
        chosen: indices of the blocks to convert.
        staleness: staleness of their reads, in blocks.
        connectivity: connectivity of converted blocks, as in `LadderConfig`.
    """

    blocks: tuple[PlannedBlock, ...]
    outside: PlannedCosts
    chosen: frozenset[int]
    staleness: int = 1
    connectivity: str = LADDER

    @property
    def is_expert_parallel(self) -> bool:
        """Whether tokens move to experts on other ranks."""
        return any(block.exchanged_bytes for block in self.blocks)

    def bytes_of_a_rank(self, ranks: int, batch: int, keys: int) -> float:
        """Bytes of weights and KV cache that one of `ranks` holds."""
        phase = Phase(batch, 1, keys)
        held = sum(block.costs.bytes_in(phase) / block.ranks(ranks) for block in self.blocks)
        return held + self.outside.bytes_in(phase)


def workload_of(report: Report) -> Workload:
    """The workload of a traced model, with the conversion of its report.

    Raises:
        LadderError: the model does not have exactly one stream, or sizes are unknown.
    """
    graph = _only_graph(report)
    (stream,) = graph.streams
    batch, length = traced_examples(stream.segments[0])
    division = Division.of(graph)
    unknown = [Blocker(block_name(b), b.module) for b in stream.blocks if None in _numbers(b)]
    if unknown or graph.outside.flops is None:
        raise LadderError("Sizes of these blocks are not known before the model runs:", unknown)
    traced = Phase(batch, length, length)
    options = dict(report.options)
    connectivity = options.get("connectivity", LADDER)
    blocks = tuple(_planned(block, traced, division) for block in stream.blocks)
    if connectivity != LADDER:
        blocks = tuple(map(_with_reads, blocks, stream.blocks))
    return Workload(
        blocks,
        PlannedCosts(graph.outside.flops / traced.tokens, weight_bytes=graph.outside.weight_bytes),
        frozenset(block.index for block in stream.blocks if block.is_converted),
        int(options.get("staleness", 1)),
        connectivity,
    )


def _with_reads(planned: PlannedBlock, block: BlockReport) -> PlannedBlock:
    """`planned` with the reads that the report of the rewritten graph shows."""
    reads_landed = any(parse(read).letter == LANDED for read in block.reads_after)
    return dataclasses.replace(
        planned, leaves_out=bool(block.leaves_out), reads_landed=reads_landed
    )


def _only_graph(report: Report) -> GraphReport:
    report.raise_refusal()
    graphs = [graph for graph in report.graphs if graph.streams]
    found = sum(len(graph.streams) for graph in graphs)
    if found != 1:
        raise LadderError(
            f"A plan needs exactly one residual stream; this model has {found}.",
            cure="plan the decoder by itself; `ladderize plot` predicts one call of any model",
        )
    return graphs[0]


def traced_examples(segment: SegmentReport) -> tuple[int, int]:
    """Batch and length of the trace: the dims of a stream before its features."""
    shape = segment.shape
    if not 2 <= len(shape) <= 3 or not all(isinstance(size, int) for size in shape):
        sizes = ", ".join(map(str, shape))
        raise LadderError(
            f"Cannot infer which dims of the stream [{sizes}] are tokens.",
            cure="a plan needs a model of [batch, length, features], traced with fixed sizes",
        )
    batch, *length, _ = map(int, shape)
    return batch, length[0] if length else 1


def _numbers(block: BlockReport) -> tuple[int | None, ...]:
    sent = block.reduce_bytes
    return block.flops, block.attention_flops, block.weight_bytes, block.cache_bytes, sent


def _planned(block: BlockReport, traced: Phase, division: Division) -> PlannedBlock:
    flops, attention, weights, cache, sent = (number or 0 for number in _numbers(block))
    costs = PlannedCosts(
        (flops - attention) / traced.tokens,
        attention / (traced.tokens * traced.keys),
        weights,
        cache / (traced.batch * traced.keys),
    )
    is_reduced = division.is_reduced(block)
    return PlannedBlock(
        block.index,
        block.segment,
        block.layer,
        block.kind == ATTENTION,
        costs,
        sent / traced.tokens if is_reduced else 0.0,
        is_local=division.is_local,
        is_prologue=block.is_prologue,
    )
