"""The program to verify: graph and tensors of every rank, from a `.pt2` file or from shards.

ladder.pt2            one rank, which holds every tensor
DIR                   one graph for all ranks, and a file of tensors for each
DIR0 DIR1 …           rank r is read from DIRr: each host has its own copy
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
    """The program of one rank.

    Attributes:
        program: graph and signature.
        gm: copy of the graph, which is interpreted on the CPU; ranks may share it.
        tensors: tensors of the rank, under each of their names.
        file: file of the tensors; "" if they are in memory.
    """

    program: ExportedProgram
    gm: GraphModule
    tensors: Mapping[str, Tensor]
    file: str = ""

    def arguments(self, state: Mapping[str, Tensor], given: Sequence[Any]) -> list[Any]:
        """The values of the placeholders, which the graph may overwrite."""
        return bind(self.program, state, given)


@dataclass(frozen=True, eq=False)
class Candidate:
    """The programs of all ranks.

    Attributes:
        parts: program of each rank.
        entries: how each tensor is sharded; None for one rank, which holds all tensors.
        options: options of the rewrite that the files record, or None.
    """

    parts: tuple[RankPart, ...]
    entries: tuple[StateEntry, ...] | None = None
    options: Mapping[str, Any] | None = None

    @property
    def num_ranks(self) -> int:
        return len(self.parts)

    def state(self, rank: int, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`rank`'s part of the tensors in `full`; other tensors are those of the files."""
        if self.entries is None:
            return {**self.parts[rank].tensors, **full}
        own = {name: self.local(name, full[name], rank) for name in self._entry if name in full}
        return {**self.parts[rank].tensors, **own}

    def local(self, name: str, full: Tensor, rank: int) -> Tensor:
        """`rank`'s part of `full`, the tensor `name` or its gradient."""
        entry = self._entry.get(name)
        if entry is None:
            return full
        own = replace(entry, dtype=full.dtype)
        return own.read(full.detach(), rank, self.num_ranks, CPU)

    @cached_property
    def _entry(self) -> dict[str, StateEntry]:
        """The entries by each name of their tensors, without indices."""
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
    """Read the output of `ladderize rewrite`.

    Raises:
        LadderError: a file cannot be read, or the directories do not belong together.
    """
    if len(paths) == 1 and not paths[0].is_dir():
        program, options = read_program(paths[0]), read_note(paths[0])
        LadderConfig.from_options(options)  # refuses unknown options
        return of_program(program, options)
    for path in paths:
        if not (path / MANIFEST).is_file():
            raise LadderError(
                f"{path} is not a sharded ladder: it has no {MANIFEST}.",
                cure="pass the output of `ladderize rewrite`: a .pt2 file, or a directory",
            )
    shards = [open_shards(path) for path in paths]
    num_ranks = shards[0].local.num_ranks
    if len(paths) not in (1, num_ranks):
        raise LadderError(
            f"{paths[0]} was written for {num_ranks} ranks, but {len(paths)} directories are "
            "given.",
            cure=f"pass one directory, or the copies of all {num_ranks} ranks in order",
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
    """`held` with all names of tied tensors, and with `rank`'s indices."""
    found = dict(held)
    for entry in entries:
        if entry.rows:
            found[entry.name] = torch.tensor(entry.rows[rank])
        elif entry.name in held:
            found.update(dict.fromkeys(entry.names, held[entry.name]))
    return found


def bind(program: ExportedProgram, state: Mapping[str, Tensor], given: Sequence[Any]) -> list[Any]:
    """The values of the placeholders of `program`'s graph, in order.

    All but the parameters are copied, because a call may overwrite them.
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
    """Change `gm` in place to run on the CPU in any dtype, without metadata assertions."""
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
