"""The variants to measure, all made from one exported program.

standard    shard, staleness 0                        torch.compile
written     shard, staleness 1, waits deferred        torch.compile: what people write by hand
ladder      the same graph                            torch.compile(backend="ladderize")
parallel    shard, variant="parallel"                 torch.compile
desync:n    shard, variant="desync:n"                 torch.compile
bound       standard without collectives              torch.compile
free        "ladder", run on a link that takes no time

Without a mesh nothing is sharded; the only collectives are the model's own. Then `ladder` is the
standard model, which the backend rewrites, and `written` may be a separate model.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from ladderize.config.options import LadderConfig
from ladderize.config.residual_form import PARALLEL, desync_period
from ladderize.errors import LadderError
from ladderize.frontends.rewrite import rewrite_program
from ladderize.frontends.sharded.module import ShardedModule
from ladderize.frontends.sharded.parallelize import parallelize
from ladderize.graph.collectives import collective_of, every_node, group_name_of, is_wait
from ladderize.tools.bench.bench_settings import VARIANTS, Settings


@dataclass(frozen=True)
class BenchVariant:
    """One program to measure.

    Attributes:
        module: eager module that holds the weights.
        compiled: `module`, compiled at the first call.
        expected: unsharded eager module that computes the same function; None for the bound,
            whose values are wrong, and for a desync residual, which needs several ranks.
        is_free: whether the emulated link takes no time for this variant.
    """

    name: str
    module: nn.Module
    compiled: Callable[..., Any]
    expected: nn.Module | None
    is_free: bool = False


def has_collectives(program: ExportedProgram) -> bool:
    """Whether the model has collectives of its own."""
    return any(group_name_of(node) for node in every_node(program.graph_module))


def make_variants(
    program: ExportedProgram,
    settings: Settings,
    mesh: DeviceMesh | None,
    written: ExportedProgram | None = None,
) -> list[BenchVariant]:
    """Make the variants of `settings.variants`, in that order. They share their weights.

    With the default variants, `parallel` is left out if the model has no such form.

    Args:
        program: the standard model.
        mesh: mesh to shard over; None with one rank, or if the model has its own collectives.
        written: hand-written ladder, if it is a separate model.

    Raises:
        LadderError: the program has no blocks, or cannot be sharded.
    """
    is_sharded = mesh is not None or has_collectives(program)
    programs = _programs(program, settings, written)
    made: list[BenchVariant] = []
    for name in settings.variants:
        if (name == "bound" and not is_sharded) or name not in programs:
            continue  # so is "free", which runs the program of "ladder"
        ours = programs[name]
        if mesh is None:
            module = _unsharded(name, program, ours)
        else:
            module = _shard(name, program, ours, mesh, settings)
        if made:
            module.load_state_dict(made[0].module.state_dict(), assign=True)
        has_whole = name != "bound" and not desync_period(name)
        expected = ours.module() if has_whole else None
        made.append(BenchVariant(name, module, _compile(name, module, settings, mesh), expected))
    if "free" in settings.variants and settings.is_emulated:
        (ladder,) = (variant for variant in made if variant.name == "ladder")
        made.append(replace(ladder, name="free", is_free=True))
    return sorted(made, key=lambda variant: settings.variants.index(variant.name))


def _unsharded(name: str, program: ExportedProgram, ours: ExportedProgram) -> nn.Module:
    """The module of a variant without sharding; its collectives are the model's own."""
    # The backend rewrites the standard program into the ladder.
    module: Any = (program if name == "ladder" else ours).module()
    if name == "bound":
        drop_collectives(module, 1)
    return cast(nn.Module, module)


def _shard(
    name: str, program: ExportedProgram, ours: ExportedProgram, mesh: DeviceMesh, settings: Settings
) -> nn.Module:
    options: dict[str, Any] = {"shard_vocabulary": settings.shard_vocabulary}
    source = ours
    if name in ("written", "ladder"):
        options |= settings.ladder
        source = program
    elif name == PARALLEL or desync_period(name):
        options["variant"] = name
        source = program
    else:
        options["staleness"] = 0
    shard: ShardedModule = parallelize(source, mesh, **options)
    if name == "bound":
        drop_collectives(shard.graph_module, mesh.size())
    return shard


def _programs(
    program: ExportedProgram, settings: Settings, written: ExportedProgram | None
) -> dict[str, ExportedProgram]:
    """The unsharded program of each variant, by name."""
    made = {"standard": program, "bound": program}
    if "ladder" in settings.variants or ("written" in settings.variants and written is None):
        config = LadderConfig.from_options(settings.ladder, checkpoint=settings.checkpoint)
        made["ladder"], _ = rewrite_program(program, config)
    if found := written or made.get("ladder"):
        made["written"] = found
    made |= {name: program for name in settings.variants if desync_period(name)}
    if PARALLEL in settings.variants:
        # An error only if variants were given.
        with suppress(LadderError) if settings.variants == tuple(VARIANTS) else nullcontext():
            made[PARALLEL] = _parallel(program)
    return made


def _parallel(program: ExportedProgram) -> ExportedProgram:
    rewritten, report = rewrite_program(program, LadderConfig(variant=PARALLEL))
    if not any(block.is_rewired for block in report.blocks):
        raise LadderError("No two blocks of this program can run in parallel.")
    return rewritten


def _compile(
    name: str, module: nn.Module, settings: Settings, mesh: DeviceMesh | None
) -> Callable[..., Any]:
    graphs = settings.device == "cuda" and settings.graphs and settings.lowering == "inductor"
    mode = "reduce-overhead" if graphs else None
    if name != "ladder":
        backend = settings.lowering  # our lowerings are named after torch's backends
        return torch.compile(module, backend=backend, fullgraph=True, dynamic=False, mode=mode)
    options: dict[str, Any] = {"lowering": settings.lowering}
    if mode is not None:
        options["mode"] = mode
    if mesh is None:
        options |= settings.ladder
    return torch.compile(
        module, backend="ladderize", fullgraph=True, dynamic=False, options=options
    )


def drop_collectives(gm: GraphModule, num_ranks: int) -> None:
    """Remove the collectives from a rank-local graph, whose values are wrong afterwards.

    All-to-alls of equal splits become the identity, like all-reduces.

    before   r = reduce(h)   y = wait(r)   w = gather(logits, …, dim, n)
    after    h               h             w = cat([logits] * n, dim)
    """
    for node in list(gm.graph.nodes):
        if node.target in _PASSED_ON or _keeps_its_shape(node) or is_wait(node):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif node.target is torch.ops.ladderize.gather.default:
            x, _, dim, *_ = node.args
            with gm.graph.inserting_before(node):
                whole = gm.graph.call_function(torch.ops.aten.cat.default, ([x] * num_ranks, dim))
            node.replace_all_uses_with(whole)
            gm.graph.erase_node(node)
    if left := [node for node in every_node(gm) if group_name_of(node)]:
        raise LadderError(f"These collectives cannot be removed: {', '.join(map(str, left))}.")
    gm.graph.lint()
    gm.recompile()


def _keeps_its_shape(node: Node) -> bool:
    """Whether `node` is a torch collective whose output has the shape of its input."""
    op = collective_of(node)
    if op == "all_to_all_single":
        _, outputs, inputs, *_ = node.args
        return outputs == inputs
    return op == "all_reduce"


_PASSED_ON = (
    torch.ops.ladderize.copy.default,
    torch.ops.ladderize.reduce.default,
)
