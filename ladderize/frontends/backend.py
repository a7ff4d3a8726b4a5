"""The `torch.compile` backend: `torch.compile(model, backend="ladderize", options={...})`."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import Graph, GraphModule, Node

from ladderize import compat
from ladderize.backends import LOWERINGS
from ladderize.backends.lowered import Lowered
from ladderize.compat.frames import current_frame, parameter_names
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, LadderWarning
from ladderize.frontends.agreement import DisagreementError, agree, describe_graph
from ladderize.frontends.break_hints import Adviser
from ladderize.frontends.broken_frames import BrokenFrames
from ladderize.frontends.generation import warn_of_standard_prefill
from ladderize.frontends.local_parameters import LocalInputs
from ladderize.frontends.sharded.module import ShardedModule
from ladderize.graph.collectives import find_groups
from ladderize.passes.pipeline import RankGroup, Rewritten, dump_folder, ladder
from ladderize.report.builder import Draft
from ladderize.report.publish import as_report, changed_options, forget, publish, versions
from ladderize.streams.existing_ladders import warn_of_ladders

_broken_frames = BrokenFrames()
_adviser = Adviser()


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
            mistaken options and ranks that disagree raise; else the standard graph is compiled
            after one `LadderWarning`.
    """
    compat.watch_failures(ladderize, _adviser.see)
    try:
        config = LadderConfig.from_options(options, mode)
        if isinstance(compat.compiled_module(), ShardedModule):
            config = _as_parallelized(config)
        return _compile(gm, example_inputs, config)
    except LadderError as error:
        raise compat.as_backend_error(error) from None


def _as_parallelized(config: LadderConfig) -> LadderConfig:
    """What is left for a module that `parallelize` has laddered and sharded: to compile it."""
    given = {"layers=": config.layers != "all", "blocks=": config.blocks is not None}
    given |= {"mesh=": config.mesh is not None, "staleness=": config.staleness != 1}
    surplus = [Blocker(name) for name, is_given in given.items() if is_given]
    if surplus:
        raise LadderError(
            "This module was laddered and sharded by parallelize already:",
            surplus,
            "pass these to ladderize.parallelize",
        )
    return dataclasses.replace(config, staleness=0)


def _reset() -> None:
    """Called by `torch._dynamo.reset()`."""
    _broken_frames.forget()
    _adviser.forget()
    forget()


ladderize.reset = _reset  # type: ignore[attr-defined]  # the attribute Dynamo looks for
compat.watch_failures(ladderize, _adviser.see)


def _compile(
    gm: GraphModule, example_inputs: Sequence[Any], config: LadderConfig
) -> Callable[..., Any]:
    standard = None if config.strict else copy_graph(gm)
    name, draft = current_frame(gm).piece, Draft()

    def report(outcome: str, error: LadderError | None = None) -> None:
        publish(as_report(draft.finish(name, outcome, error), config), dump_folder(config))

    try:
        rewritten = _rewrite(gm, config, draft)
    except DisagreementError as error:
        report("refused", error)
        raise
    except LadderError as error:
        report("refused" if standard is None else "standard", error)
        if standard is None:
            raise
        warnings.warn(LadderWarning(f"The standard graph is compiled. {error}"), stacklevel=2)
        gm.graph = standard
        gm.recompile()
        return _lower_together(gm, example_inputs, config).run
    report("rewritten")
    if not isinstance(compat.compiled_module(), ShardedModule):
        warn_of_ladders(rewritten.streams)
    if config.staleness > 0:
        warn_of_standard_prefill()
    local = None
    if rewritten.plan is not None:
        assert config.device_mesh is not None
        local = LocalInputs(rewritten.gm, rewritten.plan, config.device_mesh)
        example_inputs = local.examples(example_inputs)
    lowered = _lower_together(rewritten.gm, example_inputs, config)
    if lowered.engines is not None:
        draft.see_engines(lowered.engines)
        report("rewritten")
    return lowered.run if local is None else local.feed(lowered.run)


def _lower_together(
    gm: GraphModule, example_inputs: Sequence[Any], config: LadderConfig
) -> Lowered:
    """Lower on all ranks or on none: an engine may fail to be built on one of them alone."""
    lower = LOWERINGS[config.lowering]
    groups = find_groups(gm)
    if config.lowering != "tensorrt" or not groups:
        return lower(gm, example_inputs, config)
    try:
        lowered = lower(gm, example_inputs, config)
    except LadderError as error:
        agree(dict.fromkeys(groups, f"not lowered: {error}"))
        raise
    agree(dict.fromkeys(groups, "lowered"))
    return lowered


def _rewrite(gm: GraphModule, config: LadderConfig, draft: Draft) -> Rewritten:
    """The rewritten graph, once all ranks that it communicates with agree that it is the same."""
    mesh = config.device_mesh
    groups = find_groups(gm) if mesh is None else [mesh.get_group()]
    try:
        rewritten = rewrite_here(gm, config, draft, _broken_frames)
    except LadderError as error:
        agree(dict.fromkeys(groups, f"refused: {error}"))
        raise
    if rewritten.plan is not None:
        agree({groups[0]: f"plan {rewritten.plan.digest()}, {rewritten.describe()}"})
    else:
        headline = _headline(rewritten, config)
        agree({group: describe_graph(gm, headline, group) for group in groups})
    return rewritten


def _headline(rewritten: Rewritten, config: LadderConfig) -> str:
    """What was done to a graph, and by what, apart from what may differ from rank to rank."""
    known = (*versions(), *changed_options(config))
    private = ("debug_dir", "python")
    settings = ", ".join(f"{name}={value}" for name, value in known if name not in private)
    return f"{rewritten.describe()}; {settings}"


def rewrite_here(
    gm: GraphModule, config: LadderConfig, draft: Draft, broken_frames: BrokenFrames
) -> Rewritten:
    """Rewrite the graph that Dynamo has just traced; the ranks do not hear of it.

    Raises:
        LadderError: from the passes, or because a graph break cuts the stream.
    """
    frame = current_frame(gm)
    try:
        _refuse_buckets()
        # Where Dynamo gave a frame up, the callees look like layers: the break is what to name.
        is_left_over = bool(frame.left_to_python)
        rewritten = ladder(
            gm,
            parameter_names(gm),
            config,
            RankGroup.of(config.device_mesh),
            may_be_a_layer=not is_left_over,
            draft=draft,
        )
    except LadderError as error:
        blockers = [*error.blockers, *frame.cuts(), *_adviser.on(frame)]
        raise LadderError(error.summary, blockers, error.cure) from None
    if config.expect_blocks is None:  # else the user said how many this very graph holds
        broken_frames.note(frame, sum(len(stream.blocks) for stream in rewritten.streams))
    return rewritten


def _refuse_buckets() -> None:
    if compat.is_bucket():
        raise LadderError(
            "DistributedDataParallel has Dynamo split the model into one graph for each bucket of "
            "gradients, which cuts the residual stream.",
            cure="torch._dynamo.config.optimize_ddp = False",
        )


def copy_graph(gm: GraphModule) -> Graph:
    """The graph of `gm` as it is now; assign it to `gm.graph` to undo what was done since."""
    copied = Graph(gm)
    nodes: dict[Node, Node] = {}
    output = copied.graph_copy(gm.graph, nodes)
    copied.output(output)
    for old, new in nodes.items():
        if hasattr(old, "_dynamo_source"):  # AOTAutograd asks each input where it came from
            new._dynamo_source = old._dynamo_source
    return copied
