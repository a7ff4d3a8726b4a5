"""The graph that Dynamo has just traced, through the pipeline before autograd.

gm, frame ── (a copy that may gain inputs) ── ladder ── graph breaks, what Dynamo gave up
"""

from torch.fx import Graph, GraphModule, Node

from ladderize import compat
from ladderize.compat.frames import carry_inputs, copy_source, current_frame
from ladderize.compat.module_paths import name_modules, parameter_names
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.break_hints import Adviser
from ladderize.frontends.broken_frames import BrokenFrames
from ladderize.frontends.ladder import Laddered, ladder
from ladderize.frontends.mesh.earlier_plans import earlier_findings
from ladderize.passes.rewriting_state import RankGroup, Rewriting


def ladder_frame(
    gm: GraphModule,
    config: LadderConfig,
    broken_frames: BrokenFrames,
    adviser: Adviser,
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
    name_modules(gm)
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
        earlier=earlier_findings(compat.compiled_module(), config),
    )
    laddered = ladder(state, frame.piece, index=index)
    if compat.is_bucket():
        laddered.error = LadderError(
            "DistributedDataParallel has Dynamo split the model into one graph for each bucket of "
            "gradients, which cuts the residual stream.",
            cure="torch._dynamo.config.optimize_ddp = False",
        )
    if laddered.error is not None:
        hints = (*frame.cuts(), *adviser.on(frame))
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
