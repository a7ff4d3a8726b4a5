"""From a traced graph to the rank-local ladder graph: the passes before autograd, in order.

    Dynamo graph ── InlineRegions ── Functionalize ── SpellSums ── find streams
                 ── RerouteReads ── OutlineRegions ── (ranks: plan, ShardBranches)

The regions are checkpointed layers, which Dynamo keeps in graphs of their own. What is to be
sharded is traced to ATen first, the dialect that sharding has rules for. The passes after autograd
(`DeferWaits`, `PinOrder`) belong to the lowerings.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, LadderWarning
from ladderize.graph import ops
from ladderize.graph.in_flight import check_in_flight
from ladderize.graph.to_aten import is_aten, to_aten
from ladderize.passes.functionalize import Functionalize
from ladderize.passes.gradient_checks import (
    refuse_lost_gradients,
    refuse_unsaved_states,
    refuse_wrong_gradients,
)
from ladderize.passes.inline_regions import InlineRegions
from ladderize.passes.outline_regions import OutlineRegions
from ladderize.passes.reroute import RerouteReads
from ladderize.passes.runner import Invariant, Log, run_analysis, run_pass
from ladderize.passes.shard import ShardBranches
from ladderize.passes.spell_sums import SpellSums
from ladderize.report.builder import Draft
from ladderize.sharding.plan import ShardPlan, plan_sharding
from ladderize.streams.block import Stream, stale_sources
from ladderize.streams.choose import choose_blocks
from ladderize.streams.context import Reach
from ladderize.streams.find import find_streams
from ladderize.streams.recurrence import check_recurrence, read_recurrence, specify_recurrence
from ladderize.streams.refusals import explain_absence, find_hidden, refuse_wrapped
from ladderize.streams.single_layers import refuse_single_layers


@dataclass(frozen=True)
class RankGroup:
    """The ranks that a graph is sharded over: how many, and the name of their process group."""

    size: int
    name: str

    @classmethod
    def of(cls, mesh: DeviceMesh | None) -> "RankGroup | None":
        return None if mesh is None else cls(mesh.size(), mesh.get_group().group_name)


@dataclass(frozen=True)
class Rewritten:
    """The laddered graph and what was found and done on the way.

    Attributes:
        gm: the rewritten graph, sharded when a plan is given.
        streams: the residual streams as they were found.
        chosen: for each stream the indices of the converted blocks.
        plan: how the branches were sharded, None without ranks.
        log: the passes that ran.
    """

    gm: GraphModule
    streams: tuple[Stream, ...]
    chosen: tuple[frozenset[int], ...]
    plan: ShardPlan | None
    log: Log

    def describe(self) -> str:
        """One line: how many blocks were found and converted."""
        found = sum(len(stream.blocks) for stream in self.streams)
        stale = sum(len(stream.stale_blocks) for stream in self.streams)
        already = f", {stale} more read stale already" if stale else ""
        return f"{sum(map(len, self.chosen))} of {found} blocks converted{already}"


def ladder(
    gm: GraphModule,
    names: Mapping[Node, str],
    config: LadderConfig,
    ranks: RankGroup | None = None,
    *,
    may_be_a_layer: bool = True,
    draft: Draft | None = None,
) -> Rewritten:
    """Rewrite `gm` in place (a new graph if it is sharded and was no ATen graph).

    Args:
        gm: the traced graph, with fake values.
        names: its parameters and buffers.
        config: what to convert.
        ranks: shard the graph over them.
        may_be_a_layer: whether to refuse `gm` when it looks like one layer compiled by itself.
        draft: the report, filled as far as this gets.

    Raises:
        LadderError: listing everything that keeps `gm` from being converted as `config` asks.
    """
    draft = draft or Draft()
    log = draft.log
    log.dump_dir = dump_folder(config)
    regions = run_pass(gm, InlineRegions(), log).changed
    if ranks is not None and regions:
        raise LadderError(
            f"{regions} checkpointed regions cannot be sharded:",
            cure="switch gradient checkpointing off (it is of no use in inference)",
        )
    if ranks is not None:
        refuse_wrapped({name: ops.value(node) for node, name in names.items()})
        refuse_lost_gradients(gm)
    if ranks is not None and not is_aten(gm):
        gm, names = run_analysis("ToAten", lambda: to_aten(gm, names), log)
    standardize(gm, log)
    streams = run_analysis("find_streams", lambda: find_streams(gm, names), log)
    run_analysis("report", lambda: draft.see_streams(gm, names, streams), log)
    refuse_wrong_gradients(gm)
    if regions and config.lowering != "eager":
        refuse_unsaved_states(gm)
    if may_be_a_layer:
        refuse_single_layers(gm, names, streams, config)
    refuse_unfit(gm, names, streams)
    chosen = choose_blocks(streams, config)
    reroute = RerouteReads(streams, chosen, config.staleness)
    run_pass(gm, reroute, log, None if config.verify == "off" else recurrence_of(gm, reroute))
    run_analysis("report", lambda: draft.see_reads(gm, streams, chosen), log)
    if regions:
        run_pass(gm, OutlineRegions(), log)
    plan = None if ranks is None else _shard(gm, streams, names, ranks, config, log)
    if plan is not None:
        draft.see_sharding(gm, plan)
    return Rewritten(gm, streams, chosen, plan, log)


def standardize(gm: GraphModule, log: Log) -> None:
    """Into the form in which streams are found: no in-place ops, sums spelled as adds."""
    run_pass(gm, Functionalize(), log)
    run_pass(gm, SpellSums(), log)


def dump_folder(config: LadderConfig) -> Path | None:
    """Where this rank's stages of this compilation are written, None when they are not."""
    if config.debug_dir is None:
        return None
    rank = dist.get_rank() if dist.is_initialized() else 0
    return Path(config.debug_dir) / f"rank{rank}" / compat.current_compile_id()


def recurrence_of(gm: GraphModule, reroute: RerouteReads) -> Invariant:
    """The invariant of `reroute` on the still standard `gm`: it computes what was asked for."""
    standard = read_recurrence(gm, reroute.streams)

    def check(gm: GraphModule) -> None:
        found = read_recurrence(gm, reroute.streams)
        for number, stream in enumerate(reroute.streams):
            sources = stale_sources(stream.blocks, reroute.chosen[number], reroute.staleness)
            specified = specify_recurrence(standard[number], sources, number)
            check_recurrence(found[number], specified, stream)

    return check


def _shard(
    gm: GraphModule,
    streams: Sequence[Stream],
    names: Mapping[Node, str],
    ranks: RankGroup,
    config: LadderConfig,
    log: Log,
) -> ShardPlan:
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    blocks = sorted(
        (block for stream in streams for block in (*stream.blocks, *stream.stale_blocks)),
        key=lambda block: position[block.add],
    )

    def make_plan() -> ShardPlan:
        vocabulary = config.shard_vocabulary
        return plan_sharding(gm, blocks, names, ranks.size, shard_vocabulary=vocabulary)

    plan = run_analysis("plan_sharding", make_plan, log)
    if not plan.reductions:
        raise LadderError(
            f"No branch can be sharded over {ranks.size} ranks:",
            [reason for branch in plan.whole for reason in branch.reasons],
            "use a number of ranks that divides the sizes named above",
        )
    if plan.whole:
        listed = "".join(f"\n  - {undivided}" for undivided in plan.whole)
        warnings.warn(
            LadderWarning(f"Not all is divided over {ranks.size} ranks. Kept whole:{listed}"),
            stacklevel=2,
        )
    run_pass(gm, ShardBranches(plan, ranks.name), log, lambda gm: check_in_flight(gm.graph))
    return plan


def refuse_unfit(gm: GraphModule, names: Mapping[Node, str], streams: Sequence[Stream]) -> None:
    """Raise `LadderError` when there is nothing to convert or a stream must be left alone.

    A stream that is a ladder already is not refused: it is left as it is.
    """
    reach = Reach(gm, names)
    if hidden := find_hidden(gm, reach, [block for s in streams for block in s.blocks]):
        raise LadderError(
            "These calls hold blocks that a ladder cannot reach into:",
            hidden,
            "call the layers themselves instead of the higher-order op around them",
        )
    if not any(stream.blocks for stream in streams):
        raise LadderError(
            "No residual block was found in this graph: no add whose one operand reaches the "
            "other through a linear, a convolution, an attention or the like.",
            explain_absence(reach),
            cure="compile the whole model, with fullgraph=True; options={'strict': False} "
            "compiles the standard graph",
        )
    standard = [stream for stream in streams if not stream.stale_blocks]
    blockers = [blocker for stream in standard for blocker in stream.blockers]
    if blockers:
        raise LadderError("This residual stream cannot be made a ladder:", blockers)
    if standard == list(streams) and not any(_can_read_earlier(stream) for stream in streams):
        raise LadderError(
            "No block of this graph comes after another one, so none can read the stream earlier:",
            [Blocker.at(block.add, "a single block") for s in streams for block in s.blocks],
            "compile the whole model",
        )


def _can_read_earlier(stream: Stream) -> bool:
    return bool(stale_sources(stream.blocks, range(len(stream.blocks)), staleness=1))
