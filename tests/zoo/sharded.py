"""The expected sharding of each family: one reduction per block, except for the rows below.

A family without a row has one reduction per block and no branch that is kept whole.
"""

from dataclasses import dataclass
from typing import Any

import torch
from helpers.lockstep import ShardedProgram
from torch import Tensor
from torch.export import ExportedProgram

from ladderize.errors import LadderError
from ladderize.testing import assert_close
from zoo.family import Family
from zoo.programs import Traced

SHARDED_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """The expectations for one family, over 2 ranks or as many as its heads allow.

    Attributes:
        reductions: number of all-reduces in one run.
        whole: number of branches that are kept whole.
        why: part of their reasons.
    """

    reductions: int
    whole: int = 0
    why: str = ""


NO_WEIGHT = "multiplies by no weight of its own"
EXPECTED: dict[str, Row] = {
    # Nothing of these branches has a tensor-parallel plan in transformers either.
    "fnet (fourier transforms)": Row(2, 2, NO_WEIGHT),
    "squeezebert": Row(2, 2, "no second weight"),
    "wav2vec2": Row(4, 1, NO_WEIGHT),  # the positional convolution: its weight is computed
    "wav2vec2 (pre-norm)": Row(4, 1, NO_WEIGHT),
    "poolformer": Row(4, 4, NO_WEIGHT),
    "bit (pre-activation)": Row(0, 4, NO_WEIGHT),  # its weights are standardized in each run
    # A second all-reduce inside the branch: a small one for gates, for a norm over all heads or
    # inner channels, or for an inner product.
    "olmo2 (normed branches)": Row(6),
    "mamba": Row(6),
    "mamba (associative scan)": Row(4),
    "mamba2": Row(6),
    "bamba": Row(5),
    "granite-moe-hybrid": Row(5),
    "minimax (skip of the normed)": Row(5),
    "doge (scaled skip)": Row(6),
    "regnet": Row(8),
    "focalnet": Row(12),
    "prophetnet": Row(12),
    "x + a(u) + (u + l(u))": Row(9),  # the norm of the low-rank branch
}


def expected_row(family: Family) -> Row:
    return EXPECTED.get(family.name, Row(family.found))


def run(sharded: ShardedProgram, **inputs: Any) -> list[list[Tensor]]:
    return [[v for v in out if isinstance(v, Tensor)] for out in sharded(**inputs)]


def check_over(traced: Traced, num_ranks: int) -> None:
    """Structure as expected, and on every rank the values of the eager ladder at every size."""
    row = expected_row(traced.family)
    if row.reductions == 0:
        check_refused(row, traced.program, num_ranks)
        return
    sharded = ShardedProgram(traced.program, num_ranks)
    whole = sharded.plan.whole_branches
    assert (sharded.plan.num_reductions, len(whole)) == (row.reductions, row.whole)
    assert all(row.why in str(branch) for branch in whole)
    with torch.no_grad():
        flat = []
        for inputs, expected in zip(traced.inputs, traced.expected, strict=True):
            flat.append(run(sharded, **inputs))
            for found in flat[-1]:
                assert_close(found, expected, tolerance=SHARDED_TOLERANCE)
        # In islands it computes the very values of the flat graph.
        assert sharded.cut() > sharded.plan.num_reductions
        for inputs, before in zip(traced.inputs, flat, strict=True):
            for found, expected in zip(run(sharded, **inputs), before, strict=True):
                assert_close(found, expected, tolerance=0.0)


def check_refused(row: Row, program: ExportedProgram, num_ranks: int) -> None:
    try:
        ShardedProgram(program, num_ranks)
    except LadderError as error:
        assert f"No branch can be sharded over {num_ranks} ranks" in str(error)
        assert row.why in str(error)
    else:
        raise AssertionError("something was sharded")
