"""The parts of full parameters that a rank computes with, kept while these live.

w  64 x 32, sharded on dim 1   a view of w, or a copy after the full ones were freed
w  [q|k|v]                     a copy of stretches of each, made anew when w is seen to change
w  in a file                   read there when it is needed (`from_pretrained`)
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
    """Which part of a parameter is meant: that of `rank`, divided by `placement`.

    Attributes:
        is_view: whether the part has the strides of the full parameter, not those of a dense copy.
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
        """The part, recorded by autograd."""
        if self.is_view:
            return view_local(full, self.placement, self.rank, self.num_ranks)
        return self.copy(full)

    def copy(self, full: Tensor) -> Tensor:
        """The part in memory of its own."""
        return take_local(full, self.placement, self.rank, self.num_ranks)


class Part:
    """A local part, and what shows that it is up to date.

    A view keeps the memory that it lies in, so no other memory comes to lie at the same address. Of
    a copy the memory that it was taken from is known weakly.
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
            # Not a view to autograd: it would keep the parameter alive.
            local = torch.empty(0, dtype=full.dtype, device=full.device)
            local.set_(seen.untyped_storage(), seen.storage_offset(), seen.shape, seen.stride())
            return cls(full, local, is_view=True)

    def is_of(self, full: Tensor) -> bool:
        """Whether it holds what `full` holds, as far as can be seen.

        A write through `.data` or to an inference tensor leaves no trace; a view needs none. It is
        made anew at other writes too: engines take a weight again when it is another tensor.
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
    """Those that it is made of: values and scales of a quantized weight."""
    return compat.inner_tensors(full).values()


Reader = Callable[[Place | None], Tensor]
"""Reads the part at a place of a parameter, or all of it."""


class Parts:
    """How full parameters are divided, and the parts that are kept of them, while these live.

    Attributes:
        read_whole: parameters that a compiled graph reads whole.
        released: parameters without memory, with the bytes that they had.
        stored: of released parameters that lie in files, what reads a part of them.
        num_changes: how often memory of a parameter was freed or given back.
    """

    def __init__(self) -> None:
        self._parts: MutableMapping[Tensor, dict[Place, Part | None]] = WeakTensorKeyDictionary()
        self.read_whole: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self.released: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self.stored: MutableMapping[Tensor, Reader] = WeakTensorKeyDictionary()
        self.num_changes = 0

    def places(self, full: Tensor) -> Collection[Place]:
        """In which ways `full` is divided, by graphs themselves or by parts that are kept."""
        return self._parts.get(full, {}).keys()

    def note(self, full: Tensor, place: Place) -> None:
        """A graph cuts `full` itself."""
        self._parts.setdefault(full, {}).setdefault(place, None)

    def of(self, full: Tensor) -> dict[Place, Part]:
        """The parts that are kept of `full`."""
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
        """Keep all parts of `full` as copies. Graphs that cut it or read strided ones are lost."""
        places, is_wrapped = self.places(full), compat.is_wrapper_subclass(full)
        self._forget(full)
        self._parts[full] = {
            replace(place, is_view=place.is_view and place.is_dense and not is_wrapped): Part(
                full, place.copy(full), is_view=False
            )
            for place in places
        }

    def forget(self, full: Tensor) -> None:
        """Cut the parts of `full` anew at the next call; nothing for a released parameter."""
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
        """Raise `LadderError` for a parameter whose memory was freed; read one that is stored."""
        if not self.released or not isinstance(full, Tensor) or full not in self.released:
            return
        if full not in self.stored:
            raise LadderError(
                "The memory of a parameter that is needed whole was freed: gradients are enabled, "
                "or this graph divides it in another way or not at all.",
                cure="ladderize.restore_full_parameters(model), on all ranks; or call the model "
                "under torch.no_grad()",
            )
        values = self.stored[full](None)
        self.regain(full)
        with torch.inference_mode(full.is_inference()), torch.no_grad():
            full.data.copy_(values)

    def release(self, full: Tensor) -> None:
        """Free the memory of `full`. Its values are in its parts, or stored."""
        tensors = tensors_in(full)
        self.released[full] = sum(tensor.nbytes for tensor in tensors)
        self.num_changes += 1
        for tensor in tensors:
            tensor.untyped_storage().resize_(0)
        for name in _COPIES:
            setattr(full, name, refuse_released)

    def regain(self, full: Tensor) -> None:
        """Give `full` its memory back, whose values are then to be written through `.data`."""
        self.released.pop(full)
        self.stored.pop(full, None)  # what is written to it from now on is not in the files
        self.num_changes += 1
        for tensor in tensors_in(full):
            tensor.untyped_storage().resize_(tensor.nbytes)
        for name in _COPIES:
            delattr(full, name)


_COPIES = ("__reduce_ex__", "__deepcopy__")


def refuse_released(*_: Any, **__: Any) -> NoReturn:
    """What stands for all that would read freed memory."""
    raise LadderError(
        "The full parameters of this model were released; they cannot be read, written or copied.",
        cure="ladderize.restore_full_parameters(model), on all ranks",
    )


PARTS = Parts()
