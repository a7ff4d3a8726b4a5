"""Weights composed of other tensors: supported parts, and reasons for refusals."""

import pytest
import torch
from helpers.graphs import Residual
from helpers.packed_weights import PackedWeight
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import ladderize
from ladderize import LadderWarning, compat
from ladderize.sharding.placement import Shard, take_local
from ladderize.sharding.rules.quantized import not_linear, refused_parts


def packed(rows=8, columns=96, group=32, **how):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return PackedWeight.of(weight, group, **how)


def fake(weight):
    return FakeTensorMode().from_tensor(weight)


@pytest.mark.parametrize(
    ("dim", "ranks", "said"),
    [
        (0, 2, None),
        (0, 4, None),
        (1, 3, None),  # a group each
        (1, 2, "does not divide scale [8, 3], zero [8, 3] evenly"),
    ],
)
def test_parts_are_rows_or_whole_groups(dim, ranks, said):
    weight, size = packed(), (8, 96)[dim]
    found = refused_parts(fake(weight), Shard(dim, (size,)), ranks)
    if said is not None:
        assert found == f"aten.slice along dim {dim} of PackedWeight {said}"
        return
    assert found is None
    parts = [take_local(weight, Shard(dim, (size,)), rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat([p.unpacked() for p in parts], dim), weight.unpacked())
    sizes = [sum(t.nbytes for t in compat.inner_tensors(p).values()) for p in parts]
    assert set(sizes) == {sum(t.nbytes for t in compat.inner_tensors(weight).values()) / ranks}


def test_what_a_library_lacks_is_named():
    fused = refused_parts(fake(packed()), Shard(0, (4, 4)), 2)
    assert fused == "aten.cat along dim 0 of PackedWeight: aten.cat.default of packed weights"


def test_sums_over_ranks_need_a_linear_product():
    assert not_linear(fake(packed())) is None
    rounding = not_linear(fake(packed(quantizes_inputs=True)))
    assert rounding == "aten.abs of what PackedWeight multiplies"


class ScaledLinear(nn.Linear):
    def __init__(self, width):
        super().__init__(width, width, bias=False)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x @ (self.weight * self.gain)


def test_a_weight_that_is_computed_is_named_with_the_op_and_its_bytes():
    model = Residual(3, 16)
    layer = model.layers[1]
    layer.up, layer.down = ScaledLinear(16), ScaledLinear(16)
    with pytest.warns(LadderWarning, match="Not all is divided"):
        lines = ladderize.plan_parallel(model, 2, (torch.zeros(2, 16),)).lines
    (said,) = (line for line in lines if line.startswith("kept whole"))
    held = "layers.1.up.gain, layers.1.up.weight"
    assert f"aten.matmul.default in layers.1.up multiplies by aten.mul of {held}: only" in said
    bytes_of = 2 * sum(p.nbytes for p in layer.up.parameters())
    assert f"{bytes_of // 2:,} bytes and " in said
