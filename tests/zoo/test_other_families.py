"""Encoders, vision and the rest: each traced once, rewritten, sharded over two ranks and cut."""

import pytest
import torch

from zoo.checks import Check, cases
from zoo.encoder_decoders import ENCODER_DECODERS
from zoo.encoders import ENCODERS
from zoo.family import Family
from zoo.handwritten import HANDWRITTEN
from zoo.modalities import MODALITIES
from zoo.programs import CONSTANT, trace_symbolic
from zoo.table import FAMILIES
from zoo.vision import VISION


@pytest.mark.parametrize(
    ("family", "check"),
    cases([*ENCODERS, *ENCODER_DECODERS, *VISION, *MODALITIES, *HANDWRITTEN]),
)
@pytest.mark.filterwarnings("ignore:Not all is divided")
@pytest.mark.usefixtures("no_fused_layers")
def test_family(family: Family, check: Check) -> None:
    check(family)


@pytest.mark.deep
@pytest.mark.parametrize("name", CONSTANT)
def test_what_torch_makes_a_constant(name: str) -> None:
    """A row that torch no longer needs is to be taken out of the table."""
    (family,) = (family for family in FAMILIES if family.name == name)
    with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
        trace_symbolic(family, family.build(), constant=None)
