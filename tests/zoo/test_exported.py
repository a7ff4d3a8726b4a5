"""Some families as exported programs: their rewritten form equals the eager ladder."""

import pytest
import torch
from torch.export import export

from ladderize import rewrite
from ladderize.testing import assert_close, eager_ladder
from zoo.family import Family
from zoo.table import FAMILIES

EXPORTED = [f for f in FAMILIES if f.is_deep]

# Programs that torch 2.13 itself cannot decompose.
UNDECOMPOSED = {"gpt2": "run_decompositions() fails on the view of a strided attention result"}


@pytest.fixture(autouse=True)
def _no_fused_layers():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("form", ["training", "decomposed"])
@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in EXPORTED])
def test_the_rewritten_program(family: Family, form: str) -> None:
    if form == "decomposed" and family.name in UNDECOMPOSED:
        pytest.skip(UNDECOMPOSED[family.name])
    model, inputs = family.build(), family.feed()
    with torch.no_grad():
        program = export(model, (), inputs, strict=True)
        program = program if form == "training" else program.run_decompositions()
        ladder = rewrite(program, expect_blocks=family.blocks).module()
        with eager_ladder(model, family.reads):
            expected = model(**inputs)
        assert_close(ladder(**inputs), expected)
