"""Run the pipeline before autograd on a graph that Dynamo has just traced.

gm, frame ── (a copy that may gain inputs) ── ladder ── graph breaks and hints
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
    """Convert the graph that Dynamo has just traced, without communication between ranks.

    A graph break that cuts the stream is an error of the result, like a refusal of the pipeline.
    The locations where Dynamo gave up are added to either.
    """
    frame = current_frame(gm)
    name_modules(gm)
    ranks = RankGroup.of(config.device_mesh)
    # If Dynamo gave up on a frame, its callees look like layers, but the break is the reason.
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
            "DistributedDataParallel makes Dynamo split the model into one graph for each bucket "
            "of gradients, which cuts the residual stream.",
            cure="set torch._dynamo.config.optimize_ddp = False",
        )
    if laddered.error is not None:
        hints = (*frame.cuts(), *adviser.on(frame))
        laddered.error = laddered.error.with_blockers(hints)
    elif config.expect_blocks is None:  # otherwise the user has confirmed this graph's blocks
        try:
            broken_frames.note(frame, sum(len(stream.blocks) for stream in state.streams))
        except LadderError as error:
            laddered.error = error
    return laddered


def _apart_from_dynamo(gm: GraphModule) -> GraphModule:
    """A copy that may gain inputs. Dynamo reads the inputs of a call from its own graph."""
    copied = GraphModule(gm, copy_graph(gm))
    carry_inputs(gm, copied)
    return copied


def copy_graph(gm: GraphModule) -> Graph:
    """A copy of the graph of `gm`; assign it to `gm.graph` to undo later changes."""
    copied = Graph(gm)
    nodes: dict[Node, Node] = {}
    output = copied.graph_copy(gm.graph, nodes)
    copied.output(output)
    for old, new in nodes.items():
        copy_source(old, new)
    return copied
