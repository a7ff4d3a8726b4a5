"""The manifest of a directory of shards: all fields with their types and bounds.

manifest.json ── JSON of a bounded size ── its own hash ── `Manifest` ── StateEntry, options, files
"""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StringConstraints, model_validator

from ladderize.config.records import StrictRecord, Text, parse_record
from ladderize.frontends.sharded.state import KINDS, StateEntry
from ladderize.sharding.placement import Replicate, Shard

MOST_RANKS = 4096
_DTYPES = {
    str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)
}

Name = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
Size = Annotated[int, Field(ge=0, le=2**40)]
Index = Annotated[int, Field(ge=0, le=2**31)]
Row = Annotated[int, Field(ge=-(2**40), le=2**40)]


class FileRecord(StrictRecord):
    """Size and hash of a file in the directory."""

    bytes: Annotated[int, Field(ge=0, le=2**50)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ShardRecord(StrictRecord):
    """A `Shard` placement."""

    dim: Annotated[int, Field(ge=0, lt=64)]
    chunks: Annotated[list[Size], Field(min_length=1, max_length=65_536)]
    whole: Annotated[list[Index], Field(max_length=65_536)]


class EntryRecord(StrictRecord):
    """A `StateEntry`."""

    name: Name
    kind: Text
    shape: Annotated[list[Size], Field(max_length=64)]
    dtype: Text
    is_persistent: bool
    requires_grad: bool
    aliases: Annotated[list[Name], Field(max_length=1_000)]
    rows: Annotated[list[list[Row]], Field(max_length=MOST_RANKS)]
    shard: ShardRecord | None = None

    @model_validator(mode="after")
    def _fits(self) -> "EntryRecord":
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is not one of {', '.join(KINDS)}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"{self.dtype!r} is not a torch dtype")
        if self.shard is None:
            return self
        dim, chunks = self.shard.dim, self.shard.chunks
        if dim >= len(self.shape) or sum(chunks) != self.shape[dim]:
            raise ValueError(f"chunks of {sum(chunks)} on dim {dim} of a tensor of {self.shape}")
        if any(number >= len(chunks) for number in self.shard.whole):
            raise ValueError(f"chunk {max(self.shard.whole)} of {len(chunks)} is whole")
        return self

    @classmethod
    def of(cls, entry: StateEntry) -> "EntryRecord":
        placement = entry.placement
        return cls(
            name=entry.name,
            kind=entry.kind,
            shape=list(entry.shape),
            dtype=str(entry.dtype).removeprefix("torch."),
            is_persistent=entry.is_persistent,
            requires_grad=entry.requires_grad,
            aliases=list(entry.aliases),
            rows=list(map(list, entry.rows)),
            shard=ShardRecord(
                dim=placement.dim, chunks=list(placement.chunks), whole=list(placement.whole)
            )
            if isinstance(placement, Shard)
            else None,
        )

    def entry(self) -> StateEntry:
        shard = self.shard
        return StateEntry(
            name=self.name,
            kind=self.kind,
            shape=tuple(self.shape),
            dtype=_DTYPES[self.dtype],
            placement=Replicate()
            if shard is None
            else Shard(shard.dim, tuple(shard.chunks), tuple(shard.whole)),
            is_persistent=self.is_persistent,
            requires_grad=self.requires_grad,
            aliases=tuple(self.aliases),
            rows=tuple(map(tuple, self.rows)),
        )


class PlanRecord(StrictRecord):
    """Description of the rewrite, as text."""

    lines: Annotated[list[Text], Field(min_length=1, max_length=1_000_000)]


class Manifest(StrictRecord):
    """The content of a manifest, without its format and its own hash."""

    versions: dict[Literal["ladderize", "torch"], Text]
    options: dict[Name, Text]
    engines: dict[Name, Any] | None
    num_ranks: Annotated[int, Field(ge=1, le=MOST_RANKS)]
    plan: PlanRecord
    entries: list[EntryRecord]
    files: dict[Name, FileRecord]

    @model_validator(mode="after")
    def _fits(self) -> "Manifest":
        names = [name for entry in self.entries for name in (entry.name, *entry.aliases)]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"entries with the same name: {', '.join(twice[:3])}")
        for entry in self.entries:
            self._check_ranks(entry)
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{name!r} is not a file of this directory")
        return self

    def _check_ranks(self, entry: EntryRecord) -> None:
        if entry.rows and (len(entry.rows) != self.num_ranks or len(set(map(len, entry.rows))) > 1):
            raise ValueError(f"{entry.name} has {len(entry.rows)} rows for {self.num_ranks} ranks")
        if (entry.kind == "index") != bool(entry.rows):
            raise ValueError(f"{entry.name} is of kind {entry.kind} with {len(entry.rows)} rows")
        for number, length in enumerate(entry.shard.chunks if entry.shard else ()):
            assert entry.shard is not None
            if number not in entry.shard.whole and length % self.num_ranks:
                raise ValueError(
                    f"{entry.name}: {self.num_ranks} ranks do not divide {length} evenly"
                )


def parse_manifest(data: Any, path: Path) -> Manifest:
    """Parse the manifest in `data`, read from `path`.

    Raises:
        LadderError: lists fields that are missing, unknown, of another type or out of bounds.
    """
    return parse_record(Manifest, data, path, "write the directory again")
