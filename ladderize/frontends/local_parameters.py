"""What one rank feeds its sharded graph: its parameters or parts of them, and its index inputs.

full parameters of the user's model ── arguments of the compiled local graphs

    w  64 x 32, sharded on dim 0   w itself: the graph slices it (`passes/slice_parameters.py`)
    w  64 x 32, sharded on dim 1   the same
    w  [q|k|v]                     a copy of stretches of each, made anew when w is seen to change

Where a graph cannot slice, one stretch is a view that is kept (TensorRT's engines hold weights), or
a copy (after `release_parameters.py` has freed the full ones). What is kept is kept beside the full
parameters, for all graphs that divide them alike (prefill and decode share one set).
"""

import weakref
from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.fx import GraphModule, Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from ladderize import compat
from ladderize.errors import LadderError
from ladderize.frontends.whole_gradients import WholeGradients
from ladderize.graph.to_aten import wrapped
from ladderize.graph.writes import written_values
from ladderize.passes.slice_parameters import SliceParameters
from ladderize.passes.spell_linears import SpellLinears
from ladderize.sharding.placement import Shard, take_local, view_local
from ladderize.sharding.plan import ShardPlan


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
    """Those that it is made of: values and scales of a quantised weight."""
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


class LocalInputs:
    """The arguments of a sharded graph, in the place of those that Dynamo passes.

    While gradients are recorded each parameter gets that of this rank's part, through the slices of
    the graph or since its part is cut anew at every call; `WholeGradients` completes it.
    """

    def __init__(
        self,
        gm: GraphModule,
        plan: ShardPlan,
        mesh: DeviceMesh,
        example_inputs: Sequence[Any],
        *,
        slices: bool = True,
        is_released: bool = False,
    ) -> None:
        """
        Args:
            gm: the sharded graph; it gains the slices of its parameters.
            example_inputs: of the graph before it was sharded.
            slices: whether the graph may slice.
            is_released: whether parameters of the model are without memory, so that their parts
                are dense copies.
        """
        nodes = gm.graph.find_nodes(op="placeholder")
        rank, group = mesh.get_local_rank(), mesh.get_group().group_name
        places = {
            i: Place(
                placement,
                group,
                rank,
                mesh.size(),
                is_view=placement.is_one_stretch
                and _may_be_view(example_inputs[i], placement, mesh.size(), slices, is_released),
            )
            for i, node in enumerate(nodes)
            if isinstance(placement := plan.parameter_nodes.get(node), Shard)
        }
        written = written_values(gm.graph)
        self._sliced = {
            i: place
            for i, place in places.items()
            if slices and not is_released and place.is_view and nodes[i] not in written
        }
        self._places = {i: place for i, place in places.items() if i not in self._sliced}
        self._first = next(iter(places), None)
        self._trained = [i for i in places if _is_trained(example_inputs[i])]
        self._gradients = WholeGradients(
            [places[i].placement for i in self._trained], mesh.get_group()
        )
        self._values = [node.meta["val"] for node in nodes]
        self._wrapped = [wrapped(node) for node in nodes]
        self._indices = [index.tensor(rank, mesh.device_type) for index in plan.index_inputs]
        self._full = example_inputs
        self._last: dict[int, Callable[[], Part | None]] = dict.fromkeys(self._places, _nothing)
        spelled = SpellLinears()(gm).changed
        if self._slice(gm, nodes) or spelled:
            gm.recompile()

    def _slice(self, gm: GraphModule, nodes: Sequence[Node]) -> int:
        if self._sliced:
            place = next(iter(self._sliced.values()))
            SliceParameters(
                {nodes[i]: place.placement for i, place in self._sliced.items()},
                {nodes[i]: self._full[i] for i in self._sliced},
                place.rank,
                place.num_ranks,
            )(gm)
        return len(self._sliced)

    def examples(self) -> list[Any]:
        """Fake inputs of the local graph, from those of the full one."""
        full, self._full = self._full, ()
        return [
            *(self._example(i, each) for i, each in enumerate(full)),
            *self._values[len(full) :],
        ]

    def feed(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """A callable that takes the full inputs and gives the local ones to `compiled`.

        Its work grows with the parts that are kept, not with the parameters. Those it looks at when
        it is called for another model than before (one graph may serve several), and when memory of
        any parameter was freed.
        """
        seen: Callable[[], Any] = _nothing
        num_changes = -1

        def call(*full: Any) -> Any:
            nonlocal seen, num_changes
            is_other = self._first is None or seen() is not full[self._first]
            if is_other or num_changes != PARTS.num_changes:
                self._look_at(full)
                num_changes = PARTS.num_changes
                seen = _nothing if self._first is None else weakref.ref(full[self._first])
            if not self._places and not self._trained:
                return compiled(*full, *self._indices)
            local = [*full, *self._indices]
            if self._trained:
                self._follow(local)
            for i, place in self._places.items():
                local[i] = self._local(i, local[i], place)
            return compiled(*local)

        return call

    def _follow(self, inputs: list[Any]) -> None:
        """Let the gradients of what is trained be completed."""
        full = [inputs[i] for i in self._trained]
        for parameter in full:
            PARTS.require_memory(parameter)
        views = self._gradients.follow(full)
        for i, view in zip(self._trained, views, strict=True):
            inputs[i] = view

    def _look_at(self, full: Sequence[Any]) -> None:
        """Note what of a model is divided by the graph or read whole: its memory is needed."""
        for i, value in enumerate(full):
            if i not in self._places:
                PARTS.require_memory(value)
            if i in self._sliced:
                PARTS.note(value, self._sliced[i])
            elif i not in self._places and isinstance(value, torch.nn.Parameter):
                PARTS.read_whole[value] = True

    def _example(self, i: int, full: Any) -> Any:
        place = self._places.get(i)
        if place is None:
            return full
        local = self._values[i]  # fake, already of the local shape
        with local.fake_mode, torch.no_grad():
            if (fake := self._wrapped[i]) is not None:
                return place.take(fake)
            part = torch.empty_like(local)
            if place.is_view:
                part = place.take(part.new_empty_strided(full.shape, full.stride())).detach()
            if isinstance(full, torch.nn.Parameter):
                return torch.nn.Parameter(part, full.requires_grad)
            return part.requires_grad_(full.requires_grad)

    def _local(self, i: int, full: Tensor, place: Place) -> Tensor:
        if full.requires_grad and torch.is_grad_enabled():
            return place.take(full)
        part = self._last[i]()
        if part is None or not part.is_of(full) or part.local.requires_grad != full.requires_grad:
            part = PARTS.get(full, place)
            self._last[i] = weakref.ref(part)  # a look into `PARTS` takes ten times as long
        return part.local


def _is_trained(example: Any) -> bool:
    """Whether gradients of an input are recorded where its graph was traced."""
    return torch.is_grad_enabled() and isinstance(example, Tensor) and example.requires_grad


def _may_be_view(
    full: Tensor, placement: Shard, num_ranks: int, slices: bool, is_released: bool
) -> bool:
    """Whether a rank's part, one stretch of `full`, may lie in its memory."""
    if not compat.is_wrapper_subclass(full):
        return full.is_contiguous() and (placement.dim == 0 or not is_released)
    if is_released or not slices:
        return False
    with torch.no_grad():
        parts = tensors_in(view_local(full, placement, 0, num_ranks))
    return all(part.is_contiguous() for part in parts)  # its kernels want dense values and scales


def _nothing() -> None:
    """A reference to a part that is gone."""
