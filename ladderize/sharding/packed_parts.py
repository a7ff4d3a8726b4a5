"""The placements of packed parameters during the analysis, as the unpacked weights need them.

demand(w, sharded on dim 1) ── NeedsUnpacked ── divide ── q, scales: sharded on dim 1, g_idx: whole
ban(scales)                 ── release ── all parameters that w is unpacked from are whole
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from ladderize.sharding.rules.unpacking import PartsBehind
from ladderize.sharding.statics import Unpacked
from ladderize.sharding.values import NeedsUnpacked, Origin, Value


@dataclass
class PackedParts:
    """The unpacked weights, and the placements of their sources.

    Attributes:
        weights: computation of each unpacked weight.
        num_ranks: number of ranks.
        placed: placements of parameters, and of arange calls that count the entries of a part.
    """

    weights: Mapping[Node, Unpacked]
    num_ranks: int
    placed: dict[Node, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._made_from: dict[Node, list[Unpacked]] = {}
        for whole in self.weights.values():
            for parameter in whole.parameters:
                self._made_from.setdefault(parameter, []).append(whole)

    def made_from(self, parameter: Node) -> Sequence[Unpacked]:
        """The weights that are computed from a parameter."""
        return self._made_from.get(parameter, ())

    def with_it(self, parameter: Node) -> list[Node]:
        """A parameter and, if it is packed, the other parameters of its weights."""
        wholes = (whole.parameters for whole in self.made_from(parameter))
        return list(dict.fromkeys([parameter, *(p for held in wholes for p in held)]))

    def divide(self, needed: NeedsUnpacked) -> str | None:
        """Place the sources of a weight; returns the reason if that is not possible."""
        whole = self.weights[needed.weight]
        found = PartsBehind.of(whole, needed.shard, self.num_ranks)
        size = needed.shard.size if needed.is_of_outputs else 0
        origins = (Origin(whole.main, 0, size),)
        placed = {source: Value(shard, origins) for source, shard in found.placed.items()}
        if found.refusal is None and placed.items() <= self.placed.items():
            return "the weight has another placement than its sources"
        self.release(whole)
        if found.refusal is None:
            self.placed.update(placed)
        return found.refusal

    def release(self, whole: Unpacked) -> None:
        """Make all sources of a weight whole."""
        for source in (*whole.parameters, *whole.nodes):
            self.placed.pop(source, None)
