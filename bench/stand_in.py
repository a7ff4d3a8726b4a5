"""One device stands in for all ranks: a one-process group whose transfers only take time.

    compute         h0 ── launch 0 ── h1 ── launch 1 ── wait 0 ── h2 ── …     the current stream
                            │                   │          │
    lane (KernelLane)       └── [spin, n SMs] ──┴── [spin ─┴── n SMs]         its own stream

Rank 0 of `link.ranks` computes its shard. Values pass through each collective unchanged (an
all-gather repeats them). A collective takes `link.seconds` of its bytes, one at a time, in a kernel
that only waits. Launches and waits use events as NCCL's do, so both can be captured in a CUDA
graph. Not emulated: the memory traffic of a collective, and stragglers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ladderize import compat
from ladderize.config.hardware.link import Link
from ladderize.errors import LadderError

BACKEND = "stand_in"
Action = Callable[[], None]

# Torch's stubs lack the constructors of these, and the class of a launch's result.
_c10d: Any = dist
_cuda: Any = torch.cuda
_ProcessGroup: Any = dist.ProcessGroup
_Work: Any = torch._C._distributed_c10d.Work


class Lane(Protocol):
    """The resource that transfers run on, one after the other."""

    def launch(self, seconds: float, move: Action) -> Action:
        """Start a transfer after the compute so far: `seconds`, then `move`.

        Returns:
            A function that makes all later compute wait for the transfer.
        """


class LaneWithoutKernel:
    """For machines without CUDA: values move immediately, and transfers take no time."""

    def launch(self, seconds: float, move: Action) -> Action:  # noqa: ARG002
        move()
        return lambda: None


_SPIN = r"""
extern "C" __global__ void spin(int nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < (unsigned long long) nanoseconds);
}
"""
_LONGEST = 2**31 - 1  # nanoseconds: kernels of `compile_kernel` take ints of 32 bits


class KernelLane:
    """A separate stream, on which a kernel spins for the duration of a transfer.

    Each of its blocks requests all shared memory of an SM, so no two blocks share an SM, and no
    kernel that uses shared memory (every matrix product) runs on the same one.

    Args:
        device: a CUDA device.
        sms: number of SMs that a transfer takes from compute.

    Raises:
        LadderError: the device has fewer SMs.
    """

    def __init__(self, device: torch.device, sms: int = 1) -> None:
        has = torch.cuda.get_device_properties(device).multi_processor_count
        if not 1 <= sms <= has:
            raise LadderError(f"A transfer cannot take {sms} SMs: {device} has {has}.")
        self.device, self.sms = device, sms
        self._shared = compat.most_shared_memory(device)
        # Load the module now: loading is not allowed while a graph is captured.
        self._spin = compat.compile_kernel(_SPIN, "spin")
        self._spin.set_shared_memory_config(self._shared)
        self._stream = _cuda.Stream(device, priority=-1)

    def launch(self, seconds: float, move: Action) -> Action:
        nanoseconds = round(seconds * 1e9)
        if nanoseconds > _LONGEST:
            raise LadderError(f"A transfer of {seconds:g} s is longer than a kernel spins, 2.1 s.")
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self._spin(
                grid=(self.sms, 1, 1),
                block=(32, 1, 1),
                args=[nanoseconds],
                shared_mem=self._shared,
                stream=self._stream,
            )
            move()
            done = _cuda.Event()
            done.record(self._stream)
        return lambda: torch.cuda.current_stream(self.device).wait_event(done)


@dataclass(frozen=True)
class Transfer:
    """A launched collective; `seconds` on the link, 0 while the group is silent."""

    op: str
    num_bytes: int
    seconds: float


class _StandInWork(_Work):  # type: ignore[misc]
    """The result of a launch; keeps its tensors until the wait, as NCCL's does."""

    def __init__(self, group: "StandInGroup", index: int, wait: Action, held: object) -> None:
        super().__init__()
        self._group, self._index, self._wait, self._held = group, index, wait, held

    def wait(self, timeout: Any = None) -> bool:  # noqa: ARG002
        self._group.events.append(("wait", self._index))
        self._wait()
        self._held = None
        return True


class StandInGroup(_ProcessGroup):  # type: ignore[misc]
    """Rank 0 of `link.ranks` ranks, the only one that exists.

    Attributes:
        link: gives the duration of a transfer.
        lane: the resource that transfers run on.
        is_silent: whether transfers take no time, as in the no-communication bound.
        transfers: the transfers in launch order.
        events: ("launch", index) and ("wait", index of the launch) in order.
    """

    def __init__(self, link: Link, lane: Lane) -> None:
        super().__init__(0, link.ranks)
        self.link, self.lane, self.is_silent = link, lane, False
        self.transfers: list[Transfer] = []
        self.events: list[tuple[str, int]] = []
        self._name = ""

    def clear(self) -> None:
        """Forget all launches and waits."""
        self.transfers, self.events = [], []

    # -- collectives, as torch calls them

    def allreduce(self, tensors: list[Tensor], _: Any = None) -> _StandInWork:
        return self._launch("all_reduce", tensors, tensors, lambda: None)

    def allreduce_coalesced(self, tensors: list[Tensor], _: Any = None) -> _StandInWork:
        return self._launch("all_reduce", tensors, tensors, lambda: None)

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], _: Any = None
    ) -> _StandInWork:
        def move() -> None:
            for out, own in zip(outputs, inputs, strict=True):
                out.view(self.size(), *own.shape).copy_(own.expand(self.size(), *own.shape))

        return self._launch("all_gather", outputs, [outputs, inputs], move)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], _: Any = None
    ) -> _StandInWork:
        def move() -> None:
            for out, whole in zip(outputs, inputs, strict=True):
                out.copy_(whole.view(self.size(), *out.shape)[0])

        return self._launch("reduce_scatter", inputs, [outputs, inputs], move)

    # The same under the names of torch 2.11.
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _launch(self, op: str, whole: Sequence[Tensor], held: object, move: Action) -> _StandInWork:
        num_bytes = sum(tensor.nbytes for tensor in whole)
        seconds = 0.0 if self.is_silent else self.link.seconds(num_bytes, op)
        index = len(self.transfers)
        self.transfers.append(Transfer(op, num_bytes, seconds))
        self.events.append(("launch", index))
        lane = LaneWithoutKernel() if self.is_silent else self.lane
        return _StandInWork(self, index, lane.launch(seconds, move), held)

    # -- without these torch asks a backend, and there is none

    def getBackendName(self) -> str:
        return BACKEND

    def setGroupName(self, name: str) -> None:
        self._name = name

    def getGroupName(self) -> str:
        return self._name


@contextmanager
def stand_in(link: Link, lane: Lane, device_type: str) -> Iterator[tuple[DeviceMesh, StandInGroup]]:
    """A mesh of `link.ranks` ranks in this process, and its group, the default one in this context.

    >>> with stand_in(link_of("nvlink-8"), KernelLane(torch.device("cuda")), "cuda") as (mesh, _):
    ...     shard = ladderize.parallelize(model, mesh, args)

    Args:
        link: gives the duration of a transfer.
        lane: the resource that transfers run on.
        device_type: device type of the mesh, "cuda" or "cpu".
    """
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(
            BACKEND, lambda _, group: group, extended_api=True, devices=["cpu", "cuda"]
        )
    group = StandInGroup(link, lane)
    dist.init_process_group(
        BACKEND, rank=0, world_size=link.ranks, store=_c10d.HashStore(), pg_options=group
    )
    try:
        yield init_device_mesh(device_type, (link.ranks,)), group
    finally:
        dist.destroy_process_group()
