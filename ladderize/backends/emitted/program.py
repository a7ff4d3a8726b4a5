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
        name: the collective (`all_reduce`, without a trailing `_`) or the kernel.
        line: the line of the source, from 1; `text` is that line.
        reads: the storages read.
        writes: each storage written -> the storages that its content now comes from.
        pending: of a launch, the storages in flight until waited for; of a wait, those waited for.
        group: of a launch, the process group as the source writes it.
        partition: which partition's CUDA graph it is captured in, "" for none.
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
        """The storages whose content or memory this event needs or changes."""
        return self.reads | self.writes.keys()

    @property
    def channel(self) -> tuple[str, str]:
        """Of a launch: its kind of collective and its group."""
        return self.name, self.group


@dataclass(frozen=True)
class Program:
    events: tuple[Event, ...]
    inputs: Storages


@dataclass
class Recorder:
    """Events in the order in which they are read off the source.

    Attributes:
        lines: the source.
        stale: memory that was reused, and not touched since.
        partition: the one that is being read.
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
        """What stays of a storage's old content when part of it is written."""
        return NOTHING if storage in self.stale else frozenset({storage})
