"""What the pipeline before autograd works on: a graph, and what was found and done so far."""

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
    """The ranks that a graph is sharded over: how many, and the name of their process group.

    Attributes:
        device_type: where they communicate, "" where no mesh says so.
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
    """One graph on its way through the pipeline, and what was found and done so far.

    Attributes:
        gm: the graph, rewritten in place; a new one if it is sharded and was not an ATen graph.
        names: the parameters and buffers among its inputs.
        config: what to convert.
        ranks: the ranks to shard over, None on one device.
        may_be_a_layer: whether to refuse `gm` when it looks like one layer compiled by itself.
        is_laddered: whether the graph was laddered and sharded before (`parallelize`), so that
            nothing is rerouted.
        is_blended: whether each read stays a choice, made when the graph is run.
        log: the steps that ran.
        num_regions: how many checkpointed regions were inlined.
        cuts: what joins streams and cuts them apart in a way that can be written otherwise.
        context: the analysis of the standard graph; made once, by `find_streams`.
        streams: the residual streams of the standard graph.
        restored: the standard model, where a ladder is extended; None otherwise.
        contributions: what each block adds, and what of it is in flight; empty for a ladder.
        chosen: for each stream the indices of the converted blocks.
        fresh_reads: those of the converted blocks that stay standard.
        moved: the reads that `RerouteReads` rerouted.
        standard, rewritten: the recurrence of each stream before and after `RerouteReads`.
        earlier: what planning another graph of the same model found out.
        plan: how the branches are sharded, None without ranks.
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
        """For each stream what its blocks are to read stale."""
        pairs = zip(self.streams, self.chosen, strict=True)
        return tuple(StaleReads.of(*pair, self.connectivity) for pair in pairs)

    @property
    def connectivity(self) -> Connectivity:
        """What the branches leave out."""
        return Connectivity.of(self.config, self.contributions)

    @property
    def stale(self) -> tuple[dict[int, int], ...]:
        """The same of each block that reads stale in the graph that was given."""
        return tuple({} for _ in self.streams) if self.restored is None else self.restored.stale

    @property
    def standard_graph(self) -> tuple[AnalysisContext, tuple[Stream, ...]]:
        """The standard model and its streams: a copy, where a ladder is extended."""
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
        """Every block of every stream, those that read stale already included, in graph order."""
        position = {node: i for i, node in enumerate(self.gm.graph.nodes)}
        blocks = (b for stream in self.streams for b in (*stream.blocks, *stream.stale_blocks))
        return sorted(blocks, key=lambda block: position[block.add])

    def describe(self) -> str:
        """One line: how many blocks were found, and how many read stale."""
        found = sum(len(stream.blocks) for stream in self.streams)
        stale = sum(len(reads.left_out()) for reads in self.reads)
        told = f"{stale} of {found} blocks read stale"
        if kept := sum(map(len, self.stale)):
            return f"{told}, {kept} of them before"
        others = sum(len(stream.stale_blocks) for stream in self.streams)
        return f"{told}, {others} more did before" if others else told
