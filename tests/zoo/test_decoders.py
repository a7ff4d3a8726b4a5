"""Decoders and recurrent models: each traced once, rewritten, sharded over two ranks and cut."""

import pytest

from zoo.checks import Check, cases
from zoo.decoders import DECODERS
from zoo.family import Family
from zoo.recurrent import RECURRENT


@pytest.mark.parametrize(("family", "check"), cases([*DECODERS, *RECURRENT]))
@pytest.mark.filterwarnings("ignore:Not everything is sharded")
@pytest.mark.usefixtures("no_fused_layers")
def test_family(family: Family, check: Check) -> None:
    check(family)
