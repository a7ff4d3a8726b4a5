"""What is known of a transfer afterwards, and what many of them come to. Times are seconds of
`time.perf_counter`, which on Linux is one clock for all processes of a machine.

    launched        peers              started                 due
       │ by this rank  │ by the last one   │ the link is free    │
    ───┴───────────────┴───────────────────┴─────────────────────┴──────
                                                   └─── wait ────┘
                                                entered      released

Of the wait, as much is the fault of a late peer as the transfer would have started earlier had all
ranks launched when this one did; the rest is exposed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Transfer:
    """One collective over an emulated link.

    Attributes:
        op: kind of collective, as `Link.seconds` names it: "all_reduce", "all_gather", …
        num_bytes: of the whole tensor; of an all-to-all what this rank is given.
        launched: by this rank.
        peers: when the last rank launched it.
        free: when the link was through with the transfer before it.
        due: when the link is through with this one.
        arrived: when gloo had brought the values.
        entered: when this rank began to wait for it.
        released: when the wait was over.
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
        """What the link took."""
        return self.due - self.started

    @property
    def late_peer(self) -> float:
        """Of the wait: what it would not have lasted had all ranks launched when this one did."""
        lateness = self.started - max(self.launched, self.free)
        return min(lateness, self.released - self.entered)

    @property
    def exposed(self) -> float:
        """The wait without `late_peer`. It may last through transfers before this one."""
        return self.released - self.entered - self.late_peer

    @property
    def hidden(self) -> float:
        """What of `seconds` is not exposed; below 0 where the wait lasted longer than that."""
        return self.seconds - self.exposed

    @property
    def is_slow(self) -> bool:
        """Whether gloo needed longer than the link: the wait was no emulation then."""
        return self.arrived > max(self.due, self.entered)


@dataclass(frozen=True)
class Exposure:
    """What the transfers of a run come to, in seconds.

    Attributes:
        num_transfers: how many there were.
        total: what the link took for all of them.
        exposed: spent in waits, without `late_peer`.
        late_peer: spent in waits because another rank launched later than this one.
        num_slow: transfers that gloo was slower at than the link: make the link slower, or the
            tensors smaller, if there are many.
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
        """What of `total` no wait lasted through."""
        return max(0.0, self.total - self.exposed)

    @property
    def hidden_fraction(self) -> float:
        """Of `total`; 1 where nothing was transferred."""
        return self.hidden / self.total if self.total else 1.0
