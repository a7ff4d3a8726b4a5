"""The state of the pipeline before autograd: a graph and the results of the steps so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.distributed.device_mesh import DeviceMesh
from torch.fx import GraphModule, Node

from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker
from ladderize.graph.cuts import Cuts
from ladderize.passes.reroute import MovedRead
from ladderize.passes.runner import Log
from ladderize.sharding.findings import Findings
from ladderize.sharding.plan import ShardPlan
from ladderize.streams.block import Block, Stream
from ladderize.streams.context import AnalysisContext
from ladderize.streams.contributions import Contribution
from ladderize.streams.joins import StaleReads
from ladderize.streams.left_out import Connectivity
from ladderize.streams.recurrence import Recurrence
from ladderize.streams.restore import Restored


@dataclass(frozen=True)
class RankGroup:
    """The ranks that a graph is sharded over.

    Attributes:
        size: number of ranks.
        name: name of their process group.
        device_type: device type of the mesh; "" without a mesh.
    """

    size: int
    name: str
    device_type: str = ""

    @classmethod
    def of(cls, mesh: DeviceMesh | None) -> "RankGroup | None":
        if mesh is None:
            return None
        return cls(mesh.size(), mesh.get_group().group_name, mesh.device_type)


@dataclass
class Rewriting:
    """One graph in the pipeline, with the results of the steps so far.

    Attributes:
        gm: graph, rewritten in place; a new graph if it is sharded and was not ATen.
        names: placeholders of parameters and buffers, with their names.
        config: options.
        ranks: ranks to shard over; None on one device.
        may_be_a_layer: whether to refuse `gm` if it looks like a separately compiled layer.
        is_laddered: whether the graph is already converted and sharded (`parallelize`), so that
            nothing is rerouted.
        is_blended: whether reads are blends that are set at run time.
        log: log of the steps that ran.
        num_regions: number of inlined regions.
        cuts: joins and cuts of streams to rewrite.
        context: analysis of the standard graph, set by `find_streams`.
        streams: residual streams of the standard graph.
        restored: standard model of a ladder that is extended; None otherwise.
        contributions: contribution of each block; empty for a ladder.
        chosen: for each stream, the indices of the converted blocks.
        fresh_reads: reads of converted blocks that stay standard.
        moved: reads that `RerouteReads` rerouted.
        standard, rewritten: recurrence of each stream before and after `RerouteReads`.
        earlier: findings of the plan for another graph of the same model.
        plan: sharding plan; None without ranks.
    """

    gm: GraphModule
    names: Mapping[Node, str]
    config: LadderConfig = field(default_factory=LadderConfig)
    ranks: RankGroup | None = None
    may_be_a_layer: bool = True
    is_laddered: bool = False
    is_blended: bool = False
    log: Log = field(default_factory=Log)
    num_regions: int = 0
    cuts: Cuts = field(default_factory=Cuts)
    context: AnalysisContext | None = None
    streams: tuple[Stream, ...] = ()
    restored: Restored | None = None
    contributions: dict[Block, Contribution] = field(default_factory=dict)
    chosen: tuple[frozenset[int], ...] = ()
    fresh_reads: tuple[Blocker, ...] = ()
    moved: tuple[MovedRead, ...] = ()
    standard: tuple[Recurrence, ...] = ()
    rewritten: tuple[Recurrence, ...] = ()
    earlier: Findings | None = None
    plan: ShardPlan | None = None

    @property
    def reads(self) -> tuple[StaleReads, ...]:
        """The stale reads of each stream."""
        pairs = zip(self.streams, self.chosen, strict=True)
        return tuple(StaleReads.of(*pair, self.connectivity) for pair in pairs)

    @property
    def connectivity(self) -> Connectivity:
        """The rule for what branches leave out."""
        return Connectivity.of(self.config, self.contributions)

    @property
    def stale(self) -> tuple[dict[int, int], ...]:
        """For each stream, the blocks that read stale in the given graph, with their sources."""
        return tuple({} for _ in self.streams) if self.restored is None else self.restored.stale

    @property
    def standard_graph(self) -> tuple[AnalysisContext, tuple[Stream, ...]]:
        """The standard graph and its streams; a copy if a ladder is extended."""
        if self.restored is None:
            return self.analysis, self.streams
        return self.restored.context, self.restored.streams

    @property
    def num_ranks(self) -> int:
        return 1 if self.ranks is None else self.ranks.size

    @property
    def analysis(self) -> AnalysisContext:
        assert self.context is not None, "made by find_streams"
        return self.context

    @property
    def shard_plan(self) -> ShardPlan:
        assert self.plan is not None, "made by plan_sharding"
        return self.plan

    def blocks_in_order(self) -> list[Block]:
        """All blocks of all streams, including those that already read stale, in graph order."""
        position = {node: i for i, node in enumerate(self.gm.graph.nodes)}
        blocks = (b for stream in self.streams for b in (*stream.blocks, *stream.stale_blocks))
        return sorted(blocks, key=lambda block: position[block.add])

    def describe(self) -> str:
        """One line with the number of blocks, and of blocks that read stale."""
        found = sum(len(stream.blocks) for stream in self.streams)
        stale = sum(len(reads.left_out()) for reads in self.reads)
        told = f"{stale} of {found} blocks read stale"
        if kept := sum(map(len, self.stale)):
            return f"{told}, {kept} of them before"
        others = sum(len(stream.stale_blocks) for stream in self.streams)
        return f"{told}, {others} more did before" if others else told
