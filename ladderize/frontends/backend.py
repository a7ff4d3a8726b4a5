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
    """State that is kept between compilations until `torch._dynamo.reset()`."""

    broken_frames: BrokenFrames = field(default_factory=BrokenFrames)
    adviser: Adviser = field(default_factory=Adviser)


_session = _Session()


def current_adviser() -> Adviser:
    """The adviser with the failures that Dynamo has had since its latest reset."""
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
        gm: graph that Dynamo traced.
        example_inputs: fake inputs of the graph.
        mode: `torch.compile`'s `mode=`, for the Inductor lowering.
        options: fields of `LadderConfig`.

    Raises:
        LadderError: lists everything that cannot be done as asked. With `strict=False`, only
            invalid options, options that contradict config.json, and ranks that disagree raise;
            otherwise the standard graph is compiled after one `LadderWarning`.
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
    """`ladderize`, the backend, with hooks for engines and for blends.

    Args:
        gm, example_inputs, mode, options: as for `ladderize`.
        lower: lowering of an engine, in place of the one in `options`.
        blends: blend weights that set at each call how stale the blocks read; None: fully stale.
        checkpoint: ladder entry of config.json, for a model without its configuration.
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
    """The process groups that `gm` communicates over, or the group of the mesh to shard over.

    Args:
        gm: graph that Dynamo traced.
        mesh: unchecked value of the option.
    """
    if mesh is None:
        return find_groups(gm)
    try:
        asked = LadderConfig(mesh=mesh).device_mesh
    except LadderError:  # not a mesh
        return []
    return [] if asked is None else [asked.get_group()]


def _refuse_options_of_parallelize(config: LadderConfig) -> None:
    """Raise for options that do not apply to a module that `parallelize` has converted."""
    given = {"layers=": config.layers is not None, "blocks=": config.blocks is not None}
    given |= {"mesh=": config.mesh is not None, "staleness=": config.staleness != 1}
    given |= {"connectivity=": config.connectivity != LADDER, "routed=": bool(config.routed)}
    given |= {"variant=": config.variant != PLAIN}
    surplus = [Blocker(name) for name, is_given in given.items() if is_given]
    if surplus:
        raise LadderError(
            "This module was already converted and sharded by parallelize:",
            surplus,
            "pass these to ladderize.parallelize",
        )


def _reset() -> None:
    """Forget the state that is kept between compilations. `torch._dynamo.reset()` calls this.

    The state of a model (`ladderize.compile`) and of its parameters (local parts) stays.
    """
    global _session
    _session = _Session()
    forget()
    forget_warnings()


ladderize.reset = _reset  # type: ignore[attr-defined]  # the attribute Dynamo looks for
compat.watch_failures(ladderize, _see_failure)
