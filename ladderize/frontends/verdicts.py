"""A rank's verdict on a graph, as text that the ranks of a group compare.

3 of 4 blocks read stale                      the headline
staleness = 2                                 options, versions and blocks, which shape the graph
ladderize::reduce float32[2, 6, 32] at layers.0.mlp.down_proj  reads -1 -7
                                              one line per op, with tensors that ranks exchange
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
# Separates an op from its operands, which are numbered in lines back: an extra op changes many.
_READS = "  reads "


@dataclass(frozen=True)
class Verdict:
    """A description of what one rank is about to do.

    Attributes:
        text: headline and lines that must be the same on all ranks that compile at the same time.
        sequence: text that must also be the same on ranks that compiled the graph at another time,
            for other sizes or in another grad mode: options and collectives in order. None if all
            ranks compile at the same time.
    """

    text: str
    sequence: str | None = None

    @property
    def headline(self) -> str:
        return self.text.partition("\n")[0]


def settings_of(config: LadderConfig) -> list[str]:
    """Versions and options, without those that may differ between ranks."""
    private = ("debug_dir", "python", "mesh")
    known = (*versions(), *changed_options(config))
    return [f"{name} = {value}" for name, value in known if name not in private]


def describe_graph(
    gm: GraphModule, headline: str, settings: Iterable[str], group_name: str
) -> Verdict:
    """The verdict for `gm`, which is the same on all ranks that can run it together.

    Constants are left out, because they may be a rank's offset into a sharded vocabulary, and so
    are local shapes, because shards may be uneven. Shapes that must agree are included: those of
    all-reduced tensors and of whole DTensors. Symbolic sizes have the values of this call.
    """
    head = [headline, *settings]
    lines, sequence = list(head), list(head)
    numbers: dict[Node, int] = {}
    # Size arithmetic is left out: only graphs with symbolic sizes have it.
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
    """The tensors with sizes that must be the same on all ranks."""
    if group_name_of(node) == group_name and (is_all_reduce(node) or own_launches(node)):
        return [tensor for source in node.all_input_nodes for tensor in ops.tensors(source)]
    return dtensors(node)


def _sizes(tensor: Tensor) -> list[Any]:
    return [compat.hint(size) if compat.has_hint(size) else "?" for size in tensor.shape]


def show_differences(texts: Mapping[int, str]) -> Iterator[str]:
    """Every rank's headline, or its full failure; then the differences between two graphs.

    Args:
        texts: for each rank, the text of its verdict, or the reason why there is none.
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
    """The differences between two texts below the headline, with one line of context."""
    old, new = (
        [line if with_reads else line.partition(_READS)[0] for line in text.splitlines()[1:]]
        for text in (expected, found)
    )
    return list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]


def _place(line: str) -> str:
    """A source line without the parts that may differ between ranks.

    These are folders, because machines may have other installation paths, and generated code, which
    each process numbers in its own order: `<eval_with_key>.7:12`.
    """
    return "" if line.startswith("<") else line.rpartition("/")[2]
