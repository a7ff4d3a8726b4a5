"""Encoders, vision and the rest: each traced once, rewritten, sharded over two ranks and cut."""

import pytest
import torch

from zoo.checks import Check, cases
from zoo.encoder_decoders import ENCODER_DECODERS
from zoo.encoders import ENCODERS
from zoo.family import Family
from zoo.handwritten import HANDWRITTEN
from zoo.modalities import MODALITIES
from zoo.programs import CONSTANT, resized, trace_symbolic
from zoo.table import FAMILIES
from zoo.vision import VISION


@pytest.mark.parametrize(
    ("family", "check"),
    cases([*ENCODERS, *ENCODER_DECODERS, *VISION, *MODALITIES, *HANDWRITTEN]),
)
@pytest.mark.filterwarnings("ignore:Not everything is sharded")
@pytest.mark.usefixtures("no_fused_layers")
def test_family(family: Family, check: Check) -> None:
    check(family)


@pytest.mark.deep
@pytest.mark.parametrize("name", CONSTANT)
def test_what_torch_makes_a_constant(name: str) -> None:
    """A row that torch no longer needs is to be taken out of the table."""
    (family,) = (family for family in FAMILIES if family.name == name)
    dim, _ = CONSTANT[name]
    try:
        program = trace_symbolic(family, family.build(), constant=None)
    except torch._dynamo.exc.UserError as error:
        assert "specialized it to be a constant" in str(error)
    else:  # it holds a loop's length to the number of steps that it has traced
        with pytest.raises(AssertionError, match="Guard failed"):
            program.module()(**resized(family.feed(), {dim: -2}))
