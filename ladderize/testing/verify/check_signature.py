"""Check that a candidate has the inputs, outputs and written tensors of the original."""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from ladderize.errors import counted
from ladderize.graph import ops
from ladderize.testing.verify.candidate import Candidate
from ladderize.testing.verify.inputs import user_inputs
from ladderize.testing.verify.verdict import Check

SIGNATURE = "inputs and outputs"


def check_signature(program: ExportedProgram, candidate: Candidate) -> Check:
    wanted = _signature(program)
    for rank, part in enumerate(candidate.parts):
        on = f" on rank {rank}" if candidate.num_ranks > 1 else ""
        found = _signature(part.program)
        if found != wanted:
            what = f"{found}{on}, the original: {wanted}"
        elif wrong := _wrong_output(program, part.program):
            what = f"{wrong}{on}"
        elif part.program.call_spec.out_spec != program.call_spec.out_spec:
            what = f"the output structure is {part.program.call_spec.out_spec}{on}"
        else:
            continue
        return Check(SIGNATURE, "failed", what, "the signature")
    return Check(SIGNATURE, "ok", wanted)


def _wrong_output(program: ExportedProgram, found: ExportedProgram) -> str:
    """The first output whose target differs from the original's; "" if none does."""
    pairs = zip(_targets(program), _targets(found), strict=True)
    for number, (wanted, is_) in enumerate(pairs):
        if is_ != wanted:
            return f"output {number} is {is_}, in the original it is {wanted}"
    return ""


def _targets(program: ExportedProgram) -> list[str]:
    return [
        "returned" if spec.kind is OutputKind.USER_OUTPUT else f"written to {spec.target}"
        for spec in program.graph_signature.output_specs
    ]


def _signature(program: ExportedProgram) -> str:
    inputs = ", ".join(_form(ops.value(node)) for node in user_inputs(program))
    written = len(_targets(program)) - len(program.graph_signature.user_outputs)
    also = f", {written} written" if written else ""
    outputs = counted(len(program.graph_signature.user_outputs), "output")
    return f"({inputs}) -> {outputs}{also}"


def _form(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    sizes = ", ".join(str(size) if isinstance(size, int) else "*" for size in value.shape)
    return f"{str(value.dtype).removeprefix('torch.')} [{sizes}]"
