"""Where each rank writes when it launched, for the others to read: memory that all of them share.

    rank 0   lane[n, 0] = 12.301, 0.002 ── gloo ──► latest 12.305, longest 0.003
    rank 1   lane[n, 1] = 12.305, 0.003 ── gloo ──► latest 12.305, longest 0.003

What a rank writes before it joins a collective of gloo, all can read behind that. A collective for
the times themselves would cost as much as that for the values. There is a lane for what all ranks
take part in, and one for the messages of each rank to each other one.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOTS = 64  # gloo lets no rank get further ahead of another than by one transfer
_SHARED_MEMORY = Path("/dev/shm")


class LaunchLane:
    """What was launched on one lane: a slot for each transfer, in it moment and seconds by rank."""

    def __init__(self, slots: NDArray[np.float64], rank: int) -> None:
        self._slots = slots
        self._rank = rank

    def write(self, number: int, moment: float, seconds: float) -> None:
        """This rank launched transfer `number` at `moment`; its part takes `seconds`."""
        self._slots[number % SLOTS, self._rank] = moment, seconds

    def latest(self, number: int) -> float:
        """When the last rank launched transfer `number`, which all of them have."""
        return float(self._slots[number % SLOTS, :, 0].max())

    def longest(self, number: int) -> float:
        """The seconds that transfer `number` takes on the rank which sends most."""
        return float(self._slots[number % SLOTS, :, 1].max())


class LaunchBoard:
    """The lanes of a group. Its ranks are processes of one machine.

    Args:
        store: of the group.
        rank, size: in the group.
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
            path.unlink()  # nothing stays behind, however the ranks end

    def collectives(self) -> LaunchLane:
        """The lane that all ranks share."""
        return LaunchLane(self._lanes[0], self._rank)

    def messages(self, source: int, target: int) -> LaunchLane:
        """The lane from rank `source` to rank `target`."""
        return LaunchLane(self._lanes[1 + source * self._size + target], self._rank)
