"""A file that says which blocks to convert for which share of the communication.

    plan.json                     sets ── {"blocks": [13, 15, 29], "share": 0.25, "kl": 0.14, …}, …
    blocks="plan.json:50%"        the set of least divergence among those that hide 50 % or more

`ladderize sensitivity` writes it; `layers=` and `blocks=` read it.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ladderize.compat.json_files import read_json
from ladderize.config.records import StrictRecord, Text, parse_record

Index = Annotated[int, Field(ge=0, le=2**20)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Nats = Annotated[float, Field(allow_inf_nan=False)]


class MeasuredSet(StrictRecord):
    """Blocks that were converted together, and what that costs.

    Attributes:
        blocks: their numbers, as `blocks=` counts them.
        share: the fraction of the communication that can be hidden which they hide, 0 to 1.
        kl: KL(standard ‖ ladder), nats per token.
        loss: nats per token; None without labels.
        healed_kl, healed_loss: the same after a short heal; None if there was none.
    """

    blocks: Annotated[list[Index], Field(max_length=65_536)]
    share: Fraction
    kl: Nats
    loss: Nats | None = None
    healed_kl: Nats | None = None
    healed_loss: Nats | None = None


class MeasuredBlock(StrictRecord):
    """One block, and what it costs to convert it alone.

    Attributes:
        module: the module that its branch multiplies in.
        kind: of its branch: attention, MLP, MoE, …
        layer: the index in the module list that holds it, None if it is in none.
        share: the fraction of the communication that its stale read hides; 0 if it has nothing
            earlier to read.
        kl, loss: with this block alone converted; None if it cannot be.
    """

    module: Text
    kind: Text
    layer: Index | None
    share: Fraction
    kl: Nats | None = None
    loss: Nats | None = None


class BlockPlan(StrictRecord):
    """What the blocks of a model cost.

    Attributes:
        format: of the file.
        model: what was measured.
        staleness: of the ladders.
        tokens: the number of predictions that each set was measured on.
        standard_loss: of the standard model, nats per token; None without labels.
        blocks: all of them, in the order of their numbers.
        sets: the best sets found of each number of blocks, from few to many.
        references: those of `sets` that were not searched for: "all", "last:50%", "MLP only".
        versions: of what measured them.
    """

    format: Literal[1] = 1
    model: Text
    staleness: Annotated[int, Field(ge=1, le=8)]
    tokens: Annotated[int, Field(ge=1)]
    standard_loss: Nats | None
    blocks: Annotated[list[MeasuredBlock], Field(min_length=1, max_length=65_536)]
    sets: Annotated[list[MeasuredSet], Field(min_length=1, max_length=65_536)]
    references: dict[Text, MeasuredSet]
    versions: dict[Text, Text]

    @model_validator(mode="after")
    def _fits(self) -> "BlockPlan":
        outside = {b for each in self.sets for b in each.blocks if b >= len(self.blocks)}
        if outside:
            raise ValueError(f"sets with block {min(outside)} of {len(self.blocks)}")
        return self

    @property
    def layers(self) -> list[int | None]:
        """The layer of each block: what a model must have in common with the one measured."""
        return [block.layer for block in self.blocks]

    def best(self, share: float) -> MeasuredSet:
        """The set of least divergence among those that hide that share of communication.

        After a short heal, if any of them was healed; else before.

        Args:
            share: from 0 to 1.

        Raises:
            ValueError: no set hides as much.
        """
        found = [each for each in self.sets if each.share >= share - 1e-6]
        if not found:
            most = max(each.share for each in self.sets)
            raise ValueError(f"its sets hide up to {100 * most:.0f} %")
        healed = [each for each in found if each.healed_kl is not None]
        return min(healed or found, key=lambda each: (each.healed_kl or each.kl, each.share))

    def candidates(self, share: float, count: int) -> list[MeasuredSet]:
        """The `count` sets of least divergence that hide that share, and little more than it.

        What a set costs before healing is not what it costs after, so several are worth a heal;
        the `references` that hide as much, such as the last blocks, are among them too.

        Raises:
            ValueError: no set hides as much.
        """
        most = self.best(share).share + _MARGIN
        near = [each for each in self.sets if share - 1e-6 <= each.share <= most]
        ranked = sorted(near, key=lambda each: each.kl)
        references = [each.blocks for each in self.references.values()]
        return ranked[:count] + [each for each in ranked[count:] if each.blocks in references]

    def healed(self, found: Mapping[tuple[int, ...], tuple[float, float | None]]) -> "BlockPlan":
        """The plan with the divergence and loss of some sets, by their blocks, after a heal."""
        sets = [
            each.model_copy(update=dict(zip(("healed_kl", "healed_loss"), measured, strict=True)))
            if (measured := found.get(tuple(each.blocks))) is not None
            else each
            for each in self.sets
        ]
        return self.model_copy(update={"sets": sets})


_MARGIN = 0.05
"""How much more than the wanted share a set may hide to be a candidate for it."""


def read_block_plan(path: Path) -> BlockPlan:
    """The plan in a file.

    Raises:
        LadderError: it is not there, or not a plan.
    """
    status = path.stat() if path.exists() else None
    return _read(path, status and (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=16)
def _read(path: Path, _: object) -> BlockPlan:
    cure = "ladderize sensitivity MODEL --text FILE --out plan.json writes one"
    return parse_record(BlockPlan, read_json(path, "plan of blocks", cure), path, cure)
