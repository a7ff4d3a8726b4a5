"""What a stale read leaves out: the one place that decides it.

                x3 = x2 + attention        x4 = x3 + (routed + shared)        x5 = x4 + attention
    ladder      experts read x2            attention reads x3
    farskip     experts read x2            attention reads x3 + shared

A branch of a ladder leaves out all that the `staleness` blocks before it added. With FarSkip's
connectivity (arXiv 2511.11505) it leaves out what is in flight of the block before it, and nothing
else; but experts leave out all of it, so that their dispatch need not wait for it. In AMD's
Instella-MoE a layer without experts does the latter too.

With `variant="parallel"` the branches of a layer leave out all that the layer added before them,
as `layer_mates.py` says.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from ladderize.config.connectivity import INSTELLA, LADDER
from ladderize.config.options import LadderConfig
from ladderize.config.residual_form import PARALLEL, desync_period
from ladderize.streams.block import Block, stale_sources
from ladderize.streams.contributions import Contribution, Contributions
from ladderize.streams.layer_mates import layer_sources
from ladderize.streams.summands import Summand


@dataclass(frozen=True)
class LeftOut:
    """What a stale read leaves out of one block.

    Attributes:
        block: that is no longer read.
        summands: what is left out of it; all that it adds if there are none.
    """

    block: Block
    summands: tuple[Summand, ...] = ()

    @property
    def nodes(self) -> frozenset[Node]:
        """The nodes that compute it."""
        return frozenset().union(*(s.nodes for s in self.summands)) or self.block.members


@dataclass(frozen=True, eq=False)
class Connectivity:
    """What the branches of a model leave out.

    Attributes:
        name: one of `NAMES` (config/connectivity.py), or that of a variant.
        staleness: how many blocks earlier a branch of a ladder reads.
        contributions: of each block, unless it is a ladder.
    """

    name: str = LADDER
    staleness: int = 1
    contributions: Contributions = field(default_factory=dict)

    @classmethod
    def of(cls, config: LadderConfig, contributions: Contributions) -> "Connectivity":
        name = config.connectivity if config.variant == LADDER else config.variant
        return cls(name, config.staleness, contributions)

    @property
    def is_ladder(self) -> bool:
        return self.name == LADDER

    @property
    def splits(self) -> dict[Block, Contribution]:
        """The blocks of which a part is in flight, not all."""
        return {block: own for block, own in self.contributions.items() if own.is_split}

    def sources(self, blocks: Sequence[Block], chosen: Collection[int]) -> dict[int, int]:
        """For each block that leaves out whole blocks: the one whose anchor it reads instead."""
        if self.name == PARALLEL:
            return layer_sources(blocks, chosen)
        if desync_period(self.name):
            return {}
        earlier = stale_sources(blocks, chosen, self.staleness)
        if self.is_ladder:
            return earlier
        pairs = {index: (blocks[source], blocks[index]) for index, source in earlier.items()}
        return {i: pair[0].index for i, pair in pairs.items() if self._leaves_out_all(*pair)}

    def parts(self, blocks: Sequence[Block], chosen: Collection[int]) -> dict[int, Contribution]:
        """For each block that leaves out a part of the one before it: what that one adds."""
        if not self.contributions:
            return {}
        pairs = {i: blocks[source] for i, source in stale_sources(blocks, chosen, 1).items()}
        return {
            index: self.contributions[before]
            for index, before in pairs.items()
            if self.contributions[before].is_split
            and not self._leaves_out_all(before, blocks[index])
        }

    def _leaves_out_all(self, before: Block, block: Block) -> bool:
        own, other = self.contributions[block], self.contributions[before]
        if own.has_experts or (other.in_flight and not other.landed):
            return True
        is_in_its_layer = block.layer is not None and block.layer == before.layer
        return self.name == INSTELLA and is_in_its_layer and not other.in_flight
