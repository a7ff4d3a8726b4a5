"""The groups that a graph communicates over."""

import torch
from torch.fx import Graph, GraphModule
from torch.library import Library

from ladderize.graph.collectives import find_groups, group_name_of

LIBRARY = Library("ladderize_test_groups", "FRAGMENT")
LIBRARY.define("all_reduce(Tensor x, str group_name) -> Tensor")


def test_an_engines_own_group_name_is_no_process_group():
    """vLLM calls its tensor-parallel group "tp:0", which c10d does not know."""
    graph = Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.ladderize_test_groups.all_reduce, (x, "tp:0"))
    graph.output(node)
    assert group_name_of(node) == "tp:0"
    assert find_groups(GraphModule(torch.nn.Module(), graph)) == []
