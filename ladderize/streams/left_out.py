"""Decide what a stale read leaves out.

                x3 = x2 + attention        x4 = x3 + (routed + shared)        x5 = x4 + attention
    ladder      experts read x2            attention reads x3
    farskip     experts read x2            attention reads x3 + shared

A branch of a ladder leaves out everything that the `staleness` blocks before it added. With
FarSkip's connectivity (arXiv 2511.11505) it leaves out only the summands in flight of the block
before it; experts leave out that whole block, so that their dispatch does not wait for it. In AMD's
Instella-MoE, the MLP of a layer without experts leaves out its layer's attention, too.

With `variant="parallel"`, the branches of a layer leave out everything that the layer added before
them (`layer_mates.py`).
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
    """The part of one block that a stale read leaves out.

    Attributes:
        block: block that is left out, in part or as a whole.
        summands: summands that are left out; empty if all are.
    """

    block: Block
    summands: tuple[Summand, ...] = ()

    @property
    def nodes(self) -> frozenset[Node]:
        """The nodes that compute the part."""
        return frozenset().union(*(s.nodes for s in self.summands)) or self.block.members


@dataclass(frozen=True, eq=False)
class Connectivity:
    """The rule for what the branches of a model leave out.

    Attributes:
        name: one of `NAMES` (config/connectivity.py), or the name of a variant.
        staleness: number of blocks by which a branch of a ladder reads earlier.
        contributions: contribution of each block; empty for a ladder.
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
        """The contributions with both summands in flight and landed ones."""
        return {block: own for block, own in self.contributions.items() if own.is_split}

    def sources(self, blocks: Sequence[Block], chosen: Collection[int]) -> dict[int, int]:
        """For each block that leaves out whole blocks, the block whose anchor it reads instead."""
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
        """For each block that leaves out a part of the block before it, that block's summands."""
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
