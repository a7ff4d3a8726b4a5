"""Free full parameters of which all compiled graphs only read parts, and restore them.

before   w 64 x 32 (full)     w_local 32 x 32          after   w with 0 bytes    w_local 32 x 32

The next call compiles graphs that take the parts. Any other use of a released parameter would read
freed memory, so saving and copying it raise. Buffers of packed linears count as parameters; other
buffers, such as caches, stay.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.mesh.local_parts import (
    PARTS,
    Place,
    Reader,
    refuse_released,
    tensors_in,
)
from ladderize.sharding.placement import local_indices

_hooks: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()
"""The hooks that stop each module from saving or loading released parameters."""


def free(model: nn.Module) -> int:
    """Free the sharded parameters of `model`; returns their bytes.

    A parameter that does not own its memory (a view, a memory-mapped file) stays.

    Raises:
        LadderError: lists every parameter that is still needed whole.
    """
    divided = {name: p for name, p in _named_tensors(model) if PARTS.places(p)}
    if not divided:
        raise LadderError(
            "No parameter of this model is sharded: no graph of it has run on a mesh yet.",
            cure="call ladderize.compile(model, mesh=mesh), then the model under torch.no_grad()",
        )
    if blockers := [Blocker(f"{n}: {why}") for n, p in divided.items() if (why := _why_needed(p))]:
        raise LadderError("These parameters are still needed whole:", blockers)
    before = sum(PARTS.released.values())
    compat.drop_graphs()  # they slice the full parameters, or depend on their strides
    for parameter in divided.values():
        if _owns_its_memory(parameter):
            _free(parameter)
    _guard_released(model)
    return sum(PARTS.released.values()) - before


def refill(model: nn.Module) -> None:
    """Restore memory and values of the released parameters of `model`, from all ranks."""
    released = [p for _, p in _named_tensors(model) if PARTS.is_released(p)]
    for parameter in released:
        _refill(parameter)
        PARTS.forget(parameter)
    if released:
        compat.drop_graphs()  # compiled for parts that are copies
    for module in model.modules():
        for hook in _hooks.pop(module, []):
            hook.remove()


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from packed_buffers(model)


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def packed_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The words, scales and zero points of packed linears, which are as large as weights."""
    for path, module in model.named_modules():
        own = dict(module.named_buffers(path, recurse=False))
        if any(buffer.dim() > 1 and _is_integer(buffer) for buffer in own.values()):
            yield from own.items()


def _is_integer(buffer: Tensor) -> bool:
    return not buffer.dtype.is_floating_point and buffer.dtype != torch.bool


def _why_needed(parameter: Tensor) -> str:
    if parameter.requires_grad and torch.is_grad_enabled():
        return "it may be trained, which needs it at every call (if not, use torch.no_grad())"
    return "a compiled graph reads it whole" if parameter in PARTS.read_whole else ""


def _owns_its_memory(parameter: Tensor) -> bool:
    is_whole = all(
        tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.untyped_storage().resizable()
        for tensor in tensors_in(parameter)
    )
    return is_whole and not PARTS.is_released(parameter)


def store(model: nn.Module, readers: Mapping[str, Reader]) -> None:
    """Make the parameters of `model` be read on demand, and only the parts that are needed.

    Args:
        model: model with parameters that hold no values.
        readers: readers of the parameters and packed buffers, by name.
    """
    for name, tensor in _named_tensors(model):
        if name in readers:
            PARTS.stored[tensor] = readers[name]
            PARTS.release(tensor)
    _guard_released(model)


def _guard_released(model: nn.Module) -> None:
    for module in model.modules():
        if any(p in PARTS.released for p in _own_tensors(module)):
            _guard(module)


def _free(parameter: Tensor) -> None:
    PARTS.own(parameter)
    PARTS.release(parameter)


def _refill(parameter: Tensor) -> None:
    if parameter in PARTS.stored:
        PARTS.require_memory(parameter)
        return
    place, part = next(iter(PARTS.of(parameter).items()))
    PARTS.regain(parameter)
    locals_of = tensors_in(part.local)
    for full, local in zip(tensors_in(parameter), locals_of, strict=True):
        _refill_tensor(full, local.detach().contiguous(), place)


def _refill_tensor(full: Tensor, local: Tensor, place: Place) -> None:
    """Gather `full`, a parameter or an inner tensor of one, from the ranks' `local` parts."""
    # gloo in torch 2.13 does not support one-byte floats
    sent = local.view(torch.uint8) if local.is_floating_point() and local.itemsize == 1 else local
    parts = [torch.empty_like(sent) for _ in range(place.num_ranks)]
    dist.all_gather(parts, sent, group=compat.process_group(place.group_name))
    # Write through .data: the values are unchanged, so the local parts stay up to date.
    with torch.inference_mode(full.is_inference()), torch.no_grad():
        for rank, gathered in enumerate(parts):
            for part, piece in _stretches(full.data, gathered.view(local.dtype), place, rank):
                part.copy_(piece)


def _stretches(
    full: Tensor, gathered: Tensor, place: Place, rank: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The ranges of `full` that `rank` holds, with their values in `gathered`."""
    if full.shape == gathered.shape:  # a scale for the whole weight
        yield full, gathered
        return
    dim = next(d for d in range(full.dim()) if full.shape[d] != gathered.shape[d])
    unit = Fraction(full.shape[dim], place.placement.size)  # packed: less than one entry
    ranges = local_indices(place.placement, rank, place.num_ranks)
    starts, sizes = [int(r.start * unit) for r in ranges], [int(len(r) * unit) for r in ranges]
    for start, size, piece in zip(starts, sizes, torch.split(gathered, sizes, dim), strict=True):
        yield full.narrow(dim, start, size), piece


def _guard(module: nn.Module) -> None:
    if module not in _hooks:
        _hooks[module] = [
            module.register_state_dict_pre_hook(refuse_released),  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(refuse_released),  # type: ignore[no-untyped-call]
        ]
