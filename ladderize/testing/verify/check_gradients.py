"""Check the gradients of a trainable program: each rank's part for each weight, and the inputs'.

    copy (backward: all-reduce) missing     ── the forward pass is right, but each rank's gradient
                                               is only the part through its own shards

Weights are random, and the loss is a random weighted sum of all outputs. A float32 program runs in
float64, because some gradients are pure rounding (of a bias of keys) and would look wrong.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ladderize.compat.dispatcher import memory_id
from ladderize.errors import describe_origin
from ladderize.testing.verify.candidate import Candidate, bind
from ladderize.testing.verify.check_state import returned
from ladderize.testing.verify.check_tensors import home_of
from ladderize.testing.verify.differentiable import DIFFERENTIABLE
from ladderize.testing.verify.inputs import sample_inputs
from ladderize.testing.verify.lockstep import OP_ERRORS, NodeFails, RanksPart, reason_of, run_ranks
from ladderize.testing.verify.precision import Precision
from ladderize.testing.verify.sizes import Sizes
from ladderize.testing.verify.substituted import Original, run_reference
from ladderize.testing.verify.verdict import Check

GRADIENTS = "gradients"

_CLOSE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Errors due to rounding, relative to a gradient's largest value or to `_LEAST` of all of them."""
_LEAST = {torch.float64: 1e-6, torch.float32: 1e-3}


def is_trained(program: ExportedProgram) -> bool:
    return any(tensor.requires_grad for tensor in program.state_dict.values())


def check_gradients(
    program: ExportedProgram,
    original: Original,
    candidate: Candidate,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    sizes: Sizes,
) -> Check:
    """Compare the gradients with those of the reference.

    Args:
        program: original as exported.
        original: its graph in standard form.
        candidate: program to verify.
        weights: weights that replace those of the program.
        dtype: dtype of the program.
        sizes: sizes of the dynamic dims.
    """
    precision = Precision(dtype, torch.float32 if dtype.itemsize < 4 else torch.float64)
    graphs = [part.gm for part in candidate.parts]
    own = {**program.state_dict, **program.constants, **weights}
    given = [precision.of(value) for value in sample_inputs(program, sizes, 0)]
    with precision.of_graphs([original.gm, *graphs]), torch.enable_grad():
        (output,) = original.gm.graph.find_nodes(op="output")
        reference = _Leaves.of(program, program, precision.state(own), given)
        try:
            values = run_reference(original, reference.arguments)
            (wanted,) = _gradients([returned(program, values[output])], [reference])
        except OP_ERRORS as error:
            return Check(GRADIENTS, "ok", f"the original has no gradients: {reason_of(error)}")
        leaves = [
            _Leaves.of(program, part.program, precision.state(candidate.state(rank, own)), given)
            for rank, part in enumerate(candidate.parts)
        ]
        try:
            results = run_ranks(graphs, [of.arguments for of in leaves], joined=DIFFERENTIABLE)
            pairs = zip(candidate.parts, results, strict=True)
            found = _gradients([returned(part.program, of) for part, of in pairs], leaves)
        except NodeFails as fault:
            return Check(GRADIENTS, "failed", str(fault), describe_origin(fault.node))
        except (RanksPart, *OP_ERRORS) as error:
            return Check(GRADIENTS, "failed", f"cannot be computed: {error}")
    return _compare(original, candidate, found, wanted, precision.wanted)


@dataclass(frozen=True, eq=False)
class _Leaves:
    """The tensors that one run is differentiated by.

    Attributes:
        arguments: values of the placeholders.
        by_name: weights and inputs that require gradients; tied weights have their first name.
    """

    arguments: Sequence[Any]
    by_name: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        original: ExportedProgram,
        program: ExportedProgram,
        state: Mapping[str, Tensor],
        given: Sequence[Any],
    ) -> "_Leaves":
        arguments = bind(program, state, given)
        first = _first_names(original)
        leaves: dict[str, Tensor] = {}
        number = 0
        for at, spec in enumerate(program.graph_signature.input_specs):
            name = str(spec.target)
            if spec.kind is InputKind.USER_INPUT:
                name, number = f"input {number}", number + 1
            elif not (name in first and original.state_dict[name].requires_grad):
                continue
            value = arguments[at]
            if isinstance(value, Tensor) and value.is_floating_point():
                leaf = leaves.setdefault(first.get(name, name), value.clone().requires_grad_())
                arguments[at] = leaf if spec.kind is InputKind.PARAMETER else leaf.clone()
        return cls(arguments, leaves)


def _first_names(program: ExportedProgram) -> dict[str, str]:
    """The first name of each parameter, the same for tied parameters."""
    firsts: dict[Any, str] = {}
    return {
        name: firsts.setdefault((memory_id(t), t.storage_offset(), t.shape), name)
        for name, t in program.state_dict.items()
    }


def _gradients(
    results: Sequence[Sequence[Any]], leaves: Sequence[_Leaves]
) -> list[dict[str, Tensor]]:
    """The gradients of all runs at once, because collectives make the runs depend on each other."""
    loss = torch.zeros((), dtype=torch.float64)
    for of_run in results:
        generator = torch.Generator().manual_seed(0)
        for value in of_run:
            if isinstance(value, Tensor) and value.is_floating_point():
                weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                loss = loss + (value.double() * weights).sum()
    flat = [leaf for of_run in leaves for leaf in of_run.by_name.values()]
    found = iter(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
    return [{name: next(found) for name in of_run.by_name} for of_run in leaves]


def _compare(
    original: Original,
    candidate: Candidate,
    found: Sequence[Mapping[str, Tensor]],
    wanted: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Check:
    least = _LEAST[dtype] * max((_size(gradient) for gradient in wanted.values()), default=0.0)
    off: dict[str, tuple[float, int]] = {}
    for rank, of_rank in enumerate(found):
        for name, gradient in wanted.items():
            error = _error(of_rank.get(name), candidate.local(name, gradient, rank), least)
            off[name] = max(off.get(name, (0.0, 0)), (error, rank))
    wrong = [name for name, (error, _) in off.items() if not error <= _CLOSE[dtype]]
    if not wrong:
        worst = max((error for error, _ in off.values()), default=0.0)
        return Check(
            GRADIENTS, "ok", f"{len(wanted)} compared, worst error {worst:.1e}", error=worst
        )
    last = max(wrong, key=_place(original))  # all gradients before a fault are wrong, too
    error, rank = off[last]
    on = f" on rank {rank}" if candidate.num_ranks > 1 else ""
    what = f"the gradient of {last} is off by {error:.1e}{on}; {len(wrong)} of {len(off)} are"
    return Check(GRADIENTS, "failed", what, home_of(original, last), error)


def _size(gradient: Tensor) -> float:
    return float(gradient.abs().max()) if gradient.numel() else 0.0


def _error(found: Tensor | None, wanted: Tensor, least: float) -> float:
    if found is None or found.shape != wanted.shape:
        return float("inf")
    error = _size(found - wanted) / max(_size(wanted), least, 1e-300)
    return error if error == error else float("inf")


def _place(original: Original) -> Callable[[str], int]:
    """A function from a weight's name to the position of its first read."""
    position = {node: i for i, node in enumerate(original.gm.graph.nodes)}
    places = dict(_first_reads(original, position))
    return lambda name: places.get(name, -1)


def _first_reads(original: Original, position: Mapping[Any, int]) -> Iterator[tuple[str, int]]:
    for node, name in original.names.items():
        yield name, min((position[user] for user in node.users), default=-1)
