"""Check that a candidate's tensors are the original's, or exactly their slices in the plan."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from ladderize.report.snapshot import module_of
from ladderize.streams.block import Stream
from ladderize.testing.verify.candidate import Candidate, RankPart
from ladderize.testing.verify.substituted import Original
from ladderize.testing.verify.verdict import Check

TENSORS = "weights"
MAX_LISTED = 3


def check_tensors(program: ExportedProgram, original: Original, candidate: Candidate) -> Check:
    """Check that each rank holds its part of each tensor, bit for bit."""
    full: Mapping[str, Any] = {**program.state_dict, **program.constants}
    wrong = [*_wrong(full, candidate)]
    number = len(candidate.parts[0].tensors)
    if not wrong:
        each = "" if candidate.num_ranks == 1 else f" on each of {candidate.num_ranks} ranks"
        return Check(TENSORS, "ok", f"{number} tensors{each}, bit by bit")
    listed = "; ".join(f"{name} {what}" for name, what in wrong[:MAX_LISTED])
    more = f"; and {len(wrong) - MAX_LISTED} more" if len(wrong) > MAX_LISTED else ""
    return Check(TENSORS, "failed", listed + more, home_of(original, wrong[0][0]))


def _wrong(full: Mapping[str, Any], candidate: Candidate) -> Iterator[tuple[str, str]]:
    for rank, part in enumerate(candidate.parts):
        on = f" on rank {rank}" if candidate.num_ranks > 1 else ""
        on += f", in {part.file}" if part.file else ""
        wanted = dict(_expected(full, candidate, rank))
        for name, expected in wanted.items():
            held = part.tensors.get(name)
            if expected is None:
                yield name, "is not in the original"
            elif held is None:
                yield name, f"is missing{on}: it should be {_form(expected)}"
            elif held.shape != expected.shape or held.dtype != expected.dtype:
                yield name, f"is {_form(held)} instead of {_form(expected)}{on}"
            elif not torch.equal(held.detach(), expected.detach()):
                yield from _other_values(name, held.detach(), expected.detach(), on)
        indices = {entry.name for entry in candidate.entries or () if entry.kind == "index"}
        for name in part.tensors.keys() - wanted.keys() - indices:
            yield name, f"is unexpected{on}: {_form(part.tensors[name])}"


def _other_values(name: str, held: Tensor, expected: Tensor, on: str) -> Iterator[tuple[str, str]]:
    """The number of values that differ, and of NaN among them; NaN equals NaN."""
    differ = (held != expected) & ~(held.isnan() & expected.isnan())
    if number := int(differ.sum()):
        nans = int((differ & held.isnan()).sum())
        of_them = f", {nans} of them NaN" if nans else ""
        yield name, f"has other values{on}: {number} of {held.numel()}{of_them}"


def find_unfit(candidate: Candidate) -> str:
    """The first tensor that does not fit what a rank's graph reads; "" if there is none."""
    for rank, part in enumerate(candidate.parts):
        for name, read in _read_by(part):
            held = part.tensors.get(name)
            if held is None:
                return f"{name}, which the graph reads, is missing on rank {rank}"
            if held.shape != read.shape or held.dtype != read.dtype:
                return f"{name} is {_form(held)} on rank {rank}, the graph reads {_form(read)}"
    return ""


def _read_by(part: RankPart) -> Iterator[tuple[str, Tensor]]:
    """The program's tensors with the metadata that its graph expects, by name."""
    specs = part.program.graph_signature.input_specs
    placeholders = part.program.graph.find_nodes(op="placeholder")
    for spec, node in zip(specs, placeholders, strict=True):
        value = node.meta.get("val")
        if spec.kind is not InputKind.USER_INPUT and isinstance(value, Tensor):
            yield str(spec.target), value


def _expected(
    full: Mapping[str, Any], candidate: Candidate, rank: int
) -> Iterator[tuple[str, Tensor | None]]:
    """The tensors that `rank` should hold; None if it should not have that name."""
    if candidate.entries is None:
        for name in dict.fromkeys((*full, *candidate.parts[rank].tensors)):
            if isinstance(full.get(name), Tensor | None):
                yield name, full.get(name)
        return
    for entry in candidate.entries:
        if entry.kind == "index":
            continue
        for name in entry.names:
            tensor = full.get(name)
            if tensor is None or tuple(tensor.shape) != entry.shape:
                yield name, tensor
            else:
                yield name, candidate.local(name, tensor, rank)


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def home_of(original: Original, name: str) -> str:
    """The block that a tensor belongs to, or where it is read."""
    for node, known in original.names.items():
        if known == name:
            return _reader(original.streams, node) or f"{name}, outside of the blocks"
    return name


def _reader(streams: tuple[Stream, ...], tensor: Node) -> str:
    """The block whose branch reads `tensor`, directly or through other ops."""
    homes = {
        node: (number, block)
        for number, stream in enumerate(streams)
        for block in stream.blocks
        for node in block.branch
    }
    stack, seen = [tensor], {tensor}
    while stack:
        node = stack.pop()
        if node in homes:
            number, block = homes[node]
            stream = f" of stream {number}" if number else ""
            return f"block {block.index}{stream} ({module_of(block)})"
        stack += [user for user in node.users if user not in seen]
        seen.update(node.users)
    return ""
