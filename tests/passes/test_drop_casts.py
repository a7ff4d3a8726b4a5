"""Only casts that return their operand are removed."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize.graph import ops
from ladderize.passes.drop_casts import DropCasts


def casts(x):
    same, other = x.to(torch.float32), x.to(torch.bfloat16)
    copied = x.to(torch.float32, copy=True)
    return same.sin(), other.cos(), copied.mul_(2), x + same


def test_values_and_dtypes_stay():
    x = torch.randn(3, 5)
    gm = make_fx(casts, tracing_mode="fake", pre_dispatch=True)(x)
    assert DropCasts()(gm).changed == 1
    gm.graph.lint()
    gm.recompile()
    assert sum(ops.op_name(node) == "to" for node in gm.graph.nodes) == 2
    before = x.clone()
    for found, wanted in zip(gm(x), casts(before.clone()), strict=True):
        assert found.dtype is wanted.dtype
        assert torch.equal(found, wanted)
    assert torch.equal(x, before)


def test_an_output_keeps_its_name():
    x = torch.randn(3)
    gm = make_fx(lambda x: (x.to(torch.float32),), pre_dispatch=True)(x)
    assert DropCasts()(gm).changed == 0
    (output,) = gm.graph.find_nodes(op="output")
    assert ops.op_name(output.args[0][0]) == "to"
