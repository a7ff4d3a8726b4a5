"""What becomes of each family over ranks: one reduction a block, but for the rows below.

A family that no row names has one reduction for each block and no branch that stays whole.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from helpers.lockstep import ShardedProgram
from torch import Tensor, nn
from torch.export import ExportedProgram, export
from torch.utils._pytree import tree_leaves

from ladderize.errors import LadderError
from ladderize.testing import assert_close, eager_ladder
from zoo.family import Family

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """What is expected of one family, over 2 ranks or as many as its heads allow.

    Attributes:
        reductions: all-reduces of one run.
        whole: branches of which nothing is divided.
        why: in the reasons of those.
    """

    reductions: int
    whole: int = 0
    why: str = ""


NO_WEIGHT = "multiplies by no weight of its own"
EXPECTED: dict[str, Row] = {
    # Nothing of these branches has a tensor-parallel plan in transformers either.
    "jetmoe": Row(2, 2, "topk"),
    "mamba2": Row(0, 3, "outside of the branch"),
    "bamba": Row(3, 1, "outside of the branch"),
    "granite-moe-hybrid": Row(3, 1, "outside of the branch"),
    "qwen3-next (linear attention)": Row(3, 1, "the weight of aten.conv1d"),
    "fnet (fourier transforms)": Row(2, 2, NO_WEIGHT),
    "squeezebert": Row(2, 2, "no second weight"),
    "wav2vec2": Row(4, 1, NO_WEIGHT),  # the positional convolution: its weight is computed
    "wav2vec2 (pre-norm)": Row(4, 1, NO_WEIGHT),
    "poolformer": Row(4, 4, NO_WEIGHT),
    "bit (pre-activation)": Row(0, 4, NO_WEIGHT),  # its weights are standardized in each run
    # A second all-reduce inside the branch: a small one for gates, or for an inner product.
    "doge (scaled skip)": Row(6),
    "regnet": Row(8),
    "focalnet": Row(12),
    "prophetnet": Row(12),
}
# Programs that torch.export itself refuses, and those that it refuses to trace by Dynamo.
UNEXPORTED = {"vmap(f)(x)"}
NOT_BY_DYNAMO = {"llava"}


def expected_row(family: Family) -> Row:
    return EXPECTED.get(family.name, Row(family.blocks))


@lru_cache(maxsize=1)  # the cases of a family follow one another
def exported(family: Family) -> tuple[nn.Module, ExportedProgram]:
    model = family.build()
    with torch.no_grad():
        strict = family.name not in NOT_BY_DYNAMO
        return model, export(model, (), family.feed(), strict=strict)


def expect(family: Family, model: nn.Module, **inputs: Any) -> list[Tensor]:
    """The outputs of the unsharded eager ladder."""
    with eager_ladder(model, family.reads):
        return [leaf for leaf in tree_leaves(model(**inputs)) if isinstance(leaf, Tensor)]


def run(sharded: ShardedProgram, **inputs: Any) -> list[list[Tensor]]:
    return [[v for v in out if isinstance(v, Tensor)] for out in sharded(**inputs)]


def check_over(family: Family, num_ranks: int) -> None:
    """Structure as expected, and on every rank the values of the eager ladder."""
    row, (model, program) = expected_row(family), exported(family)
    if row.reductions == 0:
        check_refused(row, program, num_ranks)
        return
    sharded = ShardedProgram(program, num_ranks)
    whole = sharded.plan.whole_branches
    assert (sharded.plan.num_reductions, len(whole)) == (row.reductions, row.whole)
    assert all(row.why in str(branch) for branch in whole)
    with torch.no_grad():
        expected = expect(family, model, **family.feed())
        flat = run(sharded, **family.feed())
        for found in flat:
            assert_close(found, expected, tolerance=TOLERANCE)
        check_cut(sharded, family, flat)


def check_cut(sharded: ShardedProgram, family: Family, flat: list[list[Tensor]]) -> None:
    """In islands it computes the very values of the flat graph."""
    assert sharded.cut() > sharded.plan.num_reductions
    for found, expected in zip(run(sharded, **family.feed()), flat, strict=True):
        assert_close(found, expected, tolerance=0.0)


def check_refused(row: Row, program: ExportedProgram, num_ranks: int) -> None:
    try:
        ShardedProgram(program, num_ranks)
    except LadderError as error:
        assert f"No branch can be sharded over {num_ranks} ranks" in str(error)
        assert row.why in str(error)
    else:
        raise AssertionError("something was sharded")
