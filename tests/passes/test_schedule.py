"""The waits of reduce-scatters and launches of all-gathers, on hand-written ATen graphs."""

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from ladderize.config.hardware import Hardware, Link
from ladderize.graph.flops import flops_of, work_of
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.lane_times import Durations, exposed
from ladderize.passes.pin_order import PinOrder
from ladderize.passes.schedule import find_schedule

c10d = torch.ops._c10d_functional
aten = torch.ops.aten


class SequenceParallel:
    """Blocks `g v m a … b r w x`: gather, wait, four matmuls, reduce-scatter, wait, add.

    Block i (of four matmuls a, b, c, d) reads stream value max(i - staleness, 0).
    """

    def __init__(self, num_blocks: int, staleness: int, gathers_on: str = "tp") -> None:
        self.graph = Graph()
        shape = torch.empty(8, 8, device="meta")
        inputs = [self.graph.placeholder(name) for name in ("x", "weight")]
        for node in inputs:
            node.meta["val"] = shape
        values, weight = [inputs[0]], inputs[1]
        for i in range(num_blocks):
            norm = self.call(aten.relu.default, values[max(i - staleness, 0)], name=f"n{i}")
            gather = c10d.all_gather_into_tensor.default
            launch = self.call(gather, norm, 2, gathers_on, name=f"g{i}")
            h = self.call(c10d.wait_tensor.default, launch, name=f"v{i}")
            for letter in "abcd":
                h = self.call(aten.mm.default, h, weight, name=f"{letter}{i}")
            scatter = c10d.reduce_scatter_tensor.default
            launch = self.call(scatter, h, "sum", 2, "tp", name=f"r{i}")
            wait = self.call(c10d.wait_tensor.default, launch, name=f"w{i}")
            values.append(self.call(aten.add.Tensor, values[-1], wait, name=f"x{i + 1}"))
        self.graph.output((values[-1],))
        self.gm = GraphModule(torch.nn.Module(), self.graph)

    def call(self, target, *args, name):
        node = self.graph.call_function(target, args)
        node.name = name
        node.meta["val"] = torch.empty(8, 8, device="meta")
        return node

    def call_before(self, node, value):
        with self.graph.inserting_before(node):
            made = self.graph.call_function(aten.expand.default, (node.args[0], [8, 8, 8]))
        made.meta["val"] = value
        return made

    def order(self) -> str:
        DeferWaits()(self.gm)
        self.gm.graph.lint()
        return " ".join(n.name for n in self.graph.nodes if n.name not in ("x", "weight", "output"))


class Experts:
    """Layers of attention `a b c d`, and of experts: router `o`, dispatch, `e f`, combine.

    Block i reads stream value max(i - staleness, 0); odd blocks are experts. `p` is the result of
    one more expert for all tokens, written after the others.
    """

    def __init__(self, num_layers: int, staleness: int, counts: bool = False) -> None:
        self.graph = Graph()
        inputs = [self.graph.placeholder(name) for name in ("x", "weight", "narrow")]
        for node in inputs:
            node.meta["val"] = torch.empty(64, 64, device="meta")
        inputs[2].meta["val"] = torch.empty(64, 1, device="meta")
        values, self.weight, self.narrow = [inputs[0]], inputs[1], inputs[2]
        for i in range(num_layers):
            h = self.call(aten.relu.default, values[max(2 * i - staleness, 0)], name=f"n{i}")
            for letter in "abcd":
                h = self.call(aten.mm.default, h, self.weight, name=f"{letter}{i}")
            values.append(self.call(aten.add.Tensor, values[-1], h, name=f"x{2 * i + 1}"))
            read = values[max(2 * i + 1 - staleness, 0)]
            sent = self.call(aten.mm.default, read, self.narrow, name=f"o{i}", columns=1)
            splits = [1, 1]
            if counts:
                known = self.exchange(sent, f"m{i}", f"k{i}")
                splits = [self.call(aten.sym_size.int, known, 0, name=f"s{i}")] * 2
            h = self.exchange(
                self.call(aten.mul.Tensor, read, sent, name=f"q{i}"), f"l{i}", f"v{i}", splits
            )
            for letter in "ef":
                h = self.call(aten.mm.default, h, self.weight, name=f"{letter}{i}")
            back = self.exchange(h, f"r{i}", f"w{i}")
            shared = self.call(aten.mm.default, read, self.weight, name=f"p{i}")
            both = self.call(aten.add.Tensor, back, shared, name=f"y{i}")
            values.append(self.call(aten.add.Tensor, values[-1], both, name=f"x{2 * i + 2}"))
        self.graph.output((values[-1],))
        self.gm = GraphModule(torch.nn.Module(), self.graph)

    def exchange(self, value, launch, wait, splits=(1, 1)):
        op = c10d.all_to_all_single.default
        sent = self.call(op, value, list(splits), [1, 1], "ep", name=launch)
        return self.call(c10d.wait_tensor.default, sent, name=wait)

    def call(self, target, *args, name, columns=64):
        node = self.graph.call_function(target, args)
        node.name = name
        node.meta["val"] = torch.empty(64, columns, device="meta")
        return node

    def order(self, letters: str) -> str:
        DeferWaits()(self.gm)
        self.gm.graph.lint()
        shown = [n for n in self.graph.nodes if n.op == "call_function" and n.name[0] in letters]
        return " ".join(node.name for node in shown)


def test_combine_and_dispatch_hide_behind_one_attention():
    """w0 is in the middle of the free ops, followed directly by the next router and dispatch.

    The first dispatch needs no wait and moves before the attention before it.
    """
    assert Experts(3, staleness=1).order("abcdefolvrwp") == (
        "o0 l0 a0 b0 c0 d0 v0 e0 f0 r0 "
        "p0 a1 w0 o1 l1 b1 c1 d1 v1 e1 f1 r1 "
        "p1 a2 w1 o2 l2 b2 c2 d2 v2 e2 f2 r2 p2 w2"
    )


def test_of_a_standard_net_what_all_tokens_go_to_hides_the_combine():
    assert Experts(2, staleness=0).order("abcdefolvrwp") == (
        "a0 b0 c0 d0 o0 l0 v0 e0 f0 r0 p0 w0 a1 b1 c1 d1 o1 l1 v1 e1 f1 r1 p1 w1"
    )


def test_counts_are_a_link_of_the_chain():
    """Combine, counts `m` and dispatch follow each other, each hidden by its part of the work."""
    assert Experts(2, staleness=1, counts=True).order("abcdefolvrwpmk") == (
        "o0 m0 a0 b0 k0 l0 c0 d0 v0 e0 f0 r0 p0 a1 w0 o1 m1 b1 k1 l1 c1 d1 v1 e1 f1 r1 p1 w1"
    )


def test_what_a_dispatch_needs_runs_ahead_of_what_it_does_not():
    """Written behind attention 1, `p0` is part of what the router of layer 1 reads."""
    net = Experts(2, staleness=1)
    named = {node.name: node for node in net.graph.nodes}
    for node in (named["y0"], named["p0"]):
        named["d1"].append(node)
    named["y0"].append(named["x2"])
    assert net.order("abcdefolvrwp") == (
        "o0 l0 a0 b0 c0 d0 v0 e0 f0 r0 p0 a1 w0 o1 l1 b1 c1 d1 v1 e1 f1 r1 p1 w1"
    )


def test_a_launch_comes_ahead_of_gradients_of_weights():
    """`g0` of the experts is not sent: it runs while the result of `f0` is in flight."""
    net = Experts(1, staleness=1)
    named = {node.name: node for node in net.graph.nodes}
    with net.graph.inserting_before(named["e0"]):
        g0 = net.call(aten.mm.default, named["v0"], net.weight, name="g0")
    output = net.graph.output_node()
    output.args = ((*output.args[0], g0),)
    assert net.order("abcdefgolvrwp") == "o0 l0 a0 b0 c0 d0 v0 e0 f0 r0 g0 p0 w0"


def test_named_hardware_decides_how_the_work_is_shared_out():
    """A combine that takes most of the chain's time is hidden by most of the work."""
    net = Experts(2, staleness=1)
    for node in net.graph.nodes:
        if node.name == "r0":
            node.meta["val"] = torch.empty(640, 64, device="meta")
    hardware = Hardware(Link("slow", 2, latency=0.0, bandwidth=1e9), flops=1e9, memory=1e9)
    schedule = find_schedule(net.graph, Durations.of(net.graph, hardware))
    assert {w.name: after.name for w, after in schedule.waits.items()}["w0"] == "d1"


def test_a_dispatch_is_pinned_ahead_of_the_work_it_hides_behind():
    net = Experts(2, staleness=1)
    DeferWaits()(net.gm)
    PinOrder(use_control_deps=True)(net.gm)
    after = {
        node.name: [before.name for before in node.args[0]]
        for node in net.graph.nodes
        if "control_deps" in str(node.target)
    }
    assert after == {
        "a0": ["l0"],
        "v0": ["d0"],
        "p0": ["r0"],
        "a1": ["r0"],
        "w0": ["p0", "a1"],
        "b1": ["l1"],
        "v1": ["d1"],
        "p1": ["r1"],
        "w1": ["p1"],
    }


def test_no_more_buffers_in_flight_than_allowed():
    """A result that is needed only at the end is waited for `max_ahead` launches later."""
    graph = Experts(1, staleness=1)
    output = graph.graph.output_node()
    with graph.graph.inserting_before(output):
        waits = [graph.exchange(graph.weight, f"g{i}", f"h{i}") for i in range(4)]
    output.args = ((*output.args[0], *waits),)
    DeferWaits(max_ahead=2)(graph.gm)
    names = [node.name for node in graph.graph.nodes if node.name[0] in "gh"]
    assert names == "g0 g1 g2 h0 g3 h1 h2 h3".split()


def test_never_worse_than_the_order_written():
    """By the model itself."""
    for net in (Experts(4, 1), Experts(4, 0), SequenceParallel(4, 1), SequenceParallel(4, 2)):
        durations = Durations.of(net.graph)
        written = exposed(list(net.graph.nodes), durations)
        DeferWaits()(net.gm)
        assert exposed(list(net.graph.nodes), durations) <= written


def test_each_has_half_a_block_to_hide_behind():
    """w0 in the middle of block 1, and g2, which reads x1, right after it."""
    assert SequenceParallel(4, staleness=1).order() == (
        "n0 g0 v0 a0 b0 c0 d0 r0 "
        "n1 g1 v1 a1 b1 w0 x1 n2 g2 c1 d1 r1 "
        "v2 a2 b2 w1 x2 n3 g3 c2 d2 r2 "
        "v3 a3 b3 c3 d3 r3 w2 x3 w3 x4"
    )


def test_staleness_two_has_a_block_for_each():
    assert SequenceParallel(5, staleness=2).order() == (
        "n0 g0 v0 a0 b0 c0 d0 r0 "
        "n1 g1 v1 a1 b1 c1 d1 w0 x1 n2 g2 n3 g3 r1 "
        "v2 a2 b2 c2 d2 w1 x2 n4 g4 r2 "
        "v3 a3 b3 c3 d3 r3 v4 a4 b4 c4 d4 r4 w2 x3 w3 x4 w4 x5"
    )


def test_a_standard_net_stays_as_it_is():
    net = SequenceParallel(3, staleness=0)
    before = [node.name for node in net.graph.nodes]
    assert not find_schedule(net.graph).waits
    net.order()
    assert [node.name for node in net.graph.nodes] == before


def test_the_middle_is_that_of_the_work_not_of_the_ops():
    net = SequenceParallel(3, staleness=1)
    for node in net.graph.nodes:
        if node.name == "a1":  # as much as all others of its block
            node.target, wide = aten.bmm.default, torch.empty(8, 8, 8, device="meta")
            node.args = tuple(net.call_before(node, wide) for _ in range(2))
    assert "a1 w0 x1 n2 g2 b1 c1 d1 r1" in net.order()


def test_gathers_of_other_groups_are_left_alone():
    """FSDP gathers parameters: if launched earlier, all would be in memory at the same time."""
    schedule = find_schedule(SequenceParallel(4, staleness=1, gathers_on="dp").graph)
    assert not schedule.launches
    after = {wait.name: node.name for wait, node in schedule.waits.items()}
    assert after == {"w0": "r1", "w1": "r2", "w2": "r3"}


def test_what_is_gathered_from_the_input_is_not_held_back():
    """n0 and n1 read x, which needs no wait: both gathers stay in place."""
    launches = find_schedule(SequenceParallel(3, staleness=1).graph).launches
    assert {launch.name: after.name for launch, after in launches.items()} == {"g2": "b1"}


@pytest.mark.parametrize("staleness", [1, 2])
def test_scatters_and_gathers_keep_their_order_among_themselves(staleness):
    order = SequenceParallel(6, staleness).order().split()
    for letter in "gr":
        assert [name for name in order if name[0] == letter] == [f"{letter}{i}" for i in range(6)]


def test_waits_and_early_gathers_are_pinned():
    """The wait after the matmul that it comes after, the next matmul after the gather."""
    net = SequenceParallel(3, staleness=1)
    net.order()
    assert PinOrder(use_control_deps=True)(net.gm).changed == 2
    net.gm.graph.lint()
    named = {node.name: node for node in net.graph.nodes}
    after = {
        node.name: [before.name for before in node.args[0]]
        for node in net.graph.nodes
        if "control_deps" in str(node.target)
    }
    assert after == {"w0": ["b1"], "c1": ["g2"], "w1": ["r2"]}
    assert named["w1"].args[0] == (named["r2"],)


def test_the_last_wait_is_put_off_past_what_computes_without_it():
    """The end of a piece: `q = mm(x1)` and `x2` are its results; only x2 needs the last wait."""
    net = SequenceParallel(2, staleness=1)
    output = net.graph.output_node()
    x1, w1 = (next(n for n in net.graph.nodes if n.name == name) for name in ("x1", "w1"))
    with net.graph.inserting_before(output):
        q = net.call(aten.mm.default, x1, x1, name="q")
    output.args = ((output.args[0][0], q),)
    assert find_schedule(net.graph).waits[w1] is q
    assert net.order().endswith("r1 w0 x1 q w1 x2")
    PinOrder(use_control_deps=True)(net.gm)
    pinned = next(n for n in net.graph.nodes if n.name == "w1")
    assert [before.name for before in pinned.args[0]] == ["q"]


@pytest.mark.parametrize("net", [SequenceParallel, Experts])
def test_linear_in_depth(net, monkeypatch):
    counted = 0
    read = Node.all_input_nodes

    def counting(node):
        nonlocal counted
        counted += 1
        return read.fget(node)

    monkeypatch.setattr(Node, "all_input_nodes", property(counting))

    def looks(num_blocks: int) -> int:
        graph = net(num_blocks, staleness=1).graph
        before = counted
        find_schedule(graph)
        return counted - before

    assert looks(64) < 2.1 * looks(32)


def test_work_counts_matmuls_by_flops_and_leaves_the_rest_out():
    graph = Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"] = torch.empty(4, 8, device="meta")
    w.meta["val"] = torch.empty(8, 16, device="meta")
    mm = graph.call_function(aten.mm.default, (x, w))
    mm.meta["val"] = torch.empty(4, 16, device="meta")
    add = graph.call_function(aten.add.Tensor, (mm, mm))
    assert work_of(mm) == 2 * 4 * 8 * 16
    assert work_of(add) == work_of(x) == 0


def test_attention_on_cpu_counts_its_products():
    graph = Graph()
    q, k, v = (graph.placeholder(name) for name in "qkv")
    for node in (q, k, v):
        node.meta["val"] = torch.empty(2, 4, 16, 8, device="meta")
    out = graph.call_function(aten._scaled_dot_product_flash_attention_for_cpu.default, (q, k, v))
    out.meta["val"] = (q.meta["val"], torch.empty(2, 16, 4, device="meta"))
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    grads = graph.call_function(backward, (q, q, k, v, q, q, 0.0, True))
    grads.meta["val"] = (q.meta["val"],) * 3
    product = 2 * 2 * 4 * 16 * 16 * 8
    assert flops_of(out) == 2 * product
    assert flops_of(grads) == 5 * product
