"""Check the state after a call: caches and other buffers, constants, and the caller's inputs.

layers.0.keys    written in place, or an output that is written back
input ids        unchanged, unless the original writes it
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ladderize.testing.verify.candidate import Candidate
from ladderize.testing.verify.inputs import user_inputs
from ladderize.testing.verify.locate import relative_error

STATE = "state"
_RETURNED = (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)


def returned(program: ExportedProgram, outputs: Sequence[Any]) -> list[Any]:
    """The outputs of `program`'s graph that are returned to the caller."""
    specs = program.graph_signature.output_specs
    return [value for value, s in zip(outputs, specs, strict=True) if s.kind in _RETURNED]


def left_behind(
    original: ExportedProgram,
    program: ExportedProgram,
    arguments: Sequence[Any],
    outputs: Sequence[Any],
) -> dict[str, Tensor]:
    """The tensors that outlive a call, by their names in `original`.

    Args:
        original: program that names the inputs.
        program: program that was called.
        arguments: values of its placeholders after the call.
        outputs: outputs of its graph.
    """
    names = iter(f"input {node.name}" for node in user_inputs(original))
    by_place: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    for spec, value in zip(program.graph_signature.input_specs, arguments, strict=True):
        is_given = spec.kind is InputKind.USER_INPUT
        name = next(names) if is_given else str(spec.target)
        by_place[str(spec.target or spec.arg.name)] = name
        if isinstance(value, Tensor) and spec.kind is not InputKind.PARAMETER:
            found[name] = value
    for spec, value in zip(program.graph_signature.output_specs, outputs, strict=True):
        if spec.kind not in _RETURNED and isinstance(value, Tensor):
            found[by_place.get(str(spec.target), str(spec.target))] = value
    return found


def state_errors(
    candidate: Candidate, rank: int, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[float, str]]:
    """The error of each tensor that `rank` leaves behind and the original has, with its name."""
    for name, tensor in wanted.items():
        if name in found:
            yield relative_error(found[name], candidate.local(name, tensor, rank)), name


def versions(arguments: Sequence[Any]) -> list[int]:
    """The number of in-place writes to each argument so far."""
    return [
        value._version if isinstance(value, Tensor) and not value.is_inference() else 0
        for value in arguments
    ]


def written_parameters(
    program: ExportedProgram, arguments: Sequence[Any], before: Sequence[int]
) -> list[str]:
    """The parameters that a call has written in place."""
    specs = program.graph_signature.input_specs
    return [
        str(spec.target)
        for spec, was, is_ in zip(specs, before, versions(arguments), strict=True)
        if spec.kind is InputKind.PARAMETER and was != is_
    ]
