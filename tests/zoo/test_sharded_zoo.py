"""Decoders and recurrent nets over two ranks: reductions, what stays whole, values."""

import pytest

from zoo.decoders import DECODERS
from zoo.family import Family
from zoo.recurrent import RECURRENT
from zoo.sharded import check_over, exported


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in (*DECODERS, *RECURRENT)])
@pytest.mark.filterwarnings("ignore:Not all is divided")
def test_two_ranks_equal_the_eager_ladder(family: Family) -> None:
    check_over(family, 2, *exported(family))
