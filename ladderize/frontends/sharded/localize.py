"""Make an exported program rank-local: the same program on every rank, without weights.

ExportedProgram ── ladder ── plan ── ShardBranches ──┬── program: local graph, local signature
                                                     └── entries: the tensors of each rank
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    TensorArgument,
)
from torch.fx import GraphModule

from ladderize.compat.dispatcher import memory_id
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.rewrite import explain_program, ladder_program, renamed_outputs
from ladderize.frontends.sharded.state import StateEntry, total_bytes
from ladderize.passes.rewriting_state import RankGroup
from ladderize.report import Report
from ladderize.sharding.placement import Replicate
from ladderize.sharding.plan import ShardPlan

GROUP = "ladderize"
"""The placeholder name of the process group, until a module binds the graph to a real group."""

_KINDS = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}


@dataclass(frozen=True)
class LocalProgram:
    """The program that each rank runs, and the tensors that each rank must hold.

    Attributes:
        program: program with a local graph; its weights have no memory.
        entries: tensors that it reads, in the order of its inputs.
        num_ranks: size of the mesh axis.
        lines: description of the rewrite, as text.
        report: report of the rewrite; None for a program read from files.
        engines: description of its engines, as text; empty if none were built.
    """

    program: ExportedProgram
    entries: tuple[StateEntry, ...]
    num_ranks: int
    lines: tuple[str, ...]
    report: Report | None = None
    engines: tuple[str, ...] = ()

    @property
    def bytes_per_rank(self) -> int:
        """Bytes of parameters, buffers and constants that each rank holds."""
        return total_bytes(self.entries, self.num_ranks)

    @property
    def bytes_in_all(self) -> int:
        """Bytes of the model before it was sharded."""
        return total_bytes(self.entries)


def localize(
    program: ExportedProgram, num_ranks: int, config: LadderConfig | None = None
) -> LocalProgram:
    """Rewrite `program` into ladder form for each of `num_ranks` ranks, without a process group.

    Raises:
        LadderError: lists everything that cannot be done as asked.
    """
    _refuse_objects(program)
    ranks = RankGroup(num_ranks, GROUP)
    rewritten, report = ladder_program(program, config or LadderConfig(), ranks)
    gm, plan = rewritten.gm, rewritten.plan
    assert plan is not None
    _indices_before_user_inputs(gm, program)
    entries = (*_entries(program, plan), *_index_entries(plan))
    _localize_unread_inputs(gm, program, entries, num_ranks)
    signature = _signature(program, gm, plan)
    values = {
        name: _no_memory(entry, num_ranks)
        for entry in entries
        if entry.kind != "index"
        for name in entry.names
    }
    names = program.constants.keys()
    constants: dict[str, Any] = {name: values[name] for name in names if name in values}
    constants |= {entry.name: _no_memory(entry, num_ranks) for entry in entries if entry.rows}
    local = ExportedProgram(
        root=gm,
        graph=gm.graph,
        graph_signature=signature,
        state_dict={name: value for name, value in values.items() if name not in names},
        range_constraints=program.range_constraints,
        module_call_graph=_calls(program),
        constants=constants,
        verifiers=program.verifiers,
    )
    lines = (rewritten.describe(), *plan.describe())
    return LocalProgram(local, entries, num_ranks, lines, report)


def explain_local(
    program: ExportedProgram, num_ranks: int, config: LadderConfig | None = None
) -> Report:
    """Report what `localize` would do; a refusal of the rewrite is in the report."""
    _refuse_objects(program)
    return explain_program(program, config or LadderConfig(), RankGroup(num_ranks, GROUP))


def _refuse_objects(program: ExportedProgram) -> None:
    specs = program.graph_signature.input_specs
    known = (*_KINDS, InputKind.USER_INPUT)
    found = [
        Blocker(f"{s.kind.name} {s.target or s.arg.name}") for s in specs if s.kind not in known
    ]
    if found:
        raise LadderError("This program has inputs other than tensors of its own:", found)


def _entries(program: ExportedProgram, plan: ShardPlan) -> list[StateEntry]:
    """An entry for each parameter, buffer and constant; tied tensors share an entry."""
    state: Mapping[str, Any] = {**program.state_dict, **program.constants}
    specs = {
        str(spec.target): spec
        for spec in program.graph_signature.input_specs
        if spec.kind in _KINDS
    }
    tied: dict[Any, list[str]] = {}
    for name in [*specs, *program.state_dict]:
        names = tied.setdefault(_identity(state[name]), [])
        if name not in names:
            names.append(name)
    return [_entry(specs, state, names, plan) for names in tied.values() if names[0] in specs]


def _entry(
    specs: Mapping[str, InputSpec], state: Mapping[str, Any], names: Sequence[str], plan: ShardPlan
) -> StateEntry:
    spec, tensor = specs[names[0]], state[names[0]]
    placed = [plan.placements[name] for name in names if name in plan.placements]
    return StateEntry(
        name=names[0],
        kind=_KINDS[spec.kind],
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        placement=placed[0] if placed else Replicate(),
        is_persistent=spec.kind is InputKind.PARAMETER or bool(spec.persistent),
        requires_grad=bool(tensor.requires_grad),
        aliases=tuple(names[1:]),
    )


def _identity(tensor: torch.Tensor) -> Any:
    """A key that is equal for tied tensors: the same view of the same memory."""
    memory = memory_id(tensor)
    return memory, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _index_entries(plan: ShardPlan) -> list[StateEntry]:
    return [
        StateEntry(
            i.name, "index", (len(i.rows[0]),), torch.int64, is_persistent=False, rows=i.rows
        )
        for i in plan.index_inputs
    ]


def _no_memory(entry: StateEntry, num_ranks: int) -> torch.Tensor:
    """A tensor of the local shape, expanded from a single element."""
    value = torch.zeros((), dtype=entry.dtype).expand(entry.local_shape(num_ranks))
    if entry.kind != "parameter":
        return value
    return torch.nn.Parameter(value, requires_grad=entry.requires_grad)


# ---- the signature of the local graph


def _indices_before_user_inputs(gm: GraphModule, program: ExportedProgram) -> None:
    """Move the index inputs, which sharding appends, before the inputs of the caller."""
    inputs = gm.graph.find_nodes(op="placeholder")
    specs = program.graph_signature.input_specs
    own = [spec for spec in specs if spec.kind is not InputKind.USER_INPUT]
    indices = inputs[len(specs) :]
    for index in indices:
        inputs[len(own)].prepend(index)
    gm.recompile()


def _localize_unread_inputs(
    gm: GraphModule, program: ExportedProgram, entries: Sequence[StateEntry], num_ranks: int
) -> None:
    """Set the local shapes of unread inputs, such as the second name of a tied weight."""
    shapes = {name: entry.local_shape(num_ranks) for entry in entries for name in entry.names}
    targets = {s.arg.name: str(s.target) for s in program.graph_signature.input_specs}
    for node in gm.graph.find_nodes(op="placeholder"):
        if not node.users and (shape := shapes.get(targets.get(node.name, ""))) is not None:
            node.meta["val"] = node.meta["val"].new_empty(shape)


def _signature(program: ExportedProgram, gm: GraphModule, plan: ShardPlan) -> ExportGraphSignature:
    old = program.graph_signature
    indices = [
        InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=i.name), target=i.name)
        for i in plan.index_inputs
    ]
    own = [spec for spec in old.input_specs if spec.kind is not InputKind.USER_INPUT]
    users = [spec for spec in old.input_specs if spec.kind is InputKind.USER_INPUT]
    return ExportGraphSignature([*own, *indices, *users], renamed_outputs(program, gm))


def _calls(program: ExportedProgram) -> list[Any]:
    """The call signature of the root; those of submodules may refer to removed tensors."""
    return [call for call in program.module_call_graph if not call.fqn]
