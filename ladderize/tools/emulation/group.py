"""A process group whose collectives are timed by a `Link`.

    allreduce(tensors) ──► EmulatedWork ──► Carrier (carrier.py) ──► gloo, the group "values"
    send(tensors, 1) ────► EmulatedWork ──► Carrier of 0 → 1 ──────► gloo, the group "values"
    barrier, all_gather_object, … ──────────────────────────────────► gloo, the group "control"

There are two gloo groups because all ranks must launch a gloo group's collectives in one order,
and the threads of the carrier and of the caller are not ordered.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ladderize import compat
from ladderize.config.hardware import Link
from ladderize.tools.emulation.board import LaunchBoard
from ladderize.tools.emulation.carrier import Carrier, EmulatedWork, Start
from ladderize.tools.emulation.priority import before_compute
from ladderize.tools.emulation.transfers import Transfer

# Torch's stubs lack the constructor and half the methods of gloo's class.
_ProcessGroup: Any = dist.ProcessGroup
_c10d: Any = dist


class EmulatedGroup(_ProcessGroup):  # type: ignore[misc]
    """Gloo with the clock of a link, and a record of every transfer.

    All-reduces, all-gathers and reduce-scatters of tensors, all-to-alls and broadcasts occupy the
    link one at a time in launch order, which must be the same on all ranks. Messages (`send`,
    `recv`) from one rank to another have their own lane, in the order in which both launch them.
    Everything else (barriers, gathers of objects and of lists of tensors) bypasses the link.

    Attributes:
        link: link for later launches. Set it between runs, to the same value on every rank.
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
            self._board = LaunchBoard(_c10d.PrefixStore("board", store), rank, size)
            self._carrier = Carrier(values, self._board.collectives())
        self._values = values
        self._messengers: dict[tuple[int, int], Carrier] = {}
        compat.pass_on(self, control)

    @property
    def transfers(self) -> list[Transfer]:
        """The transfers that were waited for, in launch order."""
        return [work.transfer for work in self._launched if work.transfer is not None]

    def clear(self) -> None:
        """Forget the transfers so far."""
        self._launched = []

    def shutdown(self) -> None:
        """Called by `destroy_process_group`."""
        for carrier in (self._carrier, *self._messengers.values()):
            carrier.close()
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
        exchanged = max(self._to_others(given, input_sizes), self._to_others(output, output_sizes))
        return self._launch(
            "all_to_all",
            [given],
            [output],
            lambda gloo, staged: [
                gloo.alltoall_base(staged[0], given, output_sizes, input_sizes, opts)
            ],
            self._as_equal_splits(exchanged),
        )

    def alltoall(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> EmulatedWork:
        opts = opts or _c10d.AllToAllOptions()
        exchanged = max(
            sum(tensor.nbytes for rank, tensor in enumerate(tensors) if rank != self.rank())
            for tensors in (inputs, outputs)
        )
        return self._launch(
            "all_to_all",
            inputs,
            outputs,
            lambda gloo, staged: [gloo.alltoall(staged, inputs, opts)],
            self._as_equal_splits(exchanged),
        )

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> EmulatedWork:
        opts = opts or _c10d.BroadcastOptions()
        return self._launch(
            "broadcast",
            tensors,
            tensors,
            # The root may finish before others start; after the barrier all launch times are known.
            lambda gloo, staged: [
                gloo.broadcast(staged, opts),
                gloo.barrier(_c10d.BarrierOptions()),
            ],
        )

    def send(self, tensors: list[Tensor], target: int, tag: int) -> EmulatedWork:
        return self._launch(
            "p2p",
            tensors,
            [],
            lambda gloo, _: [gloo.send(tensors, target, tag)],
            carrier=self._messenger(self.rank(), target),
        )

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> EmulatedWork:
        return self._launch(
            "p2p",
            tensors,
            tensors,
            lambda gloo, staged: [gloo.recv(staged, source, tag)],
            carrier=self._messenger(source, self.rank()),
        )

    # The names in torch 2.13; torch 2.11 has only those above.
    all_gather_single = _allgather_base
    all_gather_single_coalesced = allgather_into_tensor_coalesced
    reduce_scatter_single = _reduce_scatter_base
    reduce_scatter_single_coalesced = reduce_scatter_tensor_coalesced
    all_to_all_single = alltoall_base

    def _messenger(self, source: int, target: int) -> Carrier:
        """The carrier of messages from rank `source` to rank `target`; one of them is this rank."""
        if (source, target) not in self._messengers:
            with before_compute():
                carrier = Carrier(self._values, self._board.messages(source, target))
            self._messengers[source, target] = carrier
        return self._messengers[source, target]

    def _to_others(self, tensor: Tensor, sizes: Sequence[int]) -> int:
        """Bytes of `tensor`, split along dim 0 into `sizes`, that belong to other ranks."""
        rows = tensor.shape[0] if tensor.dim() else 1
        own: int = sizes[self.rank()] if sizes else rows // self.size()
        return tensor.nbytes // max(rows, 1) * (rows - own)

    def _as_equal_splits(self, exchanged: int) -> float:
        """Size of an evenly split tensor of which a rank exchanges `exchanged` bytes."""
        others = self.size() - 1
        return exchanged * self.size() / others if others else 0.0

    def _launch(
        self,
        op: str,
        whole: Sequence[Tensor],
        outputs: Sequence[Tensor],
        start: Start,
        charged: float | None = None,
        carrier: Carrier | None = None,
    ) -> EmulatedWork:
        """Put a transfer on the link.

        Args:
            op: kind of transfer, as `Link.seconds` names it.
            whole: tensors whose bytes are recorded.
            outputs: tensors that are filled when it is due.
            start: launches it on gloo.
            charged: bytes that the link is charged for, if not those of `whole`.
            carrier: carrier of its lane; by default that of the collectives.
        """
        num_bytes = sum(tensor.nbytes for tensor in whole)
        seconds = self.link.seconds(num_bytes if charged is None else charged, op)
        work = EmulatedWork(op, num_bytes, seconds, outputs)
        self._launched.append(work)
        (carrier or self._carrier).launch(work, start)
        return work
