"""The pipeline before autograd: from a traced graph to the rank-local ladder graph.

    Dynamo graph ── InlineRegions ── DropCasts ── Functionalize ── SpellSums
                 ── ReduceBranches ── SplitSums ── find_streams ── RerouteReads
                 ── (BlendReads) ── (ranks: plan_sharding, ShardBranches) ── OutlineRegions

`BEFORE_AUTOGRAD` lists all steps in order. Regions are checkpointed layers, which Dynamo keeps in
subgraphs. A graph to be sharded is first traced to ATen, the dialect of the sharding rules.
`after_autograd.py` has the passes that the lowerings run.
"""

from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.config.connectivity import LADDER
from ladderize.config.options import LadderConfig
from ladderize.config.residual_form import PARALLEL, PLAIN
from ladderize.graph import ops
from ladderize.graph.collectives import is_all_reduce
from ladderize.graph.cuts import find_cuts
from ladderize.graph.in_flight import check_in_flight
from ladderize.graph.to_aten import is_aten, to_aten
from ladderize.passes import PassResult
from ladderize.passes.blend_reads import BlendReads
from ladderize.passes.device_checks import (
    check_host_transfers,
    is_captured,
    refuse_data_parallel,
    refuse_other_devices,
    refuse_unserved_collectives,
    refuse_unserved_mesh,
)
from ladderize.passes.drop_casts import DropCasts
from ladderize.passes.functionalize import Functionalize
from ladderize.passes.gradient_checks import (
    refuse_lost_gradients,
    refuse_unsaved_states,
    refuse_wrong_gradients,
)
from ladderize.passes.inline_regions import InlineRegions, refuse_sharded_regions
from ladderize.passes.outline_regions import OutlineRegions
from ladderize.passes.reduce_branches import ReduceBranches, refuse_reduced_residuals
from ladderize.passes.reroute import RerouteReads
from ladderize.passes.rewriting_state import Rewriting
from ladderize.passes.runner import Observer, Step, apply, apply_pass, run_steps
from ladderize.passes.shard import ShardBranches
from ladderize.passes.spell_engine_ops import (
    SpellEngineOps,
    has_engine_ops,
    refuse_unspelled,
)
from ladderize.passes.spell_sums import SpellSums
from ladderize.passes.split_sums import SplitSums
from ladderize.passes.variant_checks import check_layers, refuse_desync_alone
from ladderize.sharding.own_streams import unreduced_blocks
from ladderize.sharding.plan import plan_sharding
from ladderize.sharding.plan_checks import refuse_undivided
from ladderize.streams.choose import choose_blocks, number_blocks, refuse_other_reads
from ladderize.streams.context import AnalysisContext
from ladderize.streams.contributions import find_contributions
from ladderize.streams.cut_streams import refuse_cut_streams
from ladderize.streams.find import streams_in
from ladderize.streams.fresh_reads import find_fresh_reads
from ladderize.streams.gains import keep_reads_that_hide
from ladderize.streams.recurrence import check_recurrence, read_recurrence
from ladderize.streams.refusals import refuse_unfit, refuse_wrapped
from ladderize.streams.restore import restore_standard
from ladderize.streams.single_layers import refuse_single_layers
from ladderize.streams.specification import specify_ladder
from ladderize.streams.stale_halves import refuse_undecided

# ---- conditions of steps -----------------------------------------------------------------------


def _has_ranks(state: Rewriting) -> bool:
    return state.ranks is not None


def _has_mesh(state: Rewriting) -> bool:
    return state.ranks is not None and bool(state.ranks.device_type)


def _needs_aten(state: Rewriting) -> bool:
    return state.ranks is not None and not is_aten(state.gm)


def _is_aten(state: Rewriting) -> bool:
    return is_aten(state.gm)


def _has_engine_ops(state: Rewriting) -> bool:
    return has_engine_ops(state.gm)


def _has_all_reduces(state: Rewriting) -> bool:
    return any(map(is_all_reduce, state.gm.graph.nodes))


def _cuts_streams(state: Rewriting) -> bool:
    return bool(state.cuts)


def _has_regions(state: Rewriting) -> bool:
    return bool(state.num_regions)


def _is_blended(state: Rewriting) -> bool:
    return state.is_blended


def _is_extended(state: Rewriting) -> bool:
    has_stale_blocks = any(stream.stale_blocks for stream in state.streams)
    return has_stale_blocks and state.config.names_a_ladder and not state.is_laddered


def _is_standard(state: Rewriting) -> bool:
    return not state.is_laddered


def _has_parts(state: Rewriting) -> bool:
    return state.config.connectivity != LADDER and not state.is_laddered


def _is_verified(state: Rewriting) -> bool:
    return not state.is_laddered and state.config.verify != "off"


def _is_desync(state: Rewriting) -> bool:
    return bool(state.config.period) and not state.is_laddered


def _is_by_expert(state: Rewriting) -> bool:
    return state.config.experts == "expert"


# ---- the steps, in the order of the table below ------------------------------------------------


def _refuse_desync_alone(state: Rewriting) -> None:
    refuse_desync_alone(state.config, state.num_ranks)


def _inline_regions(state: Rewriting) -> PassResult:
    result = apply_pass(state.gm, InlineRegions())
    state.num_regions = result.changed
    return result


def _refuse_other_devices(state: Rewriting) -> None:
    assert state.ranks is not None
    refuse_unserved_mesh(state.ranks.name, state.ranks.device_type)
    refuse_data_parallel(state.ranks.name)
    refuse_other_devices(state.names, state.ranks.device_type)


def _check_host_transfers(state: Rewriting) -> None:
    ranks = state.ranks
    group = ranks.name if ranks is not None and ranks.device_type == "cuda" else ""
    check_host_transfers(state.gm, group, is_captured(state.config))


def _refuse_wrapped(state: Rewriting) -> None:
    values = {name: ops.value(node) for node, name in state.names.items()}
    refuse_wrapped(values, takes_quantized=True)


def _to_aten(state: Rewriting) -> None:
    state.gm, state.names = to_aten(state.gm, state.names)


def _find_cuts(state: Rewriting) -> None:
    state.cuts = find_cuts(state.gm)


def _split_sums(state: Rewriting) -> PassResult:
    return apply_pass(state.gm, SplitSums(state.cuts))


def _find_streams(state: Rewriting) -> None:
    state.context = AnalysisContext(state.gm, state.names)
    state.streams = streams_in(state.context)
    state.chosen = tuple(frozenset[int]() for _ in state.streams)


def _restore_standard(state: Rewriting) -> None:
    state.restored = restore_standard(state.analysis, state.streams)
    state.streams = state.restored.in_ladder
    state.chosen = tuple(frozenset[int]() for _ in state.streams)


def _find_contributions(state: Rewriting) -> None:
    state.contributions = find_contributions(state.analysis, state.streams, state.config)


def _read_standard(state: Rewriting) -> None:
    if state.restored is None:
        state.standard = read_recurrence(state.gm, state.streams, state.connectivity.splits)
    else:
        state.standard = state.restored.recurrences
    state.rewritten = state.standard


def _refuse_unsaved_states(state: Rewriting) -> None:
    if state.config.lowering != "eager":
        refuse_unsaved_states(state.gm)


def _refuse_single_layers(state: Rewriting) -> None:
    if state.may_be_a_layer:
        refuse_single_layers(state.analysis, state.streams, state.config)


def _choose_blocks(state: Rewriting) -> None:
    chosen = choose_blocks(state.streams, state.config)  # checks expect_blocks= in any case
    if state.is_laddered:
        return
    context, streams = state.standard_graph
    if state.config.names_a_ladder:
        refuse_undecided(context, streams, state.config)
    if state.ranks is None:
        chosen = keep_reads_that_hide(
            state.analysis, state.streams, chosen, state.stale, state.config, state.connectivity
        )
    if state.config.variant == PLAIN:
        refuse_cut_streams(context, streams, chosen, state.config)
    state.chosen = chosen
    refuse_other_reads(state.reads, state.stale)
    check_layers(streams, state.config)


def _find_fresh_reads(state: Rewriting) -> None:
    if state.config.staleness and not state.config.period:
        state.fresh_reads = tuple(find_fresh_reads(*state.standard_graph, state.chosen))


def _reroute_reads(state: Rewriting) -> PassResult:
    reroute = RerouteReads(state.reads)
    result = apply_pass(state.gm, reroute)
    state.moved = tuple(reroute.moved)
    return result


def _read_rewritten(state: Rewriting) -> None:
    state.rewritten = read_recurrence(state.gm, state.streams, state.connectivity.splits)


def _check_recurrence(state: Rewriting) -> None:
    specified = specify_ladder(state.standard, state.reads)
    for found, wanted, stream in zip(state.rewritten, specified, state.streams, strict=True):
        check_recurrence(found, wanted, stream)


def _blend_reads(state: Rewriting) -> PassResult:
    numbers = number_blocks(state.streams)
    return apply_pass(state.gm, BlendReads([(numbers[m.block], m) for m in state.moved]))


def _plan_sharding(state: Rewriting) -> None:
    state.plan = plan_sharding(
        state.gm,
        state.blocks_in_order(),
        state.names,
        state.num_ranks,
        shard_vocabulary=state.config.shard_vocabulary,
        by_expert=_is_by_expert(state),
        joins_sums=state.config.variant == PARALLEL,
        unreduced=unreduced_blocks(state.streams, state.config.period),
        earlier=state.earlier,
    )


def _refuse_undivided(state: Rewriting) -> None:
    refuse_undivided(state.shard_plan, _is_by_expert(state))


def _shard_branches(state: Rewriting) -> PassResult:
    assert state.ranks is not None
    shard = ShardBranches(state.shard_plan, state.ranks.name)
    return apply_pass(state.gm, shard, lambda gm: check_in_flight(gm.graph))


STANDARDIZE: tuple[Step[Rewriting], ...] = (
    apply(SpellEngineOps, _has_engine_ops),
    apply(DropCasts, _is_aten),
    apply(Functionalize),
    apply(SpellSums),
    apply(ReduceBranches, _has_all_reduces),
    Step("find_cuts", _find_cuts, kind="analysis"),
    Step("SplitSums", _split_sums, _cuts_streams),
)
"""Bring a graph into the form that `find_streams` needs: no in-place ops, and sums as adds."""

BEFORE_AUTOGRAD: tuple[Step[Rewriting], ...] = (
    Step("refuse_desync_alone", _refuse_desync_alone, _is_desync, "check"),
    Step("InlineRegions", _inline_regions),
    Step("refuse_other_devices", _refuse_other_devices, _has_mesh, "check"),
    Step("refuse_unserved_collectives", lambda s: refuse_unserved_collectives(s.gm), kind="check"),
    Step("check_host_transfers", _check_host_transfers, kind="check"),
    Step("refuse_sharded_regions", lambda s: refuse_sharded_regions(s.gm), _has_ranks, "check"),
    Step("refuse_wrapped", _refuse_wrapped, _has_ranks, "check"),
    Step("refuse_lost_gradients", lambda s: refuse_lost_gradients(s.gm), _has_ranks, "check"),
    Step("ToAten", _to_aten, _needs_aten),
    *STANDARDIZE,
    Step("refuse_unspelled", lambda s: refuse_unspelled(s.gm), _has_engine_ops, "check"),
    Step("find_streams", _find_streams, kind="analysis"),
    Step("restore_standard", _restore_standard, _is_extended, "analysis"),
    Step("find_contributions", _find_contributions, _has_parts, "analysis"),
    Step("read_standard", _read_standard, kind="analysis"),
    Step("refuse_wrong_gradients", lambda s: refuse_wrong_gradients(s.gm), kind="check"),
    Step("refuse_unsaved_states", _refuse_unsaved_states, _has_regions, "check"),
    Step("refuse_single_layers", _refuse_single_layers, kind="check"),
    Step("refuse_reduced_residuals", lambda s: refuse_reduced_residuals(s.analysis), kind="check"),
    Step("refuse_unfit", lambda s: refuse_unfit(s.analysis, s.streams), kind="check"),
    Step("choose_blocks", _choose_blocks, kind="analysis"),
    Step("find_fresh_reads", _find_fresh_reads, _is_standard, "analysis"),
    Step("RerouteReads", _reroute_reads, _is_standard),
    Step("read_rewritten", _read_rewritten, _is_standard, "analysis"),
    Step("check_recurrence", _check_recurrence, _is_verified, "check"),
    Step("BlendReads", _blend_reads, _is_blended),
    Step("plan_sharding", _plan_sharding, _has_ranks, "analysis"),
    Step("refuse_undivided", _refuse_undivided, _has_ranks, "check"),
    Step("ShardBranches", _shard_branches, _has_ranks),
    Step("OutlineRegions", lambda s: apply_pass(s.gm, OutlineRegions()), _has_regions),
)
"""A pass edits the graph, an analysis reads it, and a check may refuse it.

Checks come right after the steps that they need: gradients of collectives are checked when in-place
calls are functional, and streams before their reads are rerouted.
"""


def rewrite_graph(state: Rewriting, observer: Observer | None = None) -> Rewriting:
    """Take `state` through `BEFORE_AUTOGRAD`.

    Args:
        state: state with the traced graph, which has fake values.
        observer: sees the state after each step; one of them builds the report.

    Raises:
        LadderError: lists all reasons why the graph cannot be converted as asked.
    """
    state.log.dump_dir = dump_folder(state.config)
    run_steps(BEFORE_AUTOGRAD, state, observer)
    return state


def standardize(gm: GraphModule, names: Mapping[Node, str]) -> None:
    """Run only `STANDARDIZE`, on a graph that is not converted here."""
    run_steps(STANDARDIZE, Rewriting(gm, names))


def dump_folder(config: LadderConfig) -> Path | None:
    """The folder for this rank's graph dumps of this compilation; None without `debug_dir`."""
    if config.debug_dir is None:
        return None
    rank = dist.get_rank() if dist.is_initialized() else 0
    return Path(config.debug_dir) / f"rank{rank}" / compat.current_compile_id()
