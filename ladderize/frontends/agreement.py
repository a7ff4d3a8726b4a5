"""Let all ranks of a group agree, before the first collective, that they compile the same thing.

A rank with another graph would launch other collectives: wrong values, or a hang. The ranks compare
notes through the store of the process group, which needs no collective, no device and has timeouts.
"""

import difflib
import hashlib
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.errors import Blocker, LadderError, module_path, source_line
from ladderize.graph import ops
from ladderize.graph.collectives import (
    dtensors,
    every_node,
    group_name_of,
    is_all_reduce,
)

TIMEOUT = timedelta(minutes=5)
# Backends of groups whose one process stands in for all ranks: torch's and that of tools/emulation.
_ALONE = frozenset({"fake", "stand_in"})
MAX_LINES = 24
# Between what an op is and what it reads, counted in lines back: one op more changes many of these.
_READS = "  reads "


class DisagreementError(LadderError):
    """The ranks of a group came to different verdicts. Raised on all of them, always."""


def agree(verdicts: Mapping[dist.ProcessGroup, str]) -> None:
    """Return once every rank of each group has come to the same verdict.

    Args:
        verdicts: for each group, of which every rank must call this equally often, what this rank
            is about to do: `describe_graph`, the hash of a plan, or why it does nothing.

    Raises:
        DisagreementError: on every rank of a group whose ranks differ or of which one is missing.
            It shows where the verdict of another rank departs from that of the first.
    """
    asked = {g: text for g, text in verdicts.items() if dist.get_backend(g) not in _ALONE}
    notes = [_Note(g, text) for g, text in asked.items()]
    for note in notes:
        note.publish()
    for note in notes:
        note.compare()


class _Note:
    """One rank's verdict, in the store under `ladderize/GROUP/ROUND/RANK`."""

    def __init__(self, group: dist.ProcessGroup, verdict: str) -> None:
        self.group, self.verdict = group, verdict
        self.ranks = dist.get_process_group_ranks(group)
        name = f"{group.group_name}/{','.join(map(str, self.ranks))}"
        self.store = compat.default_store()
        # How often this rank has asked is kept in the store, which lives as long as its groups.
        asked = self.store.add(f"ladderize/{name}/asked/{dist.get_rank()}", 1)
        self.prefix = f"ladderize/{name}/{asked}"
        self.deadline = time.monotonic() + TIMEOUT.total_seconds()

    def publish(self) -> None:
        key = f"{self.prefix}/{dist.get_rank()}"
        self.store.set(f"{key}/text", zlib.compress(self.verdict.encode()))
        self.store.set(key, _digest(self.verdict))

    def compare(self) -> None:
        digests = {rank: self._read(str(rank)) for rank in self.ranks}
        if set(digests.values()) == {_digest(self.verdict).encode()}:
            return
        texts = {rank: self._text(rank) if digests[rank] else _silence() for rank in self.ranks}
        raise DisagreementError(
            f"The ranks of group {self.group.group_name!r} do not agree on what to compile:",
            map(Blocker, _differences(texts)),
            "give every rank the same model, inputs of the same shape, and the same options. Where "
            "the model asks for its rank (`if rank == 0: y = y + bias`), let all ranks do the same "
            "and multiply by zero on those that should not",
        )

    def _text(self, rank: int) -> str:
        found = self._read(f"{rank}/text")
        return _silence() if found is None else zlib.decompress(found).decode()

    def _read(self, key: str) -> Any:
        """What the store holds; None if nobody has put it there by the deadline."""
        key, left = f"{self.prefix}/{key}", self.deadline - time.monotonic()
        try:
            self.store.wait([key], timedelta(seconds=max(left, 0.1)))
        except (dist.DistStoreError, RuntimeError):  # RuntimeError: FileStore, HashStore
            return None
        return self.store.get(key)


def _silence() -> str:
    return f"no answer within {TIMEOUT.total_seconds():.0f} s (it did not compile this graph)"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _differences(texts: Mapping[int, str]) -> Iterator[str]:
    """The first rank's verdict, then what is different on each rank that departs from it."""
    first, expected = next(iter(texts.items()))
    for rank, text in texts.items():
        yield f"rank {rank}: {text.splitlines()[0]}"
    rank, text = next((r, t) for r, t in texts.items() if t != expected)
    lines = _diff(expected, text, with_reads=False) or _diff(expected, text, with_reads=True)
    if lines:
        shown = [f"rank {first} (-) and rank {rank} (+):", *lines[:MAX_LINES]]
        shown += ["…"] * (len(lines) > MAX_LINES)
        yield "\n      ".join(shown)


def _diff(expected: str, found: str, *, with_reads: bool) -> list[str]:
    """What changes from one `describe_graph` to another, with a line of context."""
    old, new = (
        [line if with_reads else line.partition(_READS)[0] for line in text.splitlines()[1:]]
        for text in (expected, found)
    )
    return list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]


def describe_graph(gm: GraphModule, headline: str, group: dist.ProcessGroup) -> str:
    """`gm` as text that is the same on every rank of `group` if they launch the same collectives.

    One line an op. Constants are left out: a rank's offset into a sharded vocabulary is one. So
    are the shapes of what a rank holds: uneven shards have different ones. Those that must agree
    are kept: of what is all-reduced, and of DTensors as a whole.
    """
    lines = [headline]
    numbers: dict[Node, int] = {}
    for count, node in enumerate(every_node(gm)):
        numbers[node] = count
        reads = " ".join(f"{numbers[n] - count}" for n in node.all_input_nodes if n in numbers)
        line = source_line(node).rpartition("/")[2]  # installed elsewhere on another machine
        where = " at ".join(filter(None, (module_path(node), line)))
        what = ops.op_name(node) or node.op
        parts = (what, _common_form(node, group.group_name), where)
        lines.append(" ".join(filter(None, parts)) + _READS + reads)
    return "\n".join(lines)


def _common_form(node: Node, group_name: str) -> str:
    values: Sequence[Any] = dtensors(node)
    if is_all_reduce(node) and group_name_of(node) == group_name:
        values = [tensor for source in node.all_input_nodes for tensor in ops.tensors(source)]
    return " ".join(f"{v.dtype}{list(v.shape)}" for v in values)
