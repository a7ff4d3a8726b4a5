"""A file with the blocks to convert for each share of hidden communication.

    plan.json                     sets ── {"blocks": [13, 15, 29], "share": 0.25, "kl": 0.14, …}, …
    blocks="plan.json:50%"        the set with the least divergence that hides at least 50 %

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
    """A set of blocks converted together, with its measured divergence.

    Attributes:
        blocks: block numbers, as `blocks=` counts them.
        share: fraction of the hideable communication that the set hides, 0 to 1.
        kl: KL(standard ‖ ladder), nats per token.
        loss: nats per token; None without labels.
        healed_kl, healed_loss: `kl` and `loss` after a short heal; None if not healed.
    """

    blocks: Annotated[list[Index], Field(max_length=65_536)]
    share: Fraction
    kl: Nats
    loss: Nats | None = None
    healed_kl: Nats | None = None
    healed_loss: Nats | None = None


class MeasuredBlock(StrictRecord):
    """One block, with the divergence of converting it alone.

    Attributes:
        module: path of the module with the branch's matrix products.
        kind: kind of the branch: attention, MLP, MoE, …
        layer: index in the module list that holds the block; None outside of one.
        share: fraction of the communication that its stale read hides; 0 if there is no earlier
            value to read.
        kl, loss: nats per token with only this block converted; None if it cannot be converted.
    """

    module: Text
    kind: Text
    layer: Index | None
    share: Fraction
    kl: Nats | None = None
    loss: Nats | None = None


class BlockPlan(StrictRecord):
    """The measured divergence of a model's blocks, alone and in sets.

    Attributes:
        format: version of the file format.
        model: name of the measured model.
        staleness: staleness of the measured ladders.
        tokens: number of predictions that each set was measured on.
        standard_loss: loss of the standard model, nats per token; None without labels.
        blocks: all blocks, by number.
        sets: best sets found for each number of blocks, smallest first.
        references: fixed sets for comparison, also in `sets`: "all", "last:50%", "MLP only".
        versions: versions of the packages used.
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
        """The layer of each block. A model must match them for the plan to apply to it."""
        return [block.layer for block in self.blocks]

    def best(self, share: float) -> MeasuredSet:
        """The set with the least divergence that hides at least `share` of the communication.

        If any such set was healed, only healed sets are compared, by their healed divergence.

        Args:
            share: fraction of the communication, 0 to 1.

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
        """The `count` sets with the least divergence that hide `share` or little more.

        Divergence before healing does not predict divergence after it, so several sets are worth
        healing. `references` that hide as much, such as the last blocks, are included.

        Raises:
            ValueError: no set hides as much.
        """
        most = self.best(share).share + _MARGIN
        near = [each for each in self.sets if share - 1e-6 <= each.share <= most]
        ranked = sorted(near, key=lambda each: each.kl)
        references = [each.blocks for each in self.references.values()]
        return ranked[:count] + [each for each in ranked[count:] if each.blocks in references]

    def healed(self, found: Mapping[tuple[int, ...], tuple[float, float | None]]) -> "BlockPlan":
        """The plan with healed divergence and loss added. `found` is keyed by a set's blocks."""
        sets = [
            each.model_copy(update=dict(zip(("healed_kl", "healed_loss"), measured, strict=True)))
            if (measured := found.get(tuple(each.blocks))) is not None
            else each
            for each in self.sets
        ]
        return self.model_copy(update={"sets": sets})


_MARGIN = 0.05
"""Share above the wanted one that a candidate may hide."""


def read_block_plan(path: Path) -> BlockPlan:
    """Read a plan from a file.

    Raises:
        LadderError: the file does not exist or is not a plan.
    """
    status = path.stat() if path.exists() else None
    return _read(path, status and (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=16)
def _read(path: Path, _: object) -> BlockPlan:
    cure = "ladderize sensitivity MODEL --text FILE --out plan.json writes one"
    return parse_record(BlockPlan, read_json(path, "plan of blocks", cure), path, cure)
