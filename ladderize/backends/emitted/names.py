"""Map names of the emitted program to storages."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Storage = str
"""A piece of memory, named after the first buffer that held it."""
Storages = frozenset[Storage]
Value = Storages | tuple["Value", ...]
"""The value of a name: the storages of a tensor, or a sequence of values."""

NOTHING: Storages = frozenset()


def storages_of(value: Value) -> Storages:
    """Every storage in a value, however nested."""
    if isinstance(value, frozenset):
        return value
    return NOTHING.union(*map(storages_of, value))


def union(values: Iterable[Value]) -> Storages:
    return NOTHING.union(*map(storages_of, values))


@dataclass
class Names:
    """The names of the function being read and of its callers."""

    frames: list[dict[str, Value]] = field(default_factory=lambda: [{}])
    given: set[Storage] = field(default_factory=set)

    def __getitem__(self, name: str) -> Value:
        return self.frames[-1].get(name, NOTHING)

    def __setitem__(self, name: str, value: Value) -> None:
        self.frames[-1][name] = value

    @contextmanager
    def call(self, **parameters: Value) -> Iterator[None]:
        """Enter the names of a function that is read inline."""
        self.frames.append(dict(parameters))
        yield
        self.frames.pop()

    def new_storage(self, name: str) -> Storages:
        """A new storage. It may get a number, because partitions reuse buffer names."""
        storage, count = name, 1
        while storage in self.given:
            count += 1
            storage = f"{name}#{count}"
        self.given.add(storage)
        return frozenset({storage})

    def drop(self, name: str) -> Storages:
        """Forget a name; return the storages that no name holds any longer."""
        held = storages_of(self.frames[-1].pop(name, NOTHING))
        return held - union(value for frame in self.frames for value in frame.values())
