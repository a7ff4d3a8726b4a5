"""A process group whose collectives take the time that a `Link` says.

    allreduce(tensors) ──► EmulatedWork ──► Carrier (carrier.py) ──► gloo, the group "values"
    broadcast, barrier, all_gather_object, … ───────────────────────► gloo, the group "control"

Two gloo groups, because a gloo group must be given its collectives in one order by all ranks, and
the carrier's thread and the caller's have none between them.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor

from ladderize import compat
from ladderize.tools.emulation.board import LaunchBoard
from ladderize.tools.emulation.carrier import Carrier, EmulatedWork, Start
from ladderize.tools.emulation.transfers import Transfer
from ladderize.tools.predict.hardware import Link

BACKEND = "emulated"
TIMEOUT = timedelta(minutes=5)


# Torch's stubs know neither the constructor nor half of what gloo's class has.
_ProcessGroup: Any = dist.ProcessGroup
_c10d: Any = dist


class EmulatedGroup(_ProcessGroup):  # type: ignore[misc]
    """Gloo with the clock of a link, and a record of every transfer.

    All-reduces, all-gathers and reduce-scatters of tensors and all-to-alls take their time on the
    link, one after the other in the order of their launches; so they are launched alike by all
    ranks. Everything else (broadcasts, barriers, objects, lists of tensors) goes past it.

    Attributes:
        link: for what is launched from now on. Set it between runs, on every rank alike.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta, link: Link) -> None:
        super().__init__(rank, size)
        self.link = link
        self._launched: list[EmulatedWork] = []
        with before_compute():
            values, control = (
                _c10d.ProcessGroupGloo(_c10d.PrefixStore(name, store), rank, size, timeout)
                for name in ("values", "control")
            )
            board = LaunchBoard(_c10d.PrefixStore("board", store), rank, size)
            self._carrier = Carrier(values, board)
        compat.pass_on(self, control)

    @property
    def transfers(self) -> list[Transfer]:
        """Those that were waited for, in the order of their launches."""
        return [work.transfer for work in self._launched if work.transfer is not None]

    def clear(self) -> None:
        """Forget the transfers so far."""
        self._launched = []

    def shutdown(self) -> None:
        """Called by `destroy_process_group`."""
        self._carrier.close()
        super().shutdown()

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> EmulatedWork:
        opts = opts or _c10d.AllreduceOptions()
        return self._launch(
            "all_reduce", tensors, tensors, lambda gloo, staged: [gloo.allreduce(staged, opts)]
        )

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> EmulatedWork:
        each = _c10d.AllreduceOptions()
        each.reduceOp = opts.reduceOp if opts else _c10d.ReduceOp.SUM
        return self._launch(
            "all_reduce",
            tensors,
            tensors,
            lambda gloo, staged: [gloo.allreduce([t], each) for t in staged],
        )

    def allgather_into_tensor_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> EmulatedWork:
        opts = opts or _c10d.AllgatherOptions()
        return self._launch(
            "all_gather",
            outputs,
            outputs,
            lambda gloo, staged: [
                gloo._allgather_base(out, given, opts)
                for out, given in zip(staged, inputs, strict=True)
            ],
        )

    def reduce_scatter_tensor_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> EmulatedWork:
        opts = opts or _c10d.ReduceScatterOptions()
        return self._launch(
            "reduce_scatter",
            inputs,
            outputs,
            lambda gloo, staged: [
                gloo._reduce_scatter_base(out, given, opts)
                for out, given in zip(staged, inputs, strict=True)
            ],
        )

    def _allgather_base(self, output: Tensor, given: Tensor, opts: Any = None) -> EmulatedWork:
        return self.allgather_into_tensor_coalesced([output], [given], opts)

    def _reduce_scatter_base(self, output: Tensor, given: Tensor, opts: Any = None) -> EmulatedWork:
        return self.reduce_scatter_tensor_coalesced([output], [given], opts)

    def alltoall_base(
        self,
        output: Tensor,
        given: Tensor,
        output_sizes: list[int],
        input_sizes: list[int],
        opts: Any = None,
    ) -> EmulatedWork:
        opts = opts or _c10d.AllToAllOptions()
        return self._launch(
            "all_to_all",
            [given],
            [output],
            lambda gloo, staged: [
                gloo.alltoall_base(staged[0], given, output_sizes, input_sizes, opts)
            ],
        )

    # The names of torch 2.13 for the same; 2.11 knows those above only.
    all_gather_single = _allgather_base
    all_gather_single_coalesced = allgather_into_tensor_coalesced
    reduce_scatter_single = _reduce_scatter_base
    reduce_scatter_single_coalesced = reduce_scatter_tensor_coalesced
    all_to_all_single = alltoall_base

    def _launch(
        self, op: str, whole: Sequence[Tensor], outputs: Sequence[Tensor], start: Start
    ) -> EmulatedWork:
        num_bytes = sum(tensor.nbytes for tensor in whole)
        work = EmulatedWork(op, num_bytes, self.link.seconds(num_bytes, op), outputs)
        self._launched.append(work)
        self._carrier.launch(work, start)
        return work


def register_backend() -> None:
    """Make `BACKEND` known to `torch.distributed`; `init_emulated` does.

    A default group of it takes its `Link` as `pg_options`, groups made later take that of the
    default one.
    """
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])


def init_emulated(
    link: Link,
    *,
    rank: int = -1,
    world_size: int = -1,
    store: Any = None,
    init_method: str | None = None,
    timeout: timedelta = TIMEOUT,
) -> EmulatedGroup:
    """`torch.distributed.init_process_group` with an emulated link between the ranks.

    All ranks must be processes of one machine. Groups made later (`new_group`, a `DeviceMesh` of
    several axes) have a link of their own each, at first like the default group's.

    Args:
        link: how long a collective takes. It need not have as many ranks as the group: two
            processes can stand in for eight GPUs.
        rank: of this process; by default, like what follows, as `torchrun` says.
        store: a `torch.distributed.Store`, instead of `init_method`.
        timeout: after which a collective that a rank does not join is an error on the others.

    Returns:
        The default group, also `torch.distributed.group.WORLD`.
    """
    register_backend()
    dist.init_process_group(
        BACKEND,
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        store=store,
        timeout=timeout,
        pg_options=link,
    )
    return cast(EmulatedGroup, dist.group.WORLD)


def _create(options: Any, link: Link | None) -> EmulatedGroup:
    """Called by torch for the default group, and without a link for each one made later."""
    if link is None:
        link = cast(EmulatedGroup, dist.group.WORLD).link
    return EmulatedGroup(
        options.store, options.group_rank, options.group_size, options.timeout, link
    )


@contextmanager
def before_compute() -> Iterator[bool]:
    """Threads started inside go before all ordinary ones (SCHED_FIFO), not the caller afterwards.

    A network card does not wait for a core; gloo's threads do. On two busy cores an all-reduce of
    two computing ranks took 20 ms that takes 0.7 ms this way, for it is many short turns of six
    threads.

    Yields:
        Whether it is so: where the system does not allow it (on Linux to root, or with an
        `rtprio` limit of 1), nothing changes.
    """
    if sys.platform != "linux":
        yield False
        return
    usual = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *usual)
