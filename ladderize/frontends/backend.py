"""The `torch.compile` backend: `torch.compile(model, backend="ladderize", options={...})`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.distributed as dist
from torch.fx import GraphModule

from ladderize import compat
from ladderize.backends import LOWERINGS, Lower
from ladderize.config.connectivity import LADDER
from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.config.residual_form import PLAIN
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.agreement import heard_by_all
from ladderize.frontends.break_hints import Adviser
from ladderize.frontends.broken_frames import BrokenFrames
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.frontends.dynamo_graph import ladder_frame
from ladderize.frontends.graph_compilation import GraphCompilation
from ladderize.frontends.sharded.module import ShardedModule
from ladderize.graph.collectives import find_groups
from ladderize.passes.blend_reads import Blends
from ladderize.report.publish import forget
from ladderize.sharding.plan_checks import forget_warnings


@dataclass
class _Session:
    """What outlives a compilation, until `torch._dynamo.reset()`."""

    broken_frames: BrokenFrames = field(default_factory=BrokenFrames)
    adviser: Adviser = field(default_factory=Adviser)


_session = _Session()


def current_adviser() -> Adviser:
    """What knows the failures that Dynamo met since its latest reset."""
    return _session.adviser


def _see_failure(error: BaseException) -> None:
    _session.adviser.see(error)


def ladderize(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Rewrite one Dynamo graph into ladder form and compile it; registered as `"ladderize"`.

    Args:
        gm: the graph that Dynamo traced.
        example_inputs: its fake inputs.
        mode: `torch.compile`'s own, for the Inductor lowering.
        options: the fields of `LadderConfig`.

    Raises:
        LadderError: listing everything that cannot be done as asked. With `strict=False` only
            mistaken options, those that config.json contradicts, and ranks that disagree raise;
            else the standard graph is compiled after one `LadderWarning`.
    """
    return compile_graph(gm, example_inputs, mode=mode, options=options)


def compile_graph(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    lower: Lower | None = None,
    blends: Blends | None = None,
    checkpoint: LadderEntry | None = None,
) -> Callable[..., Any]:
    """As `ladderize`, the backend; an engine may lower the rewritten graph by itself.

    Args:
        lower: takes the place of the lowering that `options` name; the engine's own.
        blends: decide at each call how stale the converted blocks read; None: as stale as can be.
        checkpoint: what config.json says, of a model that does not hold its configuration.
    """
    compat.watch_failures(ladderize, _see_failure)
    groups = _groups_of(gm, (options or {}).get("mesh"))
    try:
        with heard_by_all(groups, "refused"):
            module = compat.compiled_module()
            config = LadderConfig.from_options(options, mode, checkpoint or own_entry(module))
            is_laddered = isinstance(module, ShardedModule)
            if is_laddered:
                _refuse_options_of_parallelize(config)
        lower = lower or LOWERINGS[config.lowering]
        compilation = GraphCompilation(gm, example_inputs, config, groups, lower, blends)
        rewrite = partial(
            ladder_frame,
            gm,
            config,
            _session.broken_frames,
            _session.adviser,
            is_laddered=is_laddered,
            is_blended=blends is not None,
        )
        return compilation.run(rewrite, is_laddered=is_laddered)
    except LadderError as error:
        raise compat.as_backend_error(error) from None


def _groups_of(gm: GraphModule, mesh: Any) -> list[dist.ProcessGroup]:
    """The groups that `gm` communicates over, or those of the mesh that it is to be sharded over.

    Args:
        mesh: as the user gave it, perhaps no mesh at all.
    """
    if mesh is None:
        return find_groups(gm)
    try:
        asked = LadderConfig(mesh=mesh).device_mesh
    except LadderError:  # no mesh at all
        return []
    return [] if asked is None else [asked.get_group()]


def _refuse_options_of_parallelize(config: LadderConfig) -> None:
    """What `parallelize` has laddered and sharded is only left to be lowered."""
    given = {"layers=": config.layers is not None, "blocks=": config.blocks is not None}
    given |= {"mesh=": config.mesh is not None, "staleness=": config.staleness != 1}
    given |= {"connectivity=": config.connectivity != LADDER, "routed=": bool(config.routed)}
    given |= {"variant=": config.variant != PLAIN}
    surplus = [Blocker(name) for name, is_given in given.items() if is_given]
    if surplus:
        raise LadderError(
            "This module was laddered and sharded by parallelize already:",
            surplus,
            "pass these to ladderize.parallelize",
        )


def _reset() -> None:
    """Called by `torch._dynamo.reset()`: forget all that outlives a compilation.

    What belongs to a model (`ladderize.compile`) or to its parameters (their local parts) lives as
    long as these do.
    """
    global _session
    _session = _Session()
    forget()
    forget_warnings()


ladderize.reset = _reset  # type: ignore[attr-defined]  # the attribute Dynamo looks for
compat.watch_failures(ladderize, _see_failure)
