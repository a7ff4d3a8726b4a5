"""Check before the first collective that all ranks of a group compile the same graph.

A rank with another graph would launch other collectives, which gives wrong values or a hang. The
ranks compare notes through the store of the process group, which needs no collective and no device,
and has timeouts.

    rank 0 compiles ── note ──┐
                              ├── equal: both continue; otherwise `DisagreementError` on both
    rank 1 compiles ── note ──┘

A rank may compile alone, after `torch._dynamo.reset()` or for sizes that are new only to it. If all
ranks have agreed on the same collectives before, the others are running them, and this rank
continues after `GRACE`. Otherwise it waits for the others up to the timeout of their group.
"""

import contextlib
import hashlib
import logging
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch.distributed as dist

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.verdicts import Verdict, show_differences

logger = logging.getLogger("ladderize")

GRACE = timedelta(seconds=3)
# Backends with one process for all ranks: torch's fake backend and that of tools/emulation.
_ALONE = frozenset({"fake", "stand_in"})
# States of a note for one reader: read; its writer continued without the reader; or gave up.
_READ, _WITHDRAWN, _MISSED = "read", "withdrawn", "missed"
Groups = Collection[dist.ProcessGroup]
Absent = Mapping[dist.ProcessGroup, frozenset[int]]


class DisagreementError(LadderError):
    """The ranks of a group have different verdicts. Always raised on all of them."""


def agree(
    verdicts: Mapping[dist.ProcessGroup, Verdict], absent: Absent | None = None
) -> dict[dist.ProcessGroup, frozenset[int]]:
    """Return when all ranks of each group have the same verdict.

    Args:
        verdicts: verdict of this rank for each group.
        absent: ranks to leave out, as returned by an earlier call.

    Returns:
        For each group, the ranks that are not compiling now but have agreed on the same collectives
        before.

    Raises:
        DisagreementError: the ranks of a group differ, or one is missing. Raised on all ranks of
            the group, with the differences from the first rank's verdict.
    """
    notes = [
        _Note(group, verdict, (absent or {}).get(group, frozenset()))
        for group, verdict in verdicts.items()
        if dist.get_backend(group) not in _ALONE
    ]
    for note in notes:
        note.publish()
    return {note.group: note.compare() for note in notes}


@contextlib.contextmanager
def heard_by_all(groups: Groups, what: str, absent: Absent | None = None) -> Iterator[None]:
    """Raise errors from inside this context on the other ranks too, which would wait for this one.

    Args:
        groups: process groups of the other ranks.
        what: participle for the failure: refused, not lowered.
        absent: ranks to leave out.
    """
    try:
        yield
    except DisagreementError:
        raise
    except Exception as error:
        said = str(error) if isinstance(error, LadderError) else f"{type(error).__name__}: {error}"
        agree(dict.fromkeys(groups, Verdict(f"{what}: {said}")), absent)
        raise


def explain_failed_calls(
    run: Callable[..., Any], verdicts: Mapping[dist.ProcessGroup, Verdict]
) -> Callable[..., Any]:
    """Wrap `run`: if a collective in it fails, unread notes of other ranks explain the failure.

    Args:
        run: compiled graph.
        verdicts: verdicts that the ranks of each group agreed on when `run` was compiled.
    """
    asked = {g: v for g, v in verdicts.items() if dist.get_backend(g) not in _ALONE}
    if not asked:
        return run

    def call(*args: Any) -> Any:
        try:
            return run(*args)
        except RuntimeError as error:
            for group, verdict in asked.items():
                if others := _unread_notes(group):
                    raise DisagreementError(
                        "A collective failed while another rank compiled something else:",
                        map(Blocker, show_differences({dist.get_rank(): verdict.text, **others})),
                        "give every rank the same calls: same model, options and sizes",
                    ) from error
            raise

    return call


class _Note:
    """One rank's verdict, in the store under `ladderize/GROUP/RANK/NUMBER`.

    Each rank numbers its own notes, and reads the notes of each other rank in order. For each
    reader, a note is either read or withdrawn, whichever comes first.
    """

    def __init__(self, group: dist.ProcessGroup, verdict: Verdict, absent: frozenset[int]) -> None:
        self.group, self.verdict, self.absent = group, verdict, absent
        self.me = dist.get_rank()
        self.ranks = dist.get_process_group_ranks(group)
        self.store = compat.default_store()
        self.prefix = _prefix(group)
        self.timeout = compat.group_timeout(group)
        # Numbers are kept in the store, which has the lifetime of its groups.
        number = self.store.add(f"{self.prefix}/written/{self.me}", 1)
        self.key = f"{self.prefix}/{self.me}/{number}"

    def publish(self) -> None:
        for rank in self.absent:
            self._claim(self.key, rank, _WITHDRAWN)
        text = self.verdict.text.encode()
        self.store.set(f"{self.key}/text", zlib.compress(text))
        self.store.set(self.key, _digest(text))

    def compare(self) -> frozenset[int]:
        """Compare with the notes of the other ranks. Returns the ranks that are not compiling."""
        others = [rank for rank in self.ranks if rank not in {self.me, *self.absent}]
        grace = min(GRACE, self.timeout / 2)
        keys = self._notes_of(others, grace)
        late = [rank for rank, key in keys.items() if key is None]
        if self._is_known:
            keys |= {rank: self._withdraw_from(rank) for rank in late}
        elif late:
            seconds = self.timeout.total_seconds()
            logger.warning(
                f"Rank {self.me} waits up to {seconds:.0f} s for ranks {late} to compile a graph: "
                f"{self.verdict.headline}"
            )
            keys |= self._notes_of(late, self.timeout - grace)
        keys[self.me] = self.key
        silent = {rank for rank, key in keys.items() if key is None}
        differ = {self.store.get(key) for key in keys.values() if key is not None}
        if len(differ) > 1 or (silent and not self._is_known):
            for rank in silent:
                self._claim(self.key, rank, _MISSED)
            raise self._disagreement({rank: keys[rank] for rank in self.ranks if rank in keys})
        if self.verdict.sequence is not None and not silent:
            self.store.set(self._known_key, "1")
        return self.absent | silent

    @property
    def _known_key(self) -> str:
        return f"{self.prefix}/known/{_digest((self.verdict.sequence or '').encode())}"

    @cached_property
    def _is_known(self) -> bool:
        """Whether all ranks have agreed on these collectives before."""
        return self.verdict.sequence is not None and self.store.check([self._known_key])

    def _notes_of(self, ranks: Collection[int], patience: timedelta) -> dict[int, str | None]:
        """The key of each rank's next note; None for ranks that write none in time."""
        deadline = time.monotonic() + patience.total_seconds()
        return {rank: self._next_note_of(rank, deadline) for rank in ranks}

    def _next_note_of(self, rank: int, deadline: float) -> str | None:
        """The key of the first note of `rank` that was not withdrawn; None after the deadline."""
        count = f"{self.prefix}/read/{self.me}/{rank}"
        while True:
            key = f"{self.prefix}/{rank}/{self.store.add(count, 0) + 1}"
            if not _appears(self.store, key, deadline):
                return None
            self.store.add(count, 1)
            if self._claim(key, self.me, _READ) == _READ:
                return key

    def _withdraw_from(self, rank: int) -> str | None:
        """Continue without `rank`; returns the key of its note if it has just read this one."""
        if self._claim(self.key, rank, _WITHDRAWN) == _WITHDRAWN:
            return None
        return self._notes_of([rank], self.timeout)[rank]

    def _claim(self, key: str, reader: int, claim: str) -> str:
        """Set the state of a note for one reader to `claim`, unless set already; returns it."""
        found: bytes = self.store.compare_set(f"{key}/for/{reader}", "", claim)
        return found.decode()

    def _disagreement(self, keys: Mapping[int, str | None]) -> DisagreementError:
        silence = (
            f"no answer within {self.timeout.total_seconds():.0f} s (it did not compile this graph)"
        )
        texts = {r: _read(self.store, key) if key else silence for r, key in keys.items()}
        return DisagreementError(
            f"The ranks of group {self.group.group_name!r} do not agree on what to compile:",
            map(Blocker, show_differences(texts)),
            "give every rank the same model, options and input shapes. If the model branches on "
            "its rank (`if rank == 0: y = y + bias`), run the op on all ranks and multiply by zero "
            "on those that should not take part",
        )


def _appears(store: Any, key: str, deadline: float) -> bool:
    """Whether `key` is in the store by the deadline. Polls, because waiting on a store warns."""
    pause = 0.001
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return True


def _unread_notes(group: dist.ProcessGroup) -> dict[int, str]:
    """The verdicts of the ranks that are waiting for this one."""
    store, prefix, me = compat.default_store(), _prefix(group), dist.get_rank()
    found = {}
    with contextlib.suppress(dist.DistStoreError, RuntimeError):  # the store may be gone too
        for rank in dist.get_process_group_ranks(group):
            key = f"{prefix}/{rank}/{store.add(f'{prefix}/read/{me}/{rank}', 0) + 1}"
            if rank != me and store.check([key]) and _is_open(store, f"{key}/for/{me}"):
                found[rank] = _read(store, key)
    return found


def _is_open(store: Any, claim: str) -> bool:
    return not store.check([claim]) or store.get(claim) == _MISSED.encode()


def _prefix(group: dist.ProcessGroup) -> str:
    ranks = ",".join(map(str, dist.get_process_group_ranks(group)))
    return f"ladderize/{group.group_name}/{ranks}"


def _read(store: Any, key: str) -> str:
    """The text of a note."""
    return zlib.decompress(store.get(f"{key}/text")).decode()


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
