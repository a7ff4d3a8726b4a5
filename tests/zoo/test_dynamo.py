"""Families as Dynamo captures them: compiled by the backend, and exported strictly.

The default run has those that Dynamo captures in a special way: in-place sums, loops and scans,
shared or checkpointed layers, relative positions, experts, convolutions, several streams. `--deep`
runs all.
"""

from typing import Any

import pytest
import torch
from torch.export import export

from ladderize import rewrite
from ladderize.testing import assert_close, assert_ladder_equal
from zoo.family import Family
from zoo.programs import UNEXPORTED, Traced, tensors
from zoo.sharded import check_over
from zoo.table import FAMILIES

# Compiled in every run.
COMPILED = {
    "mixtral",
    "rwkv (a scan that fills a buffer)",
    "albert (shared weights)",
    "nn.TransformerEncoder (post-norm)",
    "torchvision's resnet",
    "x += f(x)",
    "h += x",
    "out[:, i] = f(x)[:, i]",
    "vmap(f)(x)",
}
# Exported by Dynamo in every run.
STRICT = {"torchvision's resnet"}
# What torch.export refuses to trace by Dynamo.
NOT_BY_DYNAMO = {"llava"}


def rows(families: list[Family], in_every_run: set[str]) -> list[Any]:
    assert in_every_run <= {family.name for family in families}
    return [
        pytest.param(
            family,
            id=family.name,
            marks=[] if family.name in in_every_run else [pytest.mark.deep],
        )
        for family in families
    ]


def check(family: Family, blocks: str | None = None, **how: Any) -> None:
    options = {"expect_blocks": family.found} | ({"blocks": blocks} if blocks else {})
    how |= {"reads": family.reads, "gradients": family.trains, "options": options}
    assert_ladder_equal(family.build(), (), family.feed(), **how)


@pytest.mark.parametrize("family", rows(FAMILIES, COMPILED))
def test_the_compiled_ladder(family: Family) -> None:
    check(family)


@pytest.mark.parametrize(
    "family", rows([family for family in FAMILIES if family.is_deep], {"x += f(x)"})
)
def test_part_of_the_blocks_two_blocks_stale(family: Family) -> None:
    half = range(family.blocks // 2, family.blocks)
    check(family, blocks=f"last:{len(half)}", chosen=half, staleness=2)


@pytest.mark.parametrize(
    "family",
    rows([f for f in FAMILIES if f.name not in UNEXPORTED | NOT_BY_DYNAMO], STRICT),
)
@pytest.mark.filterwarnings("ignore:Not everything is sharded")
@pytest.mark.usefixtures("no_fused_layers")
def test_the_strictly_exported_program(family: Family) -> None:
    """Rewritten and over two ranks it has the values of the eager ladder."""
    model = family.build()
    with torch.no_grad():
        row = Traced(family, model, export(model, (), family.feed(), strict=True))
        ladder = rewrite(row.program, expect_blocks=family.found).module()
        assert_close(tensors(ladder(**family.feed())), row.expected[0])
    check_over(row, 2)
