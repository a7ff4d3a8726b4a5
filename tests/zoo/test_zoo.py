"""Every family: the right blocks are found, and the compiled ladder equals the eager one."""

from typing import Any

import pytest
import torch
from torch import nn

from ladderize.testing import TOLERANCE, assert_close, assert_ladder_equal, eager_ladder
from zoo.family import Family
from zoo.table import FAMILIES


def rows(families: list[Family]) -> list[Any]:
    return [pytest.param(family, id=family.name) for family in families]


def check(family: Family, model: nn.Module, **how: Any) -> None:
    assert_ladder_equal(
        model, (), family.feed(), reads=family.reads, gradients=family.trains, **how
    )


@pytest.mark.parametrize("family", rows(FAMILIES))
def test_the_eager_ladder(family: Family) -> None:
    """It has as many blocks as the row says, and is far from the standard net."""
    model, inputs = family.build(), family.feed()
    with torch.no_grad():
        standard = model(**inputs)
        with eager_ladder(model, family.reads, staleness=0) as ladder:
            assert_close(model(**inputs), standard, tolerance=0.0)
        assert len(ladder.blocks) == family.blocks
        with eager_ladder(model, family.reads):
            stale = model(**inputs)
    with pytest.raises(AssertionError, match="is off by"):
        assert_close(stale, standard, tolerance=1000 * TOLERANCE[family.dtype])


@pytest.mark.parametrize("family", rows(FAMILIES))
def test_the_compiled_ladder(family: Family) -> None:
    """The backend is told to expect as many blocks as the eager ladder counts."""
    check(family, family.build())


@pytest.mark.parametrize("family", rows([family for family in FAMILIES if family.is_deep]))
def test_part_of_the_blocks_two_blocks_stale(family: Family) -> None:
    half = range(family.blocks // 2, family.blocks)
    check(family, family.build(), chosen=half, staleness=2, options={"blocks": "last:50%"})
