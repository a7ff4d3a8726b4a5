"""Run one rank-local graph as all of its ranks, in one process, forward and backward.

    rank 0   x ── copy ── linear(x, w[:2]) ──┐                       ┌── y
    rank 1   x ── copy ── linear(x, w[2:]) ──┴─ reduce: their sum ──┴── y

This stands in for N processes: every rank has its own local parameters and index inputs, and a
collective over all ranks is one autograd function. These functions and the interpreter come from
`ladderize.testing.verify`, so a read of a reduce before its wait is NaN. Hangs, memory and time of
processes are not tested here; tests/ranks has real processes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import GraphModule

from ladderize.backends.tensorrt.check_cut import cut_of
from ladderize.backends.tensorrt.cut import CutIslands
from ladderize.config.options import LadderConfig
from ladderize.frontends.rewrite import copy_of, parameter_names
from ladderize.passes.before_autograd import rewrite_graph
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.rewriting_state import RankGroup, Rewriting
from ladderize.passes.runner import Log, run_pass
from ladderize.sharding.placement import Replicate, take_local
from ladderize.testing.verify.differentiable import DIFFERENTIABLE
from ladderize.testing.verify.lockstep import run_ranks


def run_in_lockstep(gm: GraphModule, inputs: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The differentiable results of `gm` on each rank; `inputs[rank]` are its arguments."""
    return run_ranks([gm] * len(inputs), inputs, joined=DIFFERENTIABLE)


class ShardedProgram:
    """An exported program as a ladder over `num_ranks` ranks.

    Attributes:
        rewritten: result of the pipeline.
        local: parameters of each rank by name, after a call.
    """

    def __init__(self, program: ExportedProgram, num_ranks: int, **config: Any) -> None:
        self.program, self.num_ranks = program, num_ranks
        gm = copy_of(program)
        names = parameter_names(program, gm)
        group = RankGroup(num_ranks, "group")
        self.inputs = [names.get(node) for node in gm.graph.find_nodes(op="placeholder")]
        self.rewritten = rewrite_graph(
            Rewriting(gm, names, LadderConfig(**config), group, may_be_a_layer=False)
        )
        assert self.rewritten.plan is not None
        self.plan = self.rewritten.plan
        self.local: list[dict[str, Tensor]] = []

    def cut(self) -> int:
        """Cut the graph into islands, check them, and return their number."""
        gm = self.rewritten.gm
        run_pass(gm, DeferWaits(), Log())
        return run_pass(gm, CutIslands(), Log(), cut_of(gm)).changed

    def __call__(self, *args: Any, **kwargs: Any) -> list[list[Any]]:
        """The outputs of every rank, flattened as `torch.utils._pytree` does."""
        given, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        self.local = [{} for _ in range(self.num_ranks)]
        outputs = run_in_lockstep(
            self.rewritten.gm, [self._arguments(r, list(given)) for r in range(self.num_ranks)]
        )
        kinds = [spec.kind for spec in self.program.graph_signature.output_specs]
        return [
            [
                value
                for value, kind in zip(out, kinds, strict=True)
                if kind is OutputKind.USER_OUTPUT
            ]
            for out in outputs
        ]

    def _arguments(self, rank: int, given: list[Any]) -> list[Any]:
        full = {**self.program.state_dict, **self.program.constants}
        arguments = [
            given.pop(0) if name is None else self._part(rank, name, full[name])
            for name in self.inputs
        ]
        return [*arguments, *(index.tensor(rank) for index in self.plan.index_inputs)]

    def _part(self, rank: int, name: str, value: Tensor) -> Tensor:
        placement = self.plan.placements.get(name, Replicate())
        part = take_local(value.detach(), placement, rank, self.num_ranks).clone()
        if isinstance(value, torch.nn.Parameter):
            self.local[rank][name] = part.requires_grad_(value.requires_grad)
        return part
