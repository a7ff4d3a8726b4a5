"""Flat graphs to cut, traced from small functions, and views of the cut graphs.

Their collectives are of a group that does not exist; they are replaced before a run.
"""

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize.backends.tensorrt.check_cut import cut_of
from ladderize.backends.tensorrt.cut import CutIslands
from ladderize.backends.tensorrt.drop_checks import DropChecks
from ladderize.frontends.dynamo_graph import copy_graph
from ladderize.graph.in_flight import is_launch
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.runner import Log, run_pass

aten, c10d = torch.ops.aten, torch.ops._c10d_functional


def launch(x: Tensor) -> Tensor:
    return c10d.all_reduce(x, "sum", "tp")


def wait(x: Tensor) -> Tensor:
    return c10d.wait_tensor(x)


def trace(fn, *args, symbolic=False):
    return make_fx(fn, tracing_mode="symbolic" if symbolic else "fake")(*args)


def cut_graph(gm):
    """The graph, cut and checked, and the number of its islands."""
    run_pass(gm, DropChecks(), Log())
    return run_pass(gm, CutIslands(), Log(), cut_of(gm)).changed


def code(gm):
    """One line per node, with its operands."""

    def line(node):
        is_op = isinstance(node.target, (str, OpOverload))
        op = str(node.target) if is_op else node.target.__name__.replace("getitem", "item")
        return f"{node.name} = {op}({', '.join(source.name for source in node.all_input_nodes)})"

    return [line(node) for node in gm.graph.nodes if node.op not in ("placeholder", "output")]


def runnable(gm):
    """A copy of `gm` whose all-reduces are copies."""
    copied = GraphModule(gm, copy_graph(gm))
    for node in filter(is_launch, copied.graph.nodes):
        node.target, node.args = aten.clone.default, node.args[:1]
    copied.recompile()
    return copied


def check(fn, *args, islands=None, symbolic=False, deferred=False, others=()):
    """Check that cut and flat graph return and write the same values, bit for bit."""
    gm = trace(fn, *args, symbolic=symbolic)
    whole = runnable(gm)
    if deferred:
        run_pass(gm, DeferWaits(), Log())
    count = cut_graph(gm)
    assert islands in (None, count)
    for inputs in (args, *others):
        ours, theirs = ([value.clone() for value in inputs] for _ in range(2))
        found, expected = runnable(gm)(*ours), whole(*theirs)
        torch.testing.assert_close((found, ours), (expected, theirs), rtol=0, atol=0)
    return gm


def find(gm, name):
    return next(node for node in gm.graph.nodes if node.name == name)


def ladder(x, *weights):
    """A ladder in which each block reads one block stale and is waited for immediately."""
    values = [x]
    for w in weights:
        read = values[max(len(values) - 2, 0)]
        values.append(values[-1] + wait(launch(torch.relu(read) @ w.t())))
    return values[-1]


def ladder_args(num_blocks=3):
    return torch.randn(2, 4), *(torch.randn(4, 4) for _ in range(num_blocks))


def ladder_graph(num_blocks=3):
    gm = trace(ladder, *ladder_args(num_blocks))
    run_pass(gm, DeferWaits(), Log())
    return gm
