"""Where each rank writes when it launched, for the others to read: memory that all of them share.

    rank 0   board[n, 0] = 12.301 ── gloo ──► max(board[n]) = 12.305
    rank 1   board[n, 1] = 12.305 ── gloo ──► max(board[n]) = 12.305

What a rank writes before it joins a collective of gloo, all can read behind that. A collective for
the times themselves would cost as much as that for the values.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SLOTS = 64  # gloo lets no rank get further ahead of another than by one transfer
_SHARED_MEMORY = Path("/dev/shm")


class LaunchBoard:
    """One of a group. Its ranks are processes of one machine.

    Args:
        store: of the group.
        rank, size: in the group.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._rank = rank
        self._shape = (SLOTS, size)
        if rank == 0:
            folder = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
            with tempfile.NamedTemporaryFile(
                prefix="ladderize-launches-", dir=folder, delete=False
            ) as file:
                file.write(bytes(8 * SLOTS * size))
            store.set("launches", file.name)
        path = Path(store.get("launches").decode())
        self._times = np.memmap(path, np.float64, "r+", shape=self._shape)
        store.set(f"opened by {rank}", "1")
        if rank == 0:
            store.wait([f"opened by {other}" for other in range(size)])
            path.unlink()  # nothing stays behind, however the ranks end

    def write(self, number: int, moment: float) -> None:
        """This rank launched transfer `number` at `moment`."""
        self._times[number % SLOTS, self._rank] = moment

    def latest(self, number: int) -> float:
        """When the last rank launched transfer `number`, which all of them have."""
        return float(self._times[number % SLOTS].max())
