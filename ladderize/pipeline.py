"""From a traced graph to the rank-local ladder graph: the passes before autograd, in order.

    Dynamo graph ── Functionalize ── find streams ── RerouteReads ── (mesh: plan, ShardBranches)

With a mesh the graph is traced to ATen first, the dialect that sharding has rules for. The passes
after autograd (`DeferWaits`, `PinOrder`) belong to the lowerings.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch.distributed.device_mesh import DeviceMesh
from torch.fx import GraphModule, Node

from ladderize.aten import to_aten
from ladderize.choose import choose_blocks
from ladderize.config import LadderConfig
from ladderize.errors import LadderError
from ladderize.inflight import check_in_flight
from ladderize.passes import Pass, PassResult
from ladderize.passes.functionalize import Functionalize
from ladderize.passes.reroute import RerouteReads, stale_sources
from ladderize.passes.shard import ShardBranches
from ladderize.plan import ShardPlan, plan_sharding
from ladderize.recurrence import check_recurrence, read_recurrence, specify_recurrence
from ladderize.stream import Stream, find_streams

T = TypeVar("T")
Invariant = Callable[[GraphModule], None]


@dataclass
class Log:
    """What ran, in order: name, what it did, seconds."""

    dump_dir: Path | None = None
    entries: list[tuple[str, PassResult, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(seconds for _, _, seconds in self.entries)


@dataclass(frozen=True)
class Rewritten:
    """The laddered graph and what was found and done on the way.

    Attributes:
        gm: the rewritten graph, sharded when a plan is given.
        streams: the residual streams as they were found.
        chosen: for each stream the indices of the converted blocks.
        plan: how the branches were sharded, None without a mesh.
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
        return f"{sum(map(len, self.chosen))} of {found} blocks converted"


def ladder(gm: GraphModule, names: Mapping[Node, str], config: LadderConfig) -> Rewritten:
    """Rewrite `gm` in place (a new graph with a mesh); `names` are its parameters and buffers.

    Raises:
        LadderError: listing everything that keeps `gm` from being converted as `config` asks.
    """
    log = Log(Path(config.debug_dir) if config.debug_dir else None)
    mesh = config.device_mesh
    if mesh is not None:
        gm, names = _timed(log, "ToAten", lambda: to_aten(gm, names))
    run_pass(gm, Functionalize(), log)
    streams = _timed(log, "find_streams", lambda: find_streams(gm, names))
    refuse_unfit(streams)
    chosen = choose_blocks(streams, config)
    reroute = RerouteReads(streams, chosen, config.staleness)
    run_pass(gm, reroute, log, None if config.verify == "off" else recurrence_of(gm, reroute))
    plan = None if mesh is None else _shard(gm, streams, names, mesh, log)
    return Rewritten(gm, streams, chosen, plan, log)


def recurrence_of(gm: GraphModule, reroute: RerouteReads) -> Invariant:
    """The invariant of `reroute` on the still standard `gm`: it computes what was asked for."""
    standard = read_recurrence(gm, reroute.streams)

    def check(gm: GraphModule) -> None:
        found = read_recurrence(gm, reroute.streams)
        for number, stream in enumerate(reroute.streams):
            sources = stale_sources(stream, reroute.chosen[number], reroute.staleness)
            specified = specify_recurrence(standard[number], sources, number)
            check_recurrence(found[number], specified, stream)

    return check


def _shard(
    gm: GraphModule,
    streams: Sequence[Stream],
    names: Mapping[Node, str],
    mesh: DeviceMesh,
    log: Log,
) -> ShardPlan:
    blocks = [block for stream in streams for block in stream.blocks]
    plan = _timed(log, "plan_sharding", lambda: plan_sharding(gm, blocks, names, mesh.size()))
    if plan.blockers:
        raise LadderError(
            f"These branches cannot be sharded over {mesh.size()} ranks:",
            plan.blockers,
            "use a number of ranks that divides the sizes named above",
        )
    group_name = mesh.get_group().group_name
    run_pass(gm, ShardBranches(plan, group_name), log, lambda gm: check_in_flight(gm.graph))
    return plan


def run_pass(
    gm: GraphModule, step: Pass, log: Log, invariant: Invariant | None = None
) -> PassResult:
    """Run one pass in place, then everything around it. Linear in the size of the graph."""
    started = time.perf_counter()
    result = step(gm)
    if result.changed:
        gm.graph.eliminate_dead_code()
        gm.graph.lint()
        gm.recompile()
    if invariant is not None:
        invariant(gm)
    name = type(step).__name__
    log.entries.append((name, result, time.perf_counter() - started))
    if log.dump_dir is not None:
        log.dump_dir.mkdir(parents=True, exist_ok=True)
        path = log.dump_dir / f"{len(log.entries):02d}_{name}.py"
        path.write_text(gm.print_readable(print_output=False))
    return result


def _timed(log: Log, name: str, analysis: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = analysis()
    log.entries.append((name, PassResult(changed=0), time.perf_counter() - started))
    return result


def refuse_unfit(streams: Sequence[Stream]) -> None:
    """Raise `LadderError` when there is nothing to convert or a stream must be left alone."""
    if not any(stream.blocks for stream in streams):
        raise LadderError(
            "No residual block was found in this graph: no add whose one operand reaches the "
            "other through a linear, a convolution, an attention or the like.",
            cure="compile the whole model, with fullgraph=True; options={'strict': False} "
            "compiles the standard graph",
        )
    blockers = [blocker for stream in streams for blocker in stream.blockers]
    if blockers:
        raise LadderError("This residual stream cannot be made a ladder:", blockers)
