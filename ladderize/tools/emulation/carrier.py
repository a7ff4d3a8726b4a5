"""A thread that moves the values by gloo, one transfer at a time, and what `wait()` does with it.

    launch(work) ──► queue ──► gloo: the values ──► lane: the latest launch ──► times ──► wait()

The values must not travel inside of `wait()`: what gloo takes there would look like compute. Gloo
and the queue release the interpreter lock while they block, so that the rank computes meanwhile.
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
"""Launches one transfer on a `ProcessGroupGloo`, whose stub lacks every collective, into tensors
that are staged in the place of its outputs."""

# Linux wakes a sleeper 0.06 to 0.1 ms late; the rest is spent awake, other threads let through.
_AWAKE = 200e-6

# For so long the thread is inside of gloo without asking whether the process is to end.
_ASLEEP = timedelta(seconds=0.25)


class TransferTimes(NamedTuple):
    """The same on every rank but for `arrived`; as in `Transfer`, and in its order."""

    peers: float
    free: float
    due: float
    arrived: float


class EmulatedWork(dist.Work):
    """One transfer under way. Its values appear in the outputs when it is due, not when gloo has
    them: what reads a buffer in flight reads what it would read on a slow link.

    Attributes:
        staged: what gloo works on in the place of the outputs.
        transfer: what is known of it; None until it has been waited for.
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
        """Block until the transfer is due and the values are there.

        Raises:
            RuntimeError: gloo's own: a rank is gone, or the group's time is up.
            TimeoutError: `timeout`, unless it is 0, is up.
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
    """One lane. Carries what it is given in that order, the same on every rank that shares it."""

    def __init__(self, gloo: Any, lane: LaunchLane) -> None:
        self._gloo = gloo
        self._lane = lane
        self._free = 0.0
        self._num_carried = 0
        self._is_under_way = False
        self._queue: SimpleQueue[tuple[EmulatedWork, Start] | None] = SimpleQueue()
        self._is_abandoned = False
        # A daemon: a rank that fails must end although its peers never launch what it launched.
        self._thread = Thread(target=self._run, name="emulated link", daemon=True)
        self._thread.start()
        atexit.register(self._abandon)

    def launch(self, work: EmulatedWork, start: Start) -> None:
        self._queue.put((work, start))

    def close(self) -> None:
        """End the thread, once it has carried what was launched. Returns at once."""
        self._queue.put(None)

    def _abandon(self) -> None:
        """End the thread and what it carries, for the interpreter ends.

        A thread that comes back from gloo afterwards aborts the process (Python 3.11 ends it by an
        exception that C++ must not let through). A gloo group is not freed while a transfer is
        under way: freeing it waits for the peers.
        """
        self._is_abandoned = True
        self.close()
        self._thread.join()
        if self._is_under_way:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._gloo))

    @torch.inference_mode()  # what is staged may have been made in that mode
    def _run(self) -> None:
        while (given := self._queue.get()) is not None and not self._is_abandoned:
            work, start = given
            try:
                work.schedule.set_result(self._carry(work, start))
            except BaseException as error:  # whatever it is: `wait()` raises it
                error.add_note(f"while an emulated link carried {work.op}, {work.num_bytes} bytes")
                work.schedule.set_exception(error)
            del given, work, start  # the tensors live no longer than the transfer
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
        """Block until gloo is through with it; raises gloo's own errors."""
        while not self._is_abandoned:
            try:
                part.wait(_ASLEEP)
                return
            except RuntimeError:
                if part.is_completed():  # it failed, or came to its end at this very moment
                    part.wait()
                    return
        self._is_under_way = True
        raise RuntimeError("the process ended before all ranks had launched this")


def _sleep_until(moment: float) -> None:
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(max(0.0, left - _AWAKE))
