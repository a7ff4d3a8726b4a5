"""Dynamo's calls in ATen: alike ones are traced once, what is unlike is not taken for alike."""

from unittest.mock import patch

import pytest
import torch
from helpers.graphs import Residual, capture
from torch import nn

from ladderize import compat
from ladderize.graph import call_templates, ops
from ladderize.graph.call_templates import spell_calls
from ladderize.graph.fake_values import signature
from ladderize.graph.to_aten import to_aten

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def spelled(model, dynamic=False):
    """The ATen graph of a call with `X`, and the number of calls that were traced."""
    gm, _ = capture(model, X.clone(), dynamic=dynamic)
    traced = []
    trace = call_templates.make_fx

    def count(*args, **kwargs):
        traced.append(args)
        return trace(*args, **kwargs)

    inputs = [ops.value(node) for node in gm.graph.find_nodes(op="placeholder")]
    with patch.object(call_templates, "make_fx", count), compat.fake_mode_of(inputs):
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


def writes(x):
    y = x + 1
    y.mul_(2)
    return y


@pytest.mark.parametrize(
    ("function", "dynamic"), [(writes, False), (torch.sin, True)], ids=["writes", "symbolic"]
)
def test_what_has_to_be_traced_whole(function, dynamic):
    found, _ = spelled(lambda x: function(x), dynamic)
    assert found is None
