"""The `torch.compile` backend: `torch.compile(model, backend="ladderize", options={...})`."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.fx import Graph, GraphModule, Node

from ladderize import compat
from ladderize.backends import LOWERINGS, Lower
from ladderize.backends.lowered import Lowered
from ladderize.compat.frames import carry_inputs, copy_source, current_frame, parameter_names
from ladderize.config.ladder_entry import ContradictionError, LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, LadderWarning
from ladderize.frontends.agreement import (
    Absent,
    DisagreementError,
    agree,
    explain_failed_calls,
    heard_by_all,
)
from ladderize.frontends.break_hints import Adviser
from ladderize.frontends.broken_frames import BrokenFrames
from ladderize.frontends.checkpoints.conversions import note_compilation
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.frontends.generation import warn_of_standard_prefill
from ladderize.frontends.ladder import Laddered, ladder
from ladderize.frontends.local_parameters import PARTS, LocalInputs
from ladderize.frontends.sharded.module import ShardedModule
from ladderize.frontends.verdicts import Verdict, describe_graph, settings_of
from ladderize.graph import ops
from ladderize.graph.collectives import find_groups
from ladderize.passes.before_autograd import dump_folder
from ladderize.passes.blend_reads import Blends, blend_inputs
from ladderize.passes.rewriting_state import RankGroup, Rewriting
from ladderize.report.publish import as_report, forget, publish
from ladderize.streams.choose import chosen_numbers
from ladderize.streams.cut_streams import warn_of_cut_streams
from ladderize.streams.existing_ladders import warn_of_ladders
from ladderize.streams.fresh_reads import warn_of_fresh_reads


@dataclass
class _Session:
    """What outlives a compilation, until `torch._dynamo.reset()`."""

    broken_frames: BrokenFrames = field(default_factory=BrokenFrames)
    adviser: Adviser = field(default_factory=Adviser)


_session = _Session()


_NEVER_STANDARD = (DisagreementError, ContradictionError)
"""What is raised with `strict=False` too."""


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
        return _compile(gm, example_inputs, config, groups, lower, blends, is_laddered=is_laddered)
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


ladderize.reset = _reset  # type: ignore[attr-defined]  # the attribute Dynamo looks for
compat.watch_failures(ladderize, _see_failure)


def _compile(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    config: LadderConfig,
    groups: Sequence[dist.ProcessGroup],
    lower: Lower,
    blends: Blends | None,
    *,
    is_laddered: bool,
) -> Callable[..., Any]:
    standard = None if config.strict else copy_graph(gm)
    mesh = config.device_mesh
    with heard_by_all(groups, "failed"):
        laddered = ladder_frame(
            gm,
            config,
            _session.broken_frames,
            is_laddered=is_laddered,
            is_blended=blends is not None,
        )
    verdicts = _verdicts(laddered, groups)
    absent: Absent = {}
    try:
        absent = agree(verdicts)
    except DisagreementError as disagreement:
        laddered.error = disagreement
    error = laddered.error
    falls_back = standard is not None and not isinstance(error, _NEVER_STANDARD)
    graph = laddered.report("rewritten", refused="standard" if falls_back else "refused")
    publish(as_report(graph, config), dump_folder(config))
    if error is not None:
        if standard is None or not falls_back:
            raise error
        warnings.warn(LadderWarning(f"The standard graph is compiled. {error}"), stacklevel=2)
        note_compilation(compat.compiled_module(), config, ())
        gm.graph = standard
        gm.recompile()
        return _lower_together(gm, example_inputs, config, lower, absent).run
    state = laddered.state
    if not is_laddered:
        if state.streams:
            blocks = chosen_numbers(state.streams, state.chosen)
            note_compilation(compat.compiled_module(), config, blocks)
        warn_of_ladders(state.streams)
        warn_of_cut_streams(state.analysis, state.streams, state.chosen, config)
        warn_of_fresh_reads(state.fresh_reads)
        if config.staleness > 0:
            warn_of_standard_prefill()
    inputs = blend_inputs(state.gm)
    example_inputs = [*example_inputs, *(ops.value(node) for node in inputs)]
    local = None
    if state.plan is not None:
        assert mesh is not None
        with heard_by_all(groups, "not lowered", absent):
            local = LocalInputs(
                state.gm,
                state.plan,
                mesh,
                example_inputs,
                slices=config.lowering != "tensorrt",  # an engine holds its own part of a weight
                is_released=_is_released(),
            )
            example_inputs = local.examples()
    lowered = _lower_together(state.gm, example_inputs, config, lower, absent)
    if lowered.engines is not None:
        graph = dataclasses.replace(graph, engines=lowered.engines)
        publish(as_report(graph, config), dump_folder(config))
    run = lowered.run if local is None else local.feed(lowered.run)
    run = run if blends is None else blends.feed(run, list(inputs.values()))
    return explain_failed_calls(run, verdicts)


def _is_released() -> bool:
    """Whether parameters of the model that is compiled were released."""
    module = compat.compiled_module()
    if module is None:
        return bool(PARTS.released)
    return any(map(PARTS.is_released, module.parameters()))


def _lower_together(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    config: LadderConfig,
    lower: Lower,
    absent: Absent,
) -> Lowered:
    """Lower on all ranks or on none: any lowering may fail on one of them alone.

    Args:
        absent: the ranks that have lowered the graph before.
    """
    groups = find_groups(gm)
    with heard_by_all(groups, "not lowered", absent):
        lowered = lower(gm, example_inputs, config)
    agree(dict.fromkeys(groups, Verdict("lowered")), absent)
    return lowered


def _verdicts(
    laddered: Laddered, groups: Sequence[dist.ProcessGroup]
) -> dict[dist.ProcessGroup, Verdict]:
    """What the ranks that the graph communicates with are told, before anything is lowered."""
    state = laddered.state
    if laddered.error is not None:
        refused = f"refused: {laddered.error}"
        return dict.fromkeys(groups, Verdict(refused, sequence=refused))
    headline, settings = state.describe(), _settings(state)
    return {
        group: describe_graph(state.gm, headline, settings, group.group_name) for group in groups
    }


def _settings(state: Rewriting) -> list[str]:
    """What was done to a graph, and by what, apart from what may differ from rank to rank."""
    lines = settings_of(state.config)
    lines += [f"blocks converted: {sorted(chosen)}" for chosen in state.chosen]
    return lines if state.plan is None else [*lines, *state.plan.decisions()]


def ladder_frame(
    gm: GraphModule,
    config: LadderConfig,
    broken_frames: BrokenFrames,
    *,
    index: int = 0,
    is_laddered: bool = False,
    is_blended: bool = False,
) -> Laddered:
    """Ladder the graph that Dynamo has just traced; the ranks do not hear of it.

    A graph break that cuts the stream is an error of what comes back, like a refusal of the
    pipeline; the places where Dynamo gave up are added to either.
    """
    frame = current_frame(gm)
    ranks = RankGroup.of(config.device_mesh)
    # Where Dynamo gave a frame up, the callees look like layers: the break is what to name.
    may_be_a_layer = not frame.left_to_python
    if is_blended:
        gm = _apart_from_dynamo(gm)
    state = Rewriting(
        gm,
        parameter_names(gm),
        config,
        ranks,
        may_be_a_layer,
        is_laddered=is_laddered,
        is_blended=is_blended,
    )
    laddered = ladder(state, frame.piece, index=index)
    if compat.is_bucket():
        laddered.error = LadderError(
            "DistributedDataParallel has Dynamo split the model into one graph for each bucket of "
            "gradients, which cuts the residual stream.",
            cure="torch._dynamo.config.optimize_ddp = False",
        )
    if laddered.error is not None:
        hints = (*frame.cuts(), *_session.adviser.on(frame))
        laddered.error = laddered.error.with_blockers(hints)
    elif config.expect_blocks is None:  # else the user said how many this very graph holds
        try:
            broken_frames.note(frame, sum(len(stream.blocks) for stream in state.streams))
        except LadderError as error:
            laddered.error = error
    return laddered


def _apart_from_dynamo(gm: GraphModule) -> GraphModule:
    """A copy that may gain inputs: Dynamo asks the graph that it made what to call it with."""
    copied = GraphModule(gm, copy_graph(gm))
    carry_inputs(gm, copied)
    return copied


def copy_graph(gm: GraphModule) -> Graph:
    """The graph of `gm` as it is now; assign it to `gm.graph` to undo what was done since."""
    copied = Graph(gm)
    nodes: dict[Node, Node] = {}
    output = copied.graph_copy(gm.graph, nodes)
    copied.output(output)
    for old, new in nodes.items():
        copy_source(old, new)
    return copied
