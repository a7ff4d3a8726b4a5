"""A rank's parts of full parameters, stored for the lifetime of the parameters.

w  64 x 32, sharded on dim 1   a view of w, or a copy after the full parameters were freed
w  [q|k|v]                     a copy of ranges of each, updated when a change of w is detected
w  in a file                   read from the file when needed (`from_pretrained`)
"""

import weakref
from collections.abc import Callable, Collection, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from ladderize import compat
from ladderize.errors import LadderError
from ladderize.sharding.placement import Shard, take_local, view_local


@dataclass(frozen=True)
class Place:
    """One part of a parameter: that of `rank`, with `placement`.

    Attributes:
        placement: placement of the parameter.
        group_name: name of the process group.
        rank, num_ranks: rank of the part, and number of ranks.
        is_view: whether the part has the strides of the full parameter instead of a dense copy's.
    """

    placement: Shard
    group_name: str
    rank: int
    num_ranks: int
    is_view: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether a copy of the part has the strides that the graphs were compiled for."""
        return not self.is_view or self.placement.dim == 0

    def take(self, full: Tensor) -> Tensor:
        """The part, with autograd."""
        if self.is_view:
            return view_local(full, self.placement, self.rank, self.num_ranks)
        return self.copy(full)

    def copy(self, full: Tensor) -> Tensor:
        """A copy of the part."""
        return take_local(full, self.placement, self.rank, self.num_ranks)


class Part:
    """A local part, with the data to check that it is up to date.

    A view keeps its memory alive, so the address cannot be reused. A copy has a weak reference to
    the memory that it was taken from.
    """

    def __init__(self, full: Tensor, local: Tensor, is_view: bool) -> None:
        self.full = weakref.ref(full)
        self.local, self.pointer = local, _pointer(full)
        self.is_forgotten = False
        self.version = _version(full)
        self.memory = None if is_view else _memory(full)

    @classmethod
    def of(cls, full: Tensor, place: Place) -> "Part":
        with torch.inference_mode(False), torch.no_grad():
            if not place.is_view or compat.is_wrapper_subclass(full):
                return cls(full, place.copy(full), is_view=False)
            seen = place.take(full)
            # Not a view for autograd, which would keep the parameter alive.
            local = torch.empty(0, dtype=full.dtype, device=full.device)
            local.set_(seen.untyped_storage(), seen.storage_offset(), seen.shape, seen.stride())
            return cls(full, local, is_view=True)

    def is_of(self, full: Tensor) -> bool:
        """Whether the part is up to date with `full`, as far as can be detected.

        Writes through `.data` or to an inference tensor cannot be detected, but a view sees them. A
        view is recreated after other writes, too: engines reload a weight if it is a new tensor.
        """
        if self.version != _version(full) or self.pointer != _pointer(full):
            return False
        if self.is_forgotten or self.full() is not full:
            return False
        return self.memory is None or self.memory == _memory(full)


def _version(full: Tensor) -> tuple[int, ...]:
    return tuple(0 if t.is_inference() else t._version for t in tensors_in(full))


def _pointer(full: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors_in(full))


def _memory(full: Tensor) -> tuple[StorageWeakRef, ...]:
    storages = (tensor.untyped_storage() for tensor in tensors_in(full))
    return tuple(map(StorageWeakRef, storages))


def tensors_in(full: Tensor) -> Collection[Tensor]:
    """The inner tensors of `full`, such as values and scales of a quantized weight."""
    return compat.inner_tensors(full).values()


Reader = Callable[[Place | None], Tensor]
"""Reads the part of a parameter at a place, or all of it for None."""


class Parts:
    """The placements and stored parts of full parameters, for the parameters' lifetime.

    Attributes:
        read_whole: parameters that a compiled graph reads whole.
        released: parameters without memory, with their former size in bytes.
        stored: readers of released parameters that are in files.
        num_changes: number of times that memory of a parameter was freed or restored.
    """

    def __init__(self) -> None:
        self._parts: MutableMapping[Tensor, dict[Place, Part | None]] = WeakTensorKeyDictionary()
        self.read_whole: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self.released: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self.stored: MutableMapping[Tensor, Reader] = WeakTensorKeyDictionary()
        self.num_changes = 0

    def places(self, full: Tensor) -> Collection[Place]:
        """The places of `full`, from graphs that slice it and from stored parts."""
        return self._parts.get(full, {}).keys()

    def note(self, full: Tensor, place: Place) -> None:
        """Note that a graph slices `full` itself."""
        self._parts.setdefault(full, {}).setdefault(place, None)

    def of(self, full: Tensor) -> dict[Place, Part]:
        """The stored parts of `full`."""
        return {place: part for place, part in self._parts.get(full, {}).items() if part}

    def get(self, full: Tensor, place: Place) -> Part:
        """The part of `full` at `place`, up to date."""
        part = self._parts.get(full, {}).get(place)
        if not self.is_released(full) and (part is None or not part.is_of(full)):
            part = Part.of(full, place)
        if part is None and full in self.stored:
            part = Part(full, self.stored[full](place), is_view=False)
        if part is None:
            self.require_memory(full)
        assert part is not None
        self._parts.setdefault(full, {})[place] = part
        if part.local.requires_grad != full.requires_grad:
            part.local.requires_grad_(full.requires_grad)
        return part

    def own(self, full: Tensor) -> None:
        """Store all parts of `full` as copies. Graphs that slice it or read views are invalid."""
        places, is_wrapped = self.places(full), compat.is_wrapper_subclass(full)
        self._forget(full)
        self._parts[full] = {
            replace(place, is_view=place.is_view and place.is_dense and not is_wrapped): Part(
                full, place.copy(full), is_view=False
            )
            for place in places
        }

    def forget(self, full: Tensor) -> None:
        """Recreate the parts of `full` at the next call. No effect on a released parameter."""
        if not self.is_released(full):
            self._forget(full)

    def _forget(self, full: Tensor) -> None:
        for part in self.of(full).values():
            part.is_forgotten = True
        if full in self._parts:
            self._parts[full] = dict.fromkeys(self.places(full))

    def is_released(self, full: Tensor) -> bool:
        return bool(self.released) and full in self.released

    def require_memory(self, full: Any) -> None:
        """Raise `LadderError` if `full` was released; read it if it is in a file."""
        if not self.released or not isinstance(full, Tensor) or full not in self.released:
            return
        if full not in self.stored:
            raise LadderError(
                "A released parameter is needed whole: gradients are enabled, or this graph shards "
                "it in another way or not at all.",
                cure="call ladderize.restore_full_parameters(model) on all ranks; or call the "
                "model under torch.no_grad()",
            )
        values = self.stored[full](None)
        self.regain(full)
        with torch.inference_mode(full.is_inference()), torch.no_grad():
            full.data.copy_(values)

    def release(self, full: Tensor) -> None:
        """Free the memory of `full`. Its values are in its parts or in a file."""
        tensors = tensors_in(full)
        self.released[full] = sum(tensor.nbytes for tensor in tensors)
        self.num_changes += 1
        for tensor in tensors:
            tensor.untyped_storage().resize_(0)
        for name in _COPIES:
            setattr(full, name, refuse_released)

    def regain(self, full: Tensor) -> None:
        """Reallocate the memory of `full`. The caller writes its values through `.data`."""
        self.released.pop(full)
        self.stored.pop(full, None)  # later writes to it are not in the files
        self.num_changes += 1
        for tensor in tensors_in(full):
            tensor.untyped_storage().resize_(tensor.nbytes)
        for name in _COPIES:
            delattr(full, name)


_COPIES = ("__reduce_ex__", "__deepcopy__")


def refuse_released(*_: Any, **__: Any) -> NoReturn:
    """Raise in place of methods that would read freed memory."""
    raise LadderError(
        "The full parameters of this model were released; they cannot be read, written or copied.",
        cure="call ladderize.restore_full_parameters(model) on all ranks",
    )


PARTS = Parts()
