"""The operands that a call writes, in all forms of calls."""

import pytest
import torch
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_mutation
from torch.fx import Graph, GraphModule
from torch.library import Library

from ladderize.graph.writes import is_impure, written_operands

LIBRARY = Library("ladderize_test_writes", "FRAGMENT")
LIBRARY.define("into(Tensor q, Tensor(a!) out, str layer) -> ()")
LIBRARY.define("many(Tensor x, Tensor(a!)[] outs) -> ()")
LIBRARY.define("norm(Tensor x, Tensor residual) -> Tensor")
LIBRARY.define("norm.inplace(Tensor(a!) x, Tensor(b!) residual, *, float eps) -> Tensor")
ops = torch.ops.ladderize_test_writes


def call(target, *args, method=False, **kwargs):
    """A call of values `a`, `b`, `c`, named in the arguments; and the names of what it writes."""
    graph = Graph()
    nodes = {name: graph.placeholder(name) for name in "abc"}
    for node in nodes.values():
        node.meta["val"] = torch.empty(2)

    def fill(value):
        if isinstance(value, (list, tuple)):
            return [fill(each) for each in value]
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        return nodes.get(value, value) if isinstance(value, str) else value

    make = graph.call_method if method else graph.call_function
    node = make(target, tuple(fill(args)), fill(kwargs))
    node.meta["val"] = torch.empty(2)
    return node, [str(each) for each in written_operands(node)]


@pytest.mark.parametrize("target", [ops.into, ops.into.default], ids=["packet", "overload"])
def test_of_a_schema(target):
    node, written = call(target, "a", "b", "layers.0")
    assert written == ["b"]
    assert is_impure(node)
    assert call(target, q="a", out="c", layer="layers.0")[1] == ["c"]


def test_of_a_list():
    assert call(ops.many, "a", ["b", "c"])[1] == ["b", "c"]


def test_of_the_overload_that_fits():
    assert call(ops.norm, "a", "b")[1] == []
    assert call(ops.norm, "a", "b", eps=1e-5)[1] == ["a", "b"]


def test_of_functions_and_methods():
    assert call("mul_", "a", "b", method=True)[1] == ["a"]
    assert call(torch.add, "a", "b", out="c")[1] == ["c"]
    assert call(torch.ops.aten.add_, "a", "b")[1] == ["a"]
    assert call(torch.relu, "a")[1] == []


@pytest.mark.parametrize("name", ["requires_grad_", "share_memory_"])
def test_what_changes_no_value_stays_all_the_same(name):
    node, written = call(name, "a", method=True)
    assert written == []
    assert is_impure(node)


def test_a_triton_kernel_writes_whatever_it_is_given():
    how = {"kernel_idx": 0, "constant_args_idx": 0, "grid": [], "tma_descriptor_metadata": {}}
    node, written = call(triton_kernel_wrapper_mutation, **how, kwargs={"x": "a", "out": "c"})
    assert written == ["a", "c"]
    assert is_impure(node)


@pytest.mark.parametrize("in_place", [True, False])
def test_of_a_body(in_place):
    body = Graph()
    x = body.placeholder("x")
    made = body.call_method("mul_" if in_place else "mul", (x, 2))
    body.output((made,))
    root = torch.nn.Module()
    root.body = GraphModule(torch.nn.Module(), body)
    graph = Graph()
    a, held = graph.placeholder("a"), graph.get_attr("body")
    a.meta["val"] = torch.empty(2)
    node = graph.call_function(torch.ops.higher_order.wrap, (held, a))
    graph.output(node)
    GraphModule(root, graph)
    assert written_operands(node) == ([a] if in_place else [])
