"""Shared memory in which each rank writes its launch times for the others to read.

    rank 0   lane[n, 0] = 12.301, 0.002 ── gloo ──► latest 12.305, longest 0.003
    rank 1   lane[n, 1] = 12.305, 0.003 ── gloo ──► latest 12.305, longest 0.003

A rank writes its times before it joins a gloo collective, so all ranks can read them after it. A
separate collective for the times would cost as much as the one for the values. There is one lane
for collectives, and one for the messages of each ordered pair of ranks.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOTS = 64  # with gloo, ranks are at most one transfer apart
_SHARED_MEMORY = Path("/dev/shm")


class LaunchLane:
    """The launches on one lane: a slot per transfer with each rank's launch time and duration."""

    def __init__(self, slots: NDArray[np.float64], rank: int) -> None:
        self._slots = slots
        self._rank = rank

    def write(self, number: int, moment: float, seconds: float) -> None:
        """Record that this rank launched transfer `number` at `moment`, lasting `seconds`."""
        self._slots[number % SLOTS, self._rank] = moment, seconds

    def latest(self, number: int) -> float:
        """When the last rank launched transfer `number`; all ranks must have launched it."""
        return float(self._slots[number % SLOTS, :, 0].max())

    def longest(self, number: int) -> float:
        """Duration of transfer `number` on the rank that sends most, in seconds."""
        return float(self._slots[number % SLOTS, :, 1].max())


class LaunchBoard:
    """The lanes of a group, whose ranks are processes on one machine.

    Args:
        store: store of the group.
        rank, size: this rank and the number of ranks.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        shape = (1 + size * size, SLOTS, size, 2)
        if rank == 0:
            folder = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
            with tempfile.NamedTemporaryFile(
                prefix="ladderize-launches-", dir=folder, delete=False
            ) as file:
                file.truncate(8 * int(np.prod(shape)))
            store.set("launches", file.name)
        path = Path(store.get("launches").decode())
        self._lanes = np.memmap(path, np.float64, "r+", shape=shape)
        store.set(f"opened by {rank}", "1")
        if rank == 0:
            store.wait([f"opened by {other}" for other in range(size)])
            path.unlink()  # leaves no file, however the ranks end

    def collectives(self) -> LaunchLane:
        """The lane that all ranks share."""
        return LaunchLane(self._lanes[0], self._rank)

    def messages(self, source: int, target: int) -> LaunchLane:
        """The lane from rank `source` to rank `target`."""
        return LaunchLane(self._lanes[1 + source * self._size + target], self._rank)
