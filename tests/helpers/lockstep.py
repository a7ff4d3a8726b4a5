"""Run one rank-local graph as all of its ranks, in one process, node by node in lockstep.

    rank 0   x ── copy ── linear(x, w[:2]) ──┐                       ┌── y
    rank 1   x ── copy ── linear(x, w[2:]) ──┴─ reduce: their sum ──┴── y

This stands in for N processes: every rank has its own local parameters and index inputs, and what
a collective does to all of them is done here at once, forward and backward. What it cannot show is
anything about processes: order, hangs, memory. tests/ranks has real ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.functional import cross_entropy

from ladderize.backends.tensorrt.check_cut import cut_of
from ladderize.backends.tensorrt.cut import CutIslands
from ladderize.config.options import LadderConfig
from ladderize.frontends.rewrite import copy_of, parameter_names
from ladderize.graph import parallel_ops
from ladderize.passes.before_autograd import RankGroup, Rewriting, rewrite_graph
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.runner import Log, run_pass
from ladderize.sharding.placement import Replicate, take_local


class _Copy(Function):
    """All ranks' copies at once: the gradient of each is the sum of all."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        total = sum(grads)
        return (total,) * len(grads)


class _Reduce(Function):
    """All ranks' sums at once: the gradient passes to each."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        total = sum(values)
        return tuple(total.clone() for _ in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads


class _Gather(Function):
    """All ranks' parts put together: the gradient of each is its own part."""

    @staticmethod
    def forward(ctx: Any, dim: int, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.dim = dim
        return tuple(torch.cat(values, dim) for _ in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        parts = [grad.chunk(len(grads), ctx.dim)[r] for r, grad in enumerate(grads)]
        return (None, *parts)


def _cross_entropy(
    values: Sequence[Tensor], target: Tensor, _: Any, reduction: int, ignore_index: int, *__: Any
) -> list[Tensor]:
    """Of all classes, which are split along dim 1 (dim 0 of a single row)."""
    how = ("none", "mean", "sum")[reduction]
    return [
        cross_entropy(logits, target, reduction=how, ignore_index=ignore_index)
        for logits in _Gather.apply(min(1, values[0].dim() - 1), *values)
    ]


# op -> what it does to the first argument of every rank; what follows it is the same on all
COLLECTIVES: dict[Any, Callable[..., Any]] = {
    parallel_ops.copy: lambda values, *_: _Copy.apply(*values),
    parallel_ops.reduce: lambda values, *_: _Reduce.apply(*values),
    parallel_ops.wait: lambda values: values,
    parallel_ops.gather: lambda values, _, dim, *__: _Gather.apply(dim, *values),
    parallel_ops.vocab_cross_entropy: _cross_entropy,
}


def run_in_lockstep(gm: GraphModule, inputs: Sequence[Sequence[Any]]) -> list[Any]:
    """What each rank's run of `gm` returns; `inputs[rank]` are its arguments."""
    ranks = range(len(inputs))
    known: list[dict[Node, Any]] = [{} for _ in ranks]
    given = [iter(arguments) for arguments in inputs]
    for node in gm.graph.nodes:
        if node.target in COLLECTIVES:
            values = [known[r][node.args[0]] for r in ranks]
            others = map_arg(node.args[1:], known[0].__getitem__)  # the same on every rank
            made = COLLECTIVES[node.target](values, *others)
        else:
            made = [_step(gm, node, known[r], given[r]) for r in ranks]
        for r in ranks:
            known[r][node] = made[r]
    (output,) = gm.graph.find_nodes(op="output")
    return [known[r][output] for r in ranks]


def _step(gm: GraphModule, node: Node, known: Mapping[Node, Any], given: Any) -> Any:
    if node.op == "placeholder":
        return next(given)
    if node.op == "get_attr":
        return getattr(gm, str(node.target))
    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
    if node.op == "call_module":
        return gm.get_submodule(str(node.target))(*args, **kwargs)
    return args[0] if node.op == "output" else node.target(*args, **kwargs)


class ShardedProgram:
    """An exported program as a ladder over `num_ranks` ranks.

    Attributes:
        rewritten: what the pipeline made.
        local: after a call, the parameters of each rank by name.
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
        """Cut the graph into islands, with the proof that they are right; how many there are."""
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
