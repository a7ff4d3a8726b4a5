"""Rewrite a traced program into ladder form, without compiling it. Returns the same kind.

ladder = ladderize.rewrite(torch.export.export(model, args), layers="last:50%")
ladder = ladderize.rewrite(torch.fx.symbolic_trace(model), args)
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from torch.export import ExportedProgram
from torch.export.graph_signature import OutputSpec, TensorArgument
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.config.options import LOWERING_OPTIONS, LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.checkpoints.own_entry import entry_of_folder
from ladderize.frontends.ladder import ladder
from ladderize.graph import ops
from ladderize.passes.after_autograd import AFTER_AUTOGRAD, Deferring
from ladderize.passes.before_autograd import BEFORE_AUTOGRAD, dump_folder
from ladderize.passes.rewriting_state import RankGroup, Rewriting
from ladderize.passes.runner import find_step, run_steps
from ladderize.report.publish import as_report, publish
from ladderize.report.report import Report
from ladderize.streams.cut_streams import warn_of_cut_streams
from ladderize.streams.existing_ladders import warn_of_ladders
from ladderize.streams.fresh_reads import warn_of_fresh_reads


@overload
def rewrite(
    program: ExportedProgram, *, checkpoint: str | Path | None = None, **options: Any
) -> ExportedProgram: ...


@overload
def rewrite(
    program: GraphModule,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> GraphModule: ...


def rewrite(
    program: ExportedProgram | GraphModule,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> ExportedProgram | GraphModule:
    """Rewrite a copy of `program` into ladder form; weights are shared with the original.

    Args:
        program: result of `torch.export.export` (before or after `run_decompositions`) or of
            `torch.fx.symbolic_trace`.
        args, kwargs: example inputs of a symbolically traced module, which has no shapes; not
            needed if the graph has fake values.
        checkpoint: folder of the weights, with a config.json that may have a ladder entry. A
            program does not contain it.
        options: fields of `LadderConfig`, except those for sharding and lowering.

    Raises:
        LadderError: lists everything that cannot be done as asked.
    """
    surplus = [
        Blocker(f"{name}= belongs to torch.compile")
        for name in ("mesh", *LOWERING_OPTIONS)
        if name in options
    ]
    if surplus:
        raise LadderError("A rewrite neither shards nor compiles:", surplus)
    entry = None if checkpoint is None else entry_of_folder(Path(checkpoint))
    config = LadderConfig.from_options(options, checkpoint=entry)
    if isinstance(program, ExportedProgram):
        return rewrite_program(program, config)[0]
    gm = copy.copy(program)
    gm.graph = copy.deepcopy(program.graph)
    _require_values(gm, args, kwargs or {})
    _ladder(Rewriting(gm, {}, config, may_be_a_layer=False))
    return gm


def _ladder(state: Rewriting) -> tuple[Rewriting, Report]:
    """Rewrite the graph of `state` in place and publish the report, even of a refusal."""
    laddered = ladder(state, "program")
    report = as_report(laddered.report("program"), state.config)
    publish(report, dump_folder(state.config))
    rewritten = laddered.result()
    warn_of_ladders(rewritten.streams)
    warn_of_cut_streams(rewritten.analysis, rewritten.streams, rewritten.chosen, state.config)
    warn_of_fresh_reads(rewritten.fresh_reads)
    return rewritten, report


def ladder_program(
    program: ExportedProgram, config: LadderConfig, ranks: RankGroup | None = None
) -> tuple[Rewriting, Report]:
    """Rewrite a copy of the graph of `program` into ladder form, sharded if `ranks` are given."""
    return _ladder(_state_of(program, config, ranks))


def rewrite_program(
    program: ExportedProgram, config: LadderConfig
) -> tuple[ExportedProgram, Report]:
    """`rewrite` for an exported program; also returns the report."""
    rewritten, report = ladder_program(program, config)
    return _around(rewritten.gm, program), report


def graph_after(
    program: ExportedProgram, config: LadderConfig, ranks: RankGroup | None, step: str
) -> GraphModule:
    """A copy of the graph of `program` after the named step of either pipeline.

    Here the passes after autograd run on the forward graph before autograd.

    Raises:
        LadderError: a step up to that one raised it, or there is no such step.
    """
    state = _state_of(program, config, ranks)
    last = find_step((*BEFORE_AUTOGRAD, *AFTER_AUTOGRAD), step)
    if last in BEFORE_AUTOGRAD:
        run_steps(BEFORE_AUTOGRAD, state, stop_after=last)
    else:
        run_steps(BEFORE_AUTOGRAD, state)
        run_steps(AFTER_AUTOGRAD, Deferring(state.gm), stop_after=last)
    return state.gm


def explain_program(
    program: ExportedProgram, config: LadderConfig, ranks: RankGroup | None = None
) -> Report:
    """Report what `ladder_program` would do; a refusal is in the report."""
    laddered = ladder(_state_of(program, config, ranks), "program")
    return as_report(laddered.report("explained", refused="explained"), config)


def _state_of(program: ExportedProgram, config: LadderConfig, ranks: RankGroup | None) -> Rewriting:
    gm = copy_of(program)
    return Rewriting(gm, parameter_names(program, gm), config, ranks, may_be_a_layer=False)


def parameter_names(program: ExportedProgram, gm: GraphModule) -> dict[Node, str]:
    """The placeholders of parameters and buffers in `gm`, the graph of `program` or a copy."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    inputs = gm.graph.find_nodes(op="placeholder")
    return {node: names[node.name] for node in inputs if node.name in names}


def copy_of(program: ExportedProgram) -> GraphModule:
    """A copy of the program's graph, with the node names of its signature."""
    gm: GraphModule = copy.deepcopy(program.graph_module)
    for old, new in zip(program.graph_module.graph.nodes, gm.graph.nodes, strict=True):
        new.name = old.name  # copying renames `input`, a builtin of Python, to `input_1`
    return gm


def _around(gm: GraphModule, program: ExportedProgram) -> ExportedProgram:
    """`program` with its graph replaced by `gm`, a rewritten copy."""
    return ExportedProgram(
        root=gm,
        graph=gm.graph,
        graph_signature=dataclasses.replace(
            program.graph_signature, output_specs=renamed_outputs(program, gm)
        ),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def renamed_outputs(program: ExportedProgram, gm: GraphModule) -> list[OutputSpec]:
    """The output specs of `program`, with their names in its rewritten graph `gm`."""
    (output,) = gm.graph.find_nodes(op="output")
    specs = program.graph_signature.output_specs
    return [_renamed(spec, result) for spec, result in zip(specs, output.args[0], strict=True)]


def _renamed(spec: OutputSpec, result: Any) -> OutputSpec:
    """`spec` with the name of `result`, which may be a new node (a functionalized in-place sum)."""
    if isinstance(result, Node) and isinstance(spec.arg, TensorArgument):
        return dataclasses.replace(spec, arg=TensorArgument(name=result.name))
    return spec


def _require_values(gm: GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Add the fake values that the analysis needs to a symbolically traced graph."""
    inputs = gm.graph.find_nodes(op="placeholder")
    if all(ops.value(node) is not None for node in inputs):
        return
    given = [*args, *(kwargs[node.target] for node in inputs[len(args) :] if node.target in kwargs)]
    required = [node for node in inputs if not node.args]  # the others have a default
    if len(given) < len(required):
        raise LadderError(
            f"This graph holds no shapes, and {len(given)} of {len(required)} inputs were given:",
            [Blocker(f"input {node.target}") for node in required],
            "pass example inputs: ladderize.rewrite(program, args)",
        )
    compat.propagate_fakes(gm, given)
