"""What is verified: the graph and the tensors of every rank, from a `.pt2` file or from shards.

ladder.pt2            one rank, which holds every tensor
DIR                   one graph for all ranks, a file of tensors for each
DIR0 DIR1 …           of rank r what DIRr holds: each host has a copy of its own
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from ladderize.compat.archive import read_note, read_program
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.rewrite import copy_of
from ladderize.frontends.sharded.directory import MANIFEST
from ladderize.frontends.sharded.localize import LocalProgram
from ladderize.frontends.sharded.program_files import open_shards, rank_file
from ladderize.frontends.sharded.state import StateEntry
from ladderize.testing.verify.precision import bodies, replace_values

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class RankPart:
    """What one rank runs.

    Attributes:
        program: its graph and signature.
        gm: a copy of the graph that is interpreted here, on the CPU; ranks may share it.
        tensors: what it holds, by every name it is known by.
        file: that they are in; "" if they are in memory.
    """

    program: ExportedProgram
    gm: GraphModule
    tensors: Mapping[str, Tensor]
    file: str = ""

    def arguments(self, state: Mapping[str, Tensor], given: Sequence[Any]) -> list[Any]:
        """The placeholders' values, which the graph may write."""
        return bind(self.program, state, given)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Attributes:
    parts: of each rank.
    entries: what the ranks share of which tensor; None: there is one rank, with all of them.
    options: of the rewrite, as the files tell; None if they do not.
    """

    parts: tuple[RankPart, ...]
    entries: tuple[StateEntry, ...] | None = None
    options: Mapping[str, Any] | None = None

    @property
    def num_ranks(self) -> int:
        return len(self.parts)

    def state(self, rank: int, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`rank`'s part of the tensors in `full`; of what is not there, what the files hold."""
        if self.entries is None:
            return {**self.parts[rank].tensors, **full}
        own = {name: self.local(name, full[name], rank) for name in self._entry if name in full}
        return {**self.parts[rank].tensors, **own}

    def local(self, name: str, full: Tensor, rank: int) -> Tensor:
        """`rank`'s part of what has the form of the tensor `name`: itself, its gradient."""
        entry = self._entry.get(name)
        if entry is None:
            return full
        own = replace(entry, dtype=full.dtype)
        return own.read(full.detach(), rank, self.num_ranks, CPU)

    @cached_property
    def _entry(self) -> dict[str, StateEntry]:
        """By every name of a tensor, but for indices."""
        entries = [entry for entry in self.entries or () if entry.kind != "index"]
        return {name: entry for entry in entries for name in entry.names}


def of_program(program: ExportedProgram, options: Mapping[str, Any] | None = None) -> Candidate:
    """A rewritten program in memory, for one rank."""
    tensors = {**program.state_dict, **program.constants}
    return Candidate((RankPart(program, on_cpu(copy_of(program)), tensors),), None, options)


def of_local(program: ExportedProgram, local: LocalProgram) -> Candidate:
    """A sharded program in memory, with its part of the tensors of the original `program`."""
    full = {**program.state_dict, **program.constants}
    parts = []
    for rank in range(local.num_ranks):
        held = {
            entry.name: entry.read(full[entry.name].detach(), rank, local.num_ranks, CPU)
            for entry in local.entries
            if entry.kind != "index"
        }
        tensors = by_every_name(held, local.entries, rank)
        parts.append(RankPart(local.program, on_cpu(copy_of(local.program)), tensors))
    return Candidate(tuple(parts), local.entries)


def read_candidate(paths: Sequence[Path]) -> Candidate:
    """Whatever `ladderize rewrite` wrote.

    Raises:
        LadderError: what cannot be read, or does not belong together.
    """
    if len(paths) == 1 and not paths[0].is_dir():
        program, options = read_program(paths[0]), read_note(paths[0])
        LadderConfig.from_options(options)  # are there such options?
        return of_program(program, options)
    for path in paths:
        if not (path / MANIFEST).is_file():
            raise LadderError(
                f"{path} is no directory of a sharded ladder: there is no {MANIFEST} in it.",
                cure="pass what `ladderize rewrite` wrote: a .pt2 file, or a directory",
            )
    shards = [open_shards(path) for path in paths]
    num_ranks = shards[0].local.num_ranks
    if len(paths) not in (1, num_ranks):
        raise LadderError(
            f"{paths[0]} was written for {num_ranks} ranks, {len(paths)} directories were given.",
            cure=f"pass one directory, or the copies of all {num_ranks} ranks in their order",
        )
    own = shards if len(paths) == num_ranks else shards * num_ranks
    others = [s.folder for s in own if s.local.num_ranks != num_ranks]
    if others:
        raise LadderError(f"{others[0]} was not written for {num_ranks} ranks.")
    entries = shards[0].local.entries
    graphs = {s.folder: on_cpu(copy_of(s.local.program)) for s in shards}
    parts = [
        RankPart(
            program=s.local.program,
            gm=graphs[s.folder],
            tensors=by_every_name(s.held(rank), entries, rank),
            file=rank_file(rank, num_ranks),
        )
        for rank, s in enumerate(own)
    ]
    return Candidate(tuple(parts), entries, shards[0].options)


def by_every_name(
    held: Mapping[str, Tensor], entries: Sequence[StateEntry], rank: int
) -> dict[str, Tensor]:
    """`held`, which has one name for tied tensors, under all of them, and `rank`'s indices."""
    found = dict(held)
    for entry in entries:
        if entry.rows:
            found[entry.name] = torch.tensor(entry.rows[rank])
        elif entry.name in held:
            found.update(dict.fromkeys(entry.names, held[entry.name]))
    return found


def bind(program: ExportedProgram, state: Mapping[str, Tensor], given: Sequence[Any]) -> list[Any]:
    """The values of the placeholders of `program`'s graph, in order.

    All but the parameters are copies, for a call may write them.
    """
    users = iter(given)
    values: list[Any] = []
    for spec in program.graph_signature.input_specs:
        is_given = spec.kind is InputKind.USER_INPUT
        value = next(users) if is_given else state[str(spec.target)].detach().to(CPU)
        is_copied = isinstance(value, Tensor) and spec.kind is not InputKind.PARAMETER
        values.append(value.clone() if is_copied else value)
    return values


def on_cpu(gm: GraphModule) -> GraphModule:
    """`gm`, changed in place to run on the CPU and in any dtype: checks of form are taken out."""
    for part in bodies(gm):
        for node in part.graph.nodes:
            if _is_check_of_form(node):
                part.graph.erase_node(node)
    replace_values(gm, lambda value: CPU if isinstance(value, torch.device) else value)
    return gm


_CHECKS_OF_FORM = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar")


def _is_check_of_form(node: Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet is not None and packet.__name__ in _CHECKS_OF_FORM and not node.users
