"""The record of a transfer, and the sum of many. Times are seconds of `time.perf_counter`, which on
Linux is one clock for all processes of a machine.

    launched        peers              started                 due
       │ by this rank  │ by the last one   │ the link is free    │
    ───┴───────────────┴───────────────────┴─────────────────────┴──────
                                                   └─── wait ────┘
                                                entered      released

The part of the wait that is due to a straggler is how much earlier the transfer would have started
if all ranks had launched when this one did. The rest of the wait is exposed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Transfer:
    """One collective over an emulated link.

    Attributes:
        op: kind of collective, as `Link.seconds` names it: "all_reduce", "all_gather", …
        num_bytes: bytes of the whole tensor; for an all-to-all, of this rank's input.
        launched: time at which this rank launched it.
        peers: time at which the last rank launched it.
        free: end of the previous transfer on the link.
        due: end of this transfer on the link.
        arrived: time at which gloo had delivered the values.
        entered: start of this rank's wait.
        released: end of this rank's wait.
    """

    op: str
    num_bytes: int
    launched: float
    peers: float
    free: float
    due: float
    arrived: float
    entered: float
    released: float

    @property
    def started(self) -> float:
        return max(self.peers, self.free)

    @property
    def seconds(self) -> float:
        """Duration on the link."""
        return self.due - self.started

    @property
    def late_peer(self) -> float:
        """The part of the wait that is due to ranks that launched later than this one."""
        lateness = self.started - max(self.launched, self.free)
        return min(lateness, self.released - self.entered)

    @property
    def exposed(self) -> float:
        """The wait without `late_peer`. It may include earlier transfers."""
        return self.released - self.entered - self.late_peer

    @property
    def hidden(self) -> float:
        """The part of `seconds` that is not exposed; negative if the wait lasted longer."""
        return self.seconds - self.exposed

    @property
    def is_slow(self) -> bool:
        """Whether gloo was slower than the link, so that the wait was gloo's and not the link's."""
        return self.arrived > max(self.due, self.entered)


@dataclass(frozen=True)
class Exposure:
    """Totals over the transfers of a run. Times are in seconds.

    Attributes:
        num_transfers: number of transfers.
        total: total time on the link.
        exposed: time in waits, without `late_peer`.
        late_peer: time in waits because another rank launched later than this one.
        num_slow: number of transfers in which gloo was slower than the link. If there are many,
            make the link slower or the tensors smaller.
    """

    num_transfers: int
    total: float
    exposed: float
    late_peer: float
    num_slow: int

    @classmethod
    def of(cls, transfers: Iterable[Transfer]) -> "Exposure":
        given = list(transfers)
        return cls(
            num_transfers=len(given),
            total=sum(t.seconds for t in given),
            exposed=sum(t.exposed for t in given),
            late_peer=sum(t.late_peer for t in given),
            num_slow=sum(t.is_slow for t in given),
        )

    @classmethod
    def by_kind(cls, transfers: Iterable[Transfer]) -> "dict[str, Exposure]":
        """The same for each `Transfer.op`, in alphabetical order."""
        given = sorted(transfers, key=lambda transfer: transfer.op)
        return {op: cls.of(same) for op, same in groupby(given, lambda transfer: transfer.op)}

    @property
    def hidden(self) -> float:
        """The part of `total` that is not exposed."""
        return max(0.0, self.total - self.exposed)

    @property
    def hidden_fraction(self) -> float:
        """`hidden` ÷ `total`; 1 without transfers."""
        return self.hidden / self.total if self.total else 1.0
