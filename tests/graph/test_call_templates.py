"""Dynamo's calls in ATen: equal calls are traced once, and different calls are distinguished."""

from unittest.mock import patch

import pytest
import torch
from helpers.graphs import Residual, capture
from torch import nn

from ladderize import compat
from ladderize.graph import ops
from ladderize.graph.call_forms import DynamoCall
from ladderize.graph.call_templates import spell_calls
from ladderize.graph.fake_values import signature
from ladderize.graph.to_aten import to_aten

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def spelled(model):
    """The ATen graph of a call with `X`, and the number of calls that were traced."""
    gm, _ = capture(model, X.clone())
    traced = []
    run = DynamoCall.run

    def count(call, given):
        traced.append(call)
        return run(call, given)

    inputs = [ops.value(node) for node in gm.graph.find_nodes(op="placeholder")]
    with patch.object(DynamoCall, "run", count), compat.fake_mode_of(inputs):
        return spell_calls(gm), len(traced)


def test_the_second_layer_is_not_traced():
    (_, one), (gm, three) = spelled(Residual(1)), spelled(Residual(3))
    assert one == three
    assert sum(node.target is torch.ops.aten.linear.default for node in gm.graph.nodes) == 2 + 3 * 2


class Unlike(nn.Module):
    """Calls that are near to each other, and results that are nested."""

    def forward(self, x):
        first, _ = x.chunk(2, 1)
        signs = 1 / torch.full_like(first, 0.0), 1 / torch.full_like(first, -0.0)
        with torch.no_grad():
            means = x.mean(1, keepdim=True), x.mean(1, keepdim=False), x.mean(0)
        whole, part = x.T.sum(0), x[:, 2:].sum(1)
        return *signs, *means, whole - part + means[1], torch.mul(x, x), torch.mul(x, x.T.T + 1)


def test_what_is_unlike_is_traced_apart():
    model = Unlike()
    gm, _ = spelled(model)
    gm.recompile()
    assert all(map(torch.equal, gm(X), model(X)))


def test_the_graph_is_that_of_a_whole_trace():
    gm, names = capture(Residual(2), X)
    quick, _ = to_aten(gm, names)
    with patch("ladderize.graph.to_aten.spell_calls", return_value=None):
        whole, _ = to_aten(gm, names)
    found, wanted = (
        [(n.target, signature(n.meta.get("val")), n.meta.get("nn_module_stack")) for n in g.nodes]
        for g in (quick.graph, whole.graph)
    )
    inputs = len(names) + 1
    assert found[inputs:] == wanted[inputs:]


def doubled(x):
    """In place: first the sum that is made, then parts of what was given, and of what was made."""
    y = x + 1
    y.mul_(2)
    x[:, 1:3] = y[:, :2]
    first, second = y.chunk(2, 1)
    first.add_(x.sum())
    z = torch.zeros_like(x).index_copy_(0, torch.arange(x.shape[0]), second.repeat(1, 2))
    return y, z + x[: x.shape[0] - 1].mean(0), y.view(-1, 2, x.shape[1] // 2)


def folded(x):
    return x.reshape(x.shape[0] * 2, -1).sum(), x.new_ones(x.size(0) + 1), x.to(x.dtype).mT @ x


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("function", [doubled, folded, Residual(2)])
def test_writes_and_symbols_do_what_they_did(function, is_dynamic):
    whole = []

    def backend(gm, _):
        with patch("ladderize.graph.to_aten._trace_whole", whole.append):
            aten, _ = to_aten(gm, {})
        aten.recompile()
        return aten

    torch._dynamo.reset()
    own, theirs = X.clone(), X.clone()
    with torch.no_grad():
        found = torch.compile(function, backend=backend, fullgraph=True, dynamic=is_dynamic)(own)
        wanted = function(theirs)
    assert all(map(torch.equal, (*found, own), (*wanted, theirs)))
    assert not whole


def test_what_an_op_returns_as_it_is_does_not_stand_for_it_elsewhere():
    gm, _ = spelled(lambda x: (x.to(x.dtype).sum(), x.mean(), x.sum(1)))
    (given,) = gm.graph.find_nodes(op="placeholder")
    assert len(given.users) == 3


def test_written_memory_is_of_each_call():
    gm, _ = spelled(lambda x: [(x + i)[:, 1:].T.mul_(2) for i in range(2)])
    first, second = (n for n in gm.graph.nodes if n.target is torch.ops.aten.numpy_T.default)
    assert ops.storages(first).isdisjoint(ops.storages(second))
    assert all(ops.storages(n) == ops.storages(n.args[0]) for n in (first, second))


@pytest.mark.parametrize(
    "function", [lambda x: (x + 1).unsqueeze_(0), lambda x: x * torch.tensor([2.0] * 8)]
)
def test_what_has_to_be_traced_whole(function):
    found, _ = spelled(function)
    assert found is None
