"""Seeded random inputs and weights for a program, at several shapes.

input_ids [s0, s1] int64, read by an embedding of 64 rows   ── random in [0, 64), [2, 3], [3, 5], …
pixels [2, 3, 32, 32] float32                               ── normal
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from ladderize import compat
from ladderize.compat.dispatcher import memory_id
from ladderize.graph import ops
from ladderize.graph.ops import Kind

aten = torch.ops.aten


def user_inputs(program: ExportedProgram) -> list[Node]:
    """The placeholders of the caller's inputs."""
    names = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    }
    return [n for n in program.graph.find_nodes(op="placeholder") if n.name in names]


def is_dynamic(program: ExportedProgram) -> bool:
    return any(not isinstance(size, int) for n in user_inputs(program) for size in shape_of(n))


def sample_inputs(
    program: ExportedProgram, sizes: Mapping[sympy.Symbol, int], variant: int
) -> list[Any]:
    """Values for the user's inputs, in the order of the graph.

    Args:
        program: program whose sizes may be symbolic.
        sizes: sizes of the dynamic dims.
        variant: seed of the values.
    """
    generator = torch.Generator().manual_seed(variant)
    inputs = user_inputs(program)
    examples = _examples(program, len(inputs))
    return [
        _sample(node, sizes, example, generator)
        for node, example in zip(inputs, examples, strict=True)
    ]


def shape_of(node: Node) -> tuple[Any, ...]:
    value = ops.value(node)
    return tuple(value.shape) if isinstance(value, Tensor) else (value,)


def size_at(size: Any, sizes: Mapping[sympy.Symbol, int]) -> int:
    return size if isinstance(size, int) else int(size.node.expr.subs(dict(sizes)))


def _examples(program: ExportedProgram, number: int) -> Sequence[Any]:
    """The example inputs that the program was exported with, None for each if it has none."""
    if program.example_inputs is None:
        return [None] * number
    args, kwargs = program.example_inputs
    kwargs = compat.reorder_kwargs(kwargs, program.call_spec.in_spec)
    leaves: list[Any] = pytree.tree_leaves((args, kwargs))
    return leaves if len(leaves) == number else [None] * number


def _sample(
    node: Node, sizes: Mapping[sympy.Symbol, int], example: Any, generator: torch.Generator
) -> Any:
    value = ops.value(node)
    if isinstance(value, torch.SymInt):
        return size_at(value, sizes)
    if not isinstance(value, Tensor):
        return example if example is not None else value
    shape = [size_at(size, sizes) for size in value.shape]
    if value.is_floating_point():
        return torch.randn(shape, generator=generator).to(value.dtype)
    rows = _rows_looked_up(node)
    if rows is not None and len(shape) == 1 and shape[0] <= rows:  # distinct positions
        places = torch.randperm(rows, generator=generator)[: shape[0]]
        return places.sort().values.to(value.dtype)
    if rows is not None:
        return torch.randint(rows, shape, generator=generator, dtype=value.dtype)
    if isinstance(example, Tensor) and list(example.shape) == shape:
        return example.to("cpu").clone()
    return torch.ones(shape, dtype=value.dtype)  # a mask


def _rows_looked_up(placeholder: Node) -> int | None:
    """The number of rows that an input indexes, through layout ops; None if it is no index."""
    stack, found = [placeholder], list[int]()
    seen = {placeholder}
    while stack:
        node = stack.pop()
        for user in node.users:
            found += _choices(user, node)
            if user not in seen and ops.kind(user) is Kind.LAYOUT:
                seen.add(user)
                stack.append(user)
    return min(found, default=None)


_BY_INDEX = (aten.index_copy, aten.index_copy_, aten.index_select, aten.index_add)
"""Ops on a tensor, a dim and indices along it."""


def _choices(user: Node, ids: Node) -> Iterator[int]:
    target = getattr(user.target, "overloadpacket", None)
    args: Any = user.args
    if target is aten.embedding and args[1] is ids:
        yield from _fixed_size(args[0], 0)
    elif target in _BY_INDEX and args[2] is ids:
        yield from _fixed_size(args[0], args[1])
    elif target in (aten.index_put, aten.index_put_) and ids in args[1]:
        yield from _fixed_size(args[0], args[1].index(ids))
    elif target in (aten.cross_entropy_loss, aten.nll_loss_forward) and args[1] is ids:
        yield from _fixed_size(args[0], -1)


def _fixed_size(node: Node, dim: int) -> Iterator[int]:
    if isinstance(size := shape_of(node)[dim], int):
        yield size


def random_parameters(program: ExportedProgram, seed: int = 0) -> dict[str, Tensor]:
    """Parameters that keep each branch about as large as the stream; tied ones stay tied.

    Matrices have variance 1 / inputs; vectors are near 1, or near 0 if they were zero. With initial
    weights of transformers, or a branch scaled by zero, a wrong read would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    made: dict[Any, Tensor] = {}
    found = {}
    for name, parameter in program.state_dict.items():
        if not isinstance(parameter, torch.nn.Parameter) or not parameter.is_floating_point():
            found[name] = parameter.detach()
            continue
        key = (memory_id(parameter), parameter.storage_offset(), parameter.shape)
        if key not in made:
            made[key] = _random_like(parameter.detach(), generator)
        found[name] = made[key]
    return found


def _random_like(parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() == 3:  # of experts, or of a convolution in one dim
        noise = noise * max(parameter.shape[1:]) ** -0.5
    elif parameter.dim() > 1:
        noise = noise * parameter[0].numel() ** -0.5
    else:
        noise = 0.2 * noise + (1.0 if parameter.any() else 0.0)
    return noise.to(parameter.dtype)
