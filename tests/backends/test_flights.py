"""What runs while a collective is in flight: hand-written graphs, and the lines of a report."""

import dataclasses

import pytest
import torch
from helpers.reports import block, report_of
from torch import nn
from torch._inductor.utils import fresh_cache
from torch.distributed.device_mesh import init_device_mesh
from torch.fx import Graph, GraphModule

import ladderize
from ladderize.backends.flights import FlightReport, find_flights
from ladderize.report.data import GraphReport
from ladderize.report.publish import collect_reports

c10d = torch.ops._c10d_functional
aten = torch.ops.aten


class Writer:
    """A hand-written graph; each op belongs to the given module."""

    def __init__(self, *inputs: str) -> None:
        self.graph = Graph()
        self.inputs = [self.graph.placeholder(name) for name in inputs]
        for node in self.inputs:
            node.meta["val"] = torch.empty(64, 64, device="meta")

    def call(self, target, *args, module="", key="nn_module_stack"):
        node = self.graph.call_function(target, args)
        node.meta["val"] = torch.empty(64, 64, device="meta")
        if module:
            node.meta[key] = {"id": (f"L['self'].{module}", nn.Linear)}
        return node

    def launch(self, x, module="sent"):
        return self.call(c10d.all_to_all_single.default, x, [32, 32], [32, 32], "ep", module=module)

    def flights(self, *outputs):
        self.graph.output(outputs)
        return find_flights(GraphModule(nn.Module(), self.graph))


def wait(writer, launched):
    return writer.call(c10d.wait_tensor.default, launched)


def test_modules_that_compute_between_launch_and_wait():
    writer = Writer("x", "w")
    x, w = writer.inputs
    launched = writer.launch(x)
    a = writer.call(aten.mm.default, x, w, module="layers.0.attention")
    a = writer.call(aten.mm.default, a, w, module="layers.0.attention")
    a = writer.call(aten.relu.default, a, module="layers.0.norm")  # takes next to no time
    a = writer.call(aten.mm.default, a, w, module="layers.0.mlp.shared")
    landed = wait(writer, launched)
    (found,) = writer.flights(writer.call(aten.add.Tensor, a, landed, module="layers.0"))
    assert (found.op, found.group, found.is_backward) == ("all_to_all_single", "ep", False)
    assert found.behind == ("layers.0.attention", "layers.0.mlp.shared")
    assert (found.source, found.reason) == ("sent", "")


def test_what_is_waited_for_at_once_says_why():
    writer = Writer("x", "w")
    x, w = writer.inputs
    landed = wait(writer, writer.launch(x))
    experts = writer.call(aten.mm.default, landed, w, module="layers.0.experts")
    counts = wait(writer, writer.launch(experts))
    writer.call(aten._local_scalar_dense.default, counts)
    last = wait(writer, writer.launch(experts))
    found = writer.flights(writer.call(aten.add.Tensor, last, x))
    assert [flight.reason for flight in found] == [
        "its result is needed at once by layers.0.experts",
        "the host reads its result",
        "nothing is left to compute",
    ]
    assert not any(flight.behind for flight in found)


def test_a_backward_graph_names_the_modules_of_the_forward_pass():
    writer = Writer("x", "tangents_1")
    x, tangent = writer.inputs
    launched = writer.launch(tangent)
    key = "fwd_nn_module_stack"
    gradient = writer.call(aten.mm.default, x, tangent, module="layers.1.mlp", key=key)
    (found,) = writer.flights(writer.call(aten.add.Tensor, gradient, wait(writer, launched)))
    assert found.is_backward and found.behind == ("layers.1.mlp",)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(16, 32, bias=False) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(32, 16, bias=False) for _ in range(3))

    def forward(self, x):
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return x


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize("lowering", ["eager", "aot_eager", "inductor"])
def test_the_last_report_holds_the_order_that_was_compiled(lowering):
    mesh = init_device_mesh("cpu", (2,))
    options = {"mesh": mesh, "lowering": lowering}
    compiled = torch.compile(Blocks().eval(), backend="ladderize", fullgraph=True, options=options)
    with fresh_cache(), torch.no_grad(), collect_reports() as reports:
        compiled(torch.randn(4, 16))
    (report,) = reports
    assert report is ladderize.last_report()
    (graph,) = report.graphs
    hidden = [bool(flight.behind) for flight in graph.flights]
    assert hidden == [True, True, False]
    assert graph.flights[-1].reason == "nothing is left to compute"


FLIGHTS = (
    FlightReport("all_to_all_single", "ep", "mlp.0", False, ("attention.1.qkv",)),
    FlightReport("all_to_all_single", "ep", "mlp.1", False, ("attention.2.qkv", "head")),
    FlightReport("all_to_all_single", "ep", "mlp.2", True, (), "its result is needed at once by e"),
)


@pytest.mark.parametrize(
    ("full", "lines"),
    [
        (
            False,
            [
                "2 all_to_all_single behind attention, forward",
                "1 all_to_all_single exposed (its result is needed at once), backward",
            ],
        ),
        (
            True,
            [
                "all_to_all_single of mlp.0, forward: behind h0",
                "all_to_all_single of mlp.1, forward: behind h1",
                "all_to_all_single of mlp.2, backward: exposed: its result is needed at once by e",
            ],
        ),
    ],
)
def test_a_report_tells_what_each_collective_hides_behind(full, lines):
    blocks = [
        dataclasses.replace(block(i), kind="attention", module=f"attention.{i + 1}")
        for i in range(2)
    ]
    report = report_of(blocks)
    graph: GraphReport = dataclasses.replace(report.graphs[0], flights=FLIGHTS)
    shown = dataclasses.replace(report, graphs=(graph,)).table(full, 200)
    told = shown[shown.index("order\n") :].splitlines()[1 : 1 + len(lines)]
    assert [line.strip() for line in told] == lines
