"""Encoders, vision, sound and nets of other libraries over two ranks, as `test_sharded_zoo`."""

import pytest
import torch

from zoo.encoder_decoders import ENCODER_DECODERS
from zoo.encoders import ENCODERS
from zoo.family import Family
from zoo.handwritten import HANDWRITTEN
from zoo.modalities import MODALITIES
from zoo.sharded import UNEXPORTED, check_over, exported
from zoo.vision import VISION

ROWS = (*ENCODERS, *ENCODER_DECODERS, *VISION, *MODALITIES, *HANDWRITTEN)


@pytest.fixture(autouse=True)
def _no_fused_layers():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize(
    "family", [pytest.param(f, id=f.name) for f in ROWS if f.name not in UNEXPORTED]
)
@pytest.mark.filterwarnings("ignore:Not all is divided")
def test_two_ranks_equal_the_eager_ladder(family: Family) -> None:
    check_over(family, 2, *exported(family))
