"""What a rank is about to do with a graph, as text that the ranks of a group can compare.

3 of 4 blocks read stale                      the headline
staleness = 2                                 what shapes the graph: options, versions, blocks
ladderize::reduce float32[2, 6, 32] at layers.0.mlp.down_proj  reads -1 -7
                                              one line an op; what moves through it
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.config.options import LadderConfig
from ladderize.errors import module_path, source_line
from ladderize.graph import ops
from ladderize.graph.collectives import (
    dtensors,
    every_node,
    group_name_of,
    is_all_reduce,
    launched_by,
    own_launches,
)
from ladderize.report.publish import changed_options, versions

MAX_LINES = 24
# Between what an op is and what it reads, counted in lines back: one op more changes many of these.
_READS = "  reads "


@dataclass(frozen=True)
class Verdict:
    """What one rank is about to do.

    Attributes:
        text: a headline, and lines that every rank that compiles at the same time must share.
        sequence: what a rank shares with those that compiled the graph another time, for other
            sizes or in another grad mode: what shaped it, and its collectives in order. None if all
            ranks compile at the same time.
    """

    text: str
    sequence: str | None = None

    @property
    def headline(self) -> str:
        return self.text.partition("\n")[0]


def settings_of(config: LadderConfig) -> list[str]:
    """Versions and options, apart from what may differ from rank to rank."""
    private = ("debug_dir", "python", "mesh")
    known = (*versions(), *changed_options(config))
    return [f"{name} = {value}" for name, value in known if name not in private]


def describe_graph(
    gm: GraphModule, headline: str, settings: Iterable[str], group_name: str
) -> Verdict:
    """`gm` as a verdict that is the same on every rank of a group that may run it together.

    Constants are left out: a rank's offset into a sharded vocabulary is one. So are the shapes of
    what a rank holds: uneven shards have different ones. Those that must agree are kept: of what
    is all-reduced, and of DTensors as a whole; a symbolic size is the one of this call.
    """
    head = [headline, *settings]
    lines, sequence = list(head), list(head)
    numbers: dict[Node, int] = {}
    # Arithmetic on sizes is left out: only a graph of symbolic sizes holds it.
    for node in filter(ops.holds_tensor, every_node(gm)):
        count = numbers[node] = len(numbers)
        reads = " ".join(f"{numbers[n] - count}" for n in node.all_input_nodes if n in numbers)
        line = _place(source_line(node))
        where = " at ".join(filter(None, (module_path(node), line)))
        what = ops.op_name(node) or node.op
        moved = _moved(node, group_name)
        parts = (what, " ".join(f"{v.dtype}{_sizes(v)}" for v in moved), where)
        lines.append(" ".join(filter(None, parts)) + _READS + reads)
        if moved or _launches(node, group_name):
            dtypes = " ".join(str(value.dtype) for value in moved)
            sequence.append(" ".join(filter(None, (what, dtypes, where))))
    return Verdict("\n".join(lines), "\n".join(sequence))


def _launches(node: Node, group_name: str) -> bool:
    return group_name_of(node) == group_name and bool(launched_by(node) or own_launches(node))


def _moved(node: Node, group_name: str) -> Sequence[Tensor]:
    """The tensors whose sizes all ranks must share."""
    if group_name_of(node) == group_name and (is_all_reduce(node) or own_launches(node)):
        return [tensor for source in node.all_input_nodes for tensor in ops.tensors(source)]
    return dtensors(node)


def _sizes(tensor: Tensor) -> list[Any]:
    return [compat.hint(size) if compat.has_hint(size) else "?" for size in tensor.shape]


def show_differences(texts: Mapping[int, str]) -> Iterator[str]:
    """Every rank's headline, or its failure in full; then where two graphs differ.

    Args:
        texts: of the verdict of each rank, or why there is none.
    """
    for rank, text in texts.items():
        lines = text.splitlines()
        yield f"rank {rank}: " + _shortened(lines[:1] if _READS in text else lines)
    graphs = [(rank, text) for rank, text in texts.items() if _READS in text]
    others = [(rank, text) for rank, text in graphs if text != graphs[0][1]]
    if others:
        (first, expected), (rank, text) = graphs[0], others[0]
        lines = _diff(expected, text, with_reads=False) or _diff(expected, text, with_reads=True)
        yield _shortened([f"rank {first} (-) and rank {rank} (+):", *lines])


def _shortened(lines: Sequence[str]) -> str:
    return "\n      ".join([*lines[:MAX_LINES], *["…"] * (len(lines) > MAX_LINES)])


def _diff(expected: str, found: str, *, with_reads: bool) -> list[str]:
    """What changes from one text to another below the headline, with a line of context."""
    old, new = (
        [line if with_reads else line.partition(_READS)[0] for line in text.splitlines()[1:]]
        for text in (expected, found)
    )
    return list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]


def _place(line: str) -> str:
    """A source line without what differs from rank to rank.

    Folders, for ladderize may be installed elsewhere on another machine; and generated code, which
    is numbered in the order in which a process made it: `<eval_with_key>.7:12`.
    """
    return "" if line.startswith("<") else line.rpartition("/")[2]
