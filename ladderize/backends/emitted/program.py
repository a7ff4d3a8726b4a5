"""An emitted program as ordered events: launches, waits, compute, copies, frees and reuses."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ladderize.backends.emitted.names import NOTHING, Storage, Storages


class EventKind(Enum):
    LAUNCH = "launch"
    WAIT = "wait"
    COMPUTE = "compute"
    COPY = "copy"
    REUSE = "reuse"
    FREE = "free"
    UNPACK = "unpack"
    ALIGN = "align"
    RETURN = "return"


@dataclass(frozen=True, eq=False)
class Event:
    """One step of the program.

    Attributes:
        kind: kind of the event.
        name: name of the collective (`all_reduce`, without a trailing `_`) or the kernel.
        line, text: number of the source line, from 1, and the line itself.
        reads: storages that are read.
        writes: storages that are written, each with the storages that its content depends on.
        pending: storages that a launch puts in flight, or that a wait waits for.
        group: process group of a launch, as written in the source.
        partition: graph partition whose CUDA graph captures it, "" for none.
    """

    kind: EventKind
    name: str
    line: int
    text: str
    reads: Storages = NOTHING
    writes: Mapping[Storage, Storages] = field(default_factory=dict)
    pending: Storages = NOTHING
    group: str = ""
    partition: str = ""

    @property
    def touches(self) -> Storages:
        """The storages that this event reads or writes."""
        return self.reads | self.writes.keys()

    @property
    def channel(self) -> tuple[str, str]:
        """The collective and the group of a launch."""
        return self.name, self.group


@dataclass(frozen=True)
class Program:
    events: tuple[Event, ...]
    inputs: Storages


@dataclass
class Recorder:
    """Collects events in the order of the source.

    Attributes:
        lines: lines of the source.
        events: events so far.
        stale: reused memory that was not accessed since.
        partition: graph partition that is being read.
    """

    lines: Sequence[str]
    events: list[Event] = field(default_factory=list)
    stale: set[Storage] = field(default_factory=set)
    partition: str = ""

    def add(
        self,
        kind: EventKind,
        name: str,
        node: ast.AST,
        reads: Storages = NOTHING,
        writes: Mapping[Storage, Storages] | None = None,
        pending: Storages = NOTHING,
        group: str = "",
    ) -> None:
        line: int = getattr(node, "lineno", 0)
        text = self.lines[line - 1].strip()
        event = Event(kind, name, line, text, reads, writes or {}, pending, group, self.partition)
        self.events.append(event)
        self.stale -= event.touches

    def kept(self, storage: Storage) -> Storages:
        """The old content that a partial write to `storage` keeps."""
        return NOTHING if storage in self.stale else frozenset({storage})
