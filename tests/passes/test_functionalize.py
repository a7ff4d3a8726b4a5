"""In-place ops are replaced by ones with the same values and dtype, for all readers."""

import pytest
import torch
from helpers.graphs import capture

from ladderize.passes.functionalize import Functionalize


def later_readers(x):
    y = 2 * x
    y.relu_()
    return y + 1, y


def kept_dtype(x):
    y = (2 * x).bfloat16()
    y += x
    return y, 3 * y


def swapped_operands(x):
    y = 2 * x
    y -= x.cos()
    y /= x.exp()
    y *= x
    return y


@pytest.mark.parametrize("net", [later_readers, kept_dtype, swapped_operands])
def test_values_and_dtypes_stay(net):
    x = torch.randn(3, 5)
    gm, _ = capture(net, x)
    assert Functionalize()(gm).changed > 0
    gm.graph.lint()
    gm.recompile()
    expected = net(x)
    found = gm(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype is wanted.dtype
        assert torch.equal(value, wanted)


def own_copy(x):
    y = x + 1
    return y.copy_(x.sin()) + y


def test_a_copy_of_any_size_is_functional():
    """All of a tensor of one's own, as an all-reduce in place ends in."""
    gm, _ = capture(own_copy, torch.randn(3, 5), dynamic=True)
    assert gm.graph.find_nodes(op="call_method", target="copy_")
    assert Functionalize()(gm).changed == 1
    assert not gm.graph.find_nodes(op="call_method", target="copy_")
