"""The edits of calls that compute with this rank's experts, from the results of the rules.

visit of grouped_mm, computed = own rows of 8 experts    ExpertProduct, 4 experts of 8 on 2 ranks
visit of view, masked = {y: own rows of 8 experts}       OwnOnly, of y
"""

from collections.abc import Iterable, Iterator

from ladderize.sharding.edits import ExpertEdit, ExpertLookup, ExpertProduct, OwnOnly
from ladderize.sharding.placement import IndexInput, OwnRows
from ladderize.sharding.visit import Visit


def expert_edits(visit: Visit, num_ranks: int) -> Iterator[ExpertEdit]:
    """The edits of one call."""

    def own(rows: OwnRows) -> tuple[str, int]:
        first = IndexInput.first_of(rows.num_experts, num_ranks)
        return first.name, rows.num_experts // num_ranks

    if (rows := visit.computed) is not None:
        kind = ExpertProduct if rows.by_ends else ExpertLookup
        yield kind(visit.node, rows, *own(rows))
    for operand, rows in visit.masked.items():
        yield OwnOnly(operand, rows, *own(rows), visit.node)


def first_experts(edits: Iterable[ExpertEdit], num_ranks: int) -> Iterator[IndexInput]:
    """The inputs with the index of a rank's first expert, one for each number of experts."""
    for num_experts in dict.fromkeys(edit.rows.num_experts for edit in edits):
        yield IndexInput.first_of(num_experts, num_ranks)
