"""In-place ops are replaced by ones with the same values and dtype, for all readers."""

import pytest
import torch
from helpers.graphs import capture
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize.graph.writes import written_operands
from ladderize.passes.functionalize import Functionalize
from ladderize.passes.runner import apply_pass


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


def in_place(y, n):
    """Python's in-place operators besides += -= *= /=, for floats and integers."""
    y //= 0.3
    y %= 3
    y **= 2
    n &= 7
    n |= 8
    n ^= 3
    n <<= 2
    n >>= 1
    return y, n


def every_operator(x):
    return in_place(2 * x, (8 * x).int())


def by_keyword(x):
    y, z = 2 * x, 3 * x
    nn.functional.relu(input=y, inplace=True)
    torch.relu_(input=z)
    return y, z


NETS = [later_readers, kept_dtype, swapped_operands, every_operator, by_keyword]


@pytest.mark.parametrize("net", NETS)
def test_values_and_dtypes_stay(net):
    x = torch.randn(3, 5)
    gm, _ = capture(net, x)
    assert Functionalize()(gm).changed > 0
    assert not any(map(written_operands, gm.graph.nodes))
    gm.graph.lint()
    gm.recompile()
    expected = net(x)
    found = gm(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype is wanted.dtype
        assert torch.equal(value, wanted)


def seen_through_a_view(x):
    y, n = 2 * x, (8 * x).int()
    in_place(y[0], n[-1])
    return y, n


def seen_after_a_write_to_several(x):
    y, z = 2 * x, 3 * x
    torch._foreach_mul_([y[0], z[1:]], 2.0)
    return y, z


@pytest.mark.parametrize("net", [seen_through_a_view, seen_after_a_write_to_several])
def test_a_write_that_only_a_view_shows_is_kept(net):
    x = torch.randn(3, 5)
    gm, _ = capture(net, x)
    assert apply_pass(gm, Functionalize()).changed == 0
    gm.recompile()
    for value, wanted in zip(gm(x), net(x), strict=True):
        assert torch.equal(value, wanted)


def test_in_place_operators_of_aten():
    def net(x):
        n = x * 2
        n |= 8
        n ^= 3
        n &= 7
        n <<= 2
        n >>= 1
        return n

    x = torch.arange(6)
    gm = make_fx(net)(x)
    assert Functionalize()(gm).changed == 5
    assert not any(map(written_operands, gm.graph.nodes))
    gm.recompile()
    assert torch.equal(gm(x), net(x))


def own_copy(x):
    y = x + 1
    return y.copy_(x.sin()) + y


def test_a_copy_of_any_size_is_functional():
    """All of a tensor of one's own, as an all-reduce in place ends in."""
    gm, _ = capture(own_copy, torch.randn(3, 5), dynamic=True)
    assert gm.graph.find_nodes(op="call_method", target="copy_")
    assert Functionalize()(gm).changed == 1
    assert not gm.graph.find_nodes(op="call_method", target="copy_")
