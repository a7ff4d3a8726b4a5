"""Trace the graph of each batch, and find the inputs that are weights to fit.

    standard model, batch ── graph of blended reads ── names of its inputs ── reads, weights

Nothing is computed: a call stops before its graph runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from ladderize.backends.lowered import Lowered
from ladderize.config.options import LadderConfig
from ladderize.frontends.compile import compile_blended, restore
from ladderize.graph import ops
from ladderize.passes.blend_reads import Blends
from ladderize.quality.fitting.paired_run import PairedRun
from ladderize.quality.fitting.read_products import FirstRead, find_first_reads
from ladderize.quality.healing.teacher import find_adapters


@dataclass(frozen=True)
class TracedBatch:
    """The graph of a batch and its inputs.

    Attributes:
        gm: graph with blended reads.
        inputs: inputs of the call.
        names: names of the parameters among the inputs.
        reads: reads whose weights can be fitted.
        left: other ops that mix or select what a converted block reads: "block 3: grouped_mm".
    """

    gm: GraphModule
    inputs: Sequence[Any]
    names: Mapping[Node, str]
    reads: Sequence[FirstRead]
    left: tuple[str, ...]

    @property
    def fitted(self) -> list[str]:
        """The names of the weights of `reads`."""
        return [self.names[weight.node] for read in self.reads for weight in read.weights]

    def run(self, model: nn.Module, teacher: nn.Module) -> PairedRun:
        """A run of the batch as the standard model `teacher` and as the ladder `model`."""
        standard, ladder = (
            {node: each.get_parameter(name) for node, name in self.names.items()}
            for each in (teacher, model)
        )
        return PairedRun(self.gm, self.inputs, standard, ladder)


class _CallEnds(Exception):
    """Carries the graph and the inputs out of a call, so that it does not run."""


def trace_batches(
    teacher: nn.Module, batches: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> list[TracedBatch]:
    """The graph of each batch; batches of one shape share it.

    Args:
        teacher: standard model in eval mode; it is restored afterwards.
        batches: keyword arguments of calls.
        options: options of `LadderConfig`.

    Raises:
        LadderError: the model cannot be converted.
    """

    def lower(gm: GraphModule, examples: Sequence[Any], config: LadderConfig) -> Lowered:  # noqa: ARG001
        def run(*inputs: Any) -> Any:
            raise _CallEnds(gm, inputs)

        return Lowered(run)

    names = {id(parameter): name for name, parameter in teacher.named_parameters()}
    fittable = _fittable(teacher)
    strict = {**options, "strict": True}
    compile_blended(teacher, Blends(), lower=lower, dynamic=False, **strict)
    try:
        return [_found(*_call(teacher, batch), names, fittable) for batch in batches]
    finally:
        restore(teacher)


def _call(teacher: nn.Module, batch: Mapping[str, Any]) -> tuple[GraphModule, Sequence[Any]]:
    try:
        teacher(**batch)
    except _CallEnds as ends:
        gm, inputs = ends.args
        return gm, inputs
    raise AssertionError("the model was not run by its graph")


def _found(
    gm: GraphModule, inputs: Sequence[Any], names: Mapping[int, str], fittable: set[str]
) -> TracedBatch:
    placeholders = zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True)
    named = {node: names[id(value)] for node, value in placeholders if id(value) in names}
    found = find_first_reads(gm, {node for node, name in named.items() if name in fittable})
    left = tuple(f"block {block}: {ops.op_name(node)}" for block, node in found.left)
    return TracedBatch(gm, inputs, named, found.reads, left)


def _fittable(teacher: nn.Module) -> set[str]:
    """The names of all matrices except LoRA adapters."""
    adapters = {
        id(each)
        for _, *factors in find_adapters(teacher)
        for factor in factors
        for each in factor.parameters()
    }
    return {
        name
        for name, each in teacher.named_parameters()
        if each.dim() == 2 and each.is_floating_point() and id(each) not in adapters
    }
