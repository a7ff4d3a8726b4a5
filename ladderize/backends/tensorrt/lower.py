"""Lower to TensorRT: engines for the compute between collectives, which stay in PyTorch.

gm ── AOTAutograd, no gradients ── JoinWaits, DeferWaits ── CutIslands ── engines
                                                                │              │ the weights come
                              step(args) = the outer graph ◄────┴──────────────┘ with the first call

NCCL runs a launch on its own stream, and a wait makes the engines' stream wait for it. Engines
between the two in the graph run meanwhile.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.backends.lowered import Lowered
from ladderize.backends.tensorrt.check_cut import cut_of
from ladderize.backends.tensorrt.cut import CutIslands
from ladderize.backends.tensorrt.drop_checks import DropChecks
from ladderize.backends.tensorrt.engines import TensorRTOptions, build_islands, require_packages
from ladderize.backends.tensorrt.engines.step import CutGraph, refuse_gradients
from ladderize.backends.tensorrt.islands import is_call, islands_of
from ladderize.compat.tensorrt import tensorrt_decompositions
from ladderize.config.options import LadderConfig
from ladderize.passes.after_autograd import defer
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.runner import Log, run_pass


def lower_to_tensorrt(
    gm: GraphModule, example_inputs: Sequence[Any], config: LadderConfig
) -> Lowered:
    """Build the engines of `gm`, once for equal islands. Weights are read at the first call.

    Args:
        gm: graph to lower.
        example_inputs: fake inputs; each `nn.Parameter` becomes a weight of the engines.
        config: configuration with `TensorRTOptions` as `lowering_options`.

    Raises:
        LadderError: TensorRT is not installed, gradients are required, a dynamic size has no upper
            bound, or an engine cannot be built.
    """
    require_packages()
    refuse_gradients(example_inputs)
    options = TensorRTOptions.parse(config.lowering_options)
    weights = [i for i, example in enumerate(example_inputs) if isinstance(example, nn.Parameter)]

    steps: list[CutGraph] = []

    def compile_forward(graph: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        inputs = graph.graph.find_nodes(op="placeholder")
        chosen = [node for node in inputs if compat.input_position(node) in weights]
        steps.append(prepare(graph, chosen, options, DeferWaits.of(config)))
        return compat.boxed(steps[0])

    run = compat.aot_compile(gm, example_inputs, compile_forward, tensorrt_decompositions())
    return Lowered(run, steps[0].built.report.summary)


def prepare(
    gm: GraphModule,
    weights: Sequence[Node],
    options: TensorRTOptions,
    waits: DeferWaits | None = None,
) -> CutGraph:
    """Cut `gm`, a functional ATen graph, in place and build the engines of its islands.

    Args:
        gm: graph to cut.
        weights: inputs that become weights of the engines.
        options: build options of the engines.
        waits: the configured pass that defers waits.
    """
    defer(gm, waits)
    log = Log()
    run_pass(gm, DropChecks(), log)
    run_pass(gm, CutIslands(), log, cut_of(gm))
    islands = islands_of(gm)
    inputs = gm.graph.find_nodes(op="placeholder")
    index = {node: inputs.index(node) for node in weights}
    reads: dict[str, dict[str, int]] = {}
    for call in filter(is_call, gm.graph.nodes):
        name = str(call.target)
        own = islands[name].graph.find_nodes(op="placeholder")
        given = zip(own, call.args, strict=True)
        reads[name] = {slot.name: index[node] for slot, node in given if node in index}
        call.args = tuple(node for node in call.args if node not in index)
    built = build_islands(islands, reads, options)
    gm.recompile()
    return CutGraph(gm, built, reads)
