"""A thread that moves values with gloo, one transfer at a time, and the `wait()` of a transfer.

    launch(work) ──► queue ──► gloo: the values ──► lane: the latest launch ──► times ──► wait()

The values must not move inside `wait()`, which would add gloo's time to the rank's own. Gloo and
the queue release the interpreter lock while they block, so the rank computes meanwhile.
"""

import atexit
import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ladderize.tools.emulation.board import LaunchLane
from ladderize.tools.emulation.transfers import Transfer

Start = Callable[[Any, list[Tensor]], list[dist.Work]]
"""Launches one transfer on a `ProcessGroupGloo` (its stub lacks all collectives), into staging
tensors instead of the outputs."""

# Linux wakes a sleeping thread 0.06 to 0.1 ms late; the last part is busy waiting, with yields.
_AWAKE = 200e-6

# Interval at which a thread that waits in gloo checks whether the process is ending.
_ASLEEP = timedelta(seconds=0.25)


class TransferTimes(NamedTuple):
    """Times of a `Transfer`, in its order. All but `arrived` are the same on every rank."""

    peers: float
    free: float
    due: float
    arrived: float


class EmulatedWork(dist.Work):
    """One transfer in flight. The outputs are filled when it is due, not when gloo has the values:
    a read of a buffer in flight sees what it would see on a slow link.

    Attributes:
        staged: tensors that gloo fills instead of the outputs.
        transfer: record of the transfer; None until it has been waited for.
    """

    def __init__(
        self, op: str, num_bytes: int, seconds: float, outputs: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.staged = [output.clone() for output in outputs]
        self._outputs = list(outputs)
        self.op = op
        self.num_bytes = num_bytes
        self.seconds = seconds
        self.schedule: Future[TransferTimes] = Future()
        self.transfer: Transfer | None = None
        self.launched = time.perf_counter()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Block until the transfer is due and the values have arrived.

        Raises:
            RuntimeError: from gloo: a rank is gone, or the group's timeout expired.
            TimeoutError: a nonzero `timeout` expired.
        """
        entered = time.perf_counter()
        schedule = self.schedule.result(timeout.total_seconds() or None)
        _sleep_until(schedule.due)
        if self.transfer is None:
            moments = (self.launched, *schedule, entered, time.perf_counter())
            self.transfer = Transfer(self.op, self.num_bytes, *moments)
        self._deliver()
        return True

    def _deliver(self) -> None:
        for output, staged in zip(self._outputs, self.staged, strict=True):
            output.copy_(staged)
        self._outputs, self.staged = [], []

    def is_completed(self) -> bool:
        if not self.schedule.done():
            return False
        if self.schedule.exception() is not None:
            return True
        if time.perf_counter() < self.schedule.result().due:
            return False
        self._deliver()
        return True


class Carrier:
    """One lane. Carries transfers in launch order, the same on every rank that shares it."""

    def __init__(self, gloo: Any, lane: LaunchLane) -> None:
        self._gloo = gloo
        self._lane = lane
        self._free = 0.0
        self._num_carried = 0
        self._is_under_way = False
        self._queue: SimpleQueue[tuple[EmulatedWork, Start] | None] = SimpleQueue()
        self._is_abandoned = False
        # A daemon, so that a failing rank can end although its peers never launch the transfer.
        self._thread = Thread(target=self._run, name="emulated link", daemon=True)
        self._thread.start()
        atexit.register(self._abandon)

    def launch(self, work: EmulatedWork, start: Start) -> None:
        self._queue.put((work, start))

    def close(self) -> None:
        """End the thread after the launched transfers. Returns immediately."""
        self._queue.put(None)

    def _abandon(self) -> None:
        """End the thread and its transfer at interpreter exit.

        A thread that returns from gloo after that aborts the process: Python 3.11 ends it with an
        exception that must not pass through C++. A gloo group with a transfer in flight is leaked,
        because freeing it would wait for the peers.
        """
        self._is_abandoned = True
        self.close()
        self._thread.join()
        if self._is_under_way:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._gloo))

    @torch.inference_mode()  # staged tensors may be inference tensors
    def _run(self) -> None:
        while (given := self._queue.get()) is not None and not self._is_abandoned:
            work, start = given
            try:
                work.schedule.set_result(self._carry(work, start))
            except BaseException as error:  # `wait()` raises it
                error.add_note(f"while an emulated link carried {work.op}, {work.num_bytes} bytes")
                work.schedule.set_exception(error)
            del given, work, start  # free the tensors with the transfer
        if not self._is_abandoned:
            atexit.unregister(self._abandon)

    def _carry(self, work: EmulatedWork, start: Start) -> TransferTimes:
        number = self._num_carried
        self._num_carried += 1
        self._lane.write(number, work.launched, work.seconds)
        for part in start(self._gloo, work.staged):
            self._wait_for(part)
        peers, free = self._lane.latest(number), self._free
        self._free = max(peers, free) + self._lane.longest(number)
        return TransferTimes(peers, free, due=self._free, arrived=time.perf_counter())

    def _wait_for(self, part: dist.Work) -> None:
        """Block until gloo has finished `part`; raises gloo's errors."""
        while not self._is_abandoned:
            try:
                part.wait(_ASLEEP)
                return
            except RuntimeError:
                if part.is_completed():  # it failed, or has just finished
                    part.wait()
                    return
        self._is_under_way = True
        raise RuntimeError("the process ended before all ranks had launched this")


def _sleep_until(moment: float) -> None:
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(max(0.0, left - _AWAKE))
