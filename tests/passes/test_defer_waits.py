"""The passes after autograd, on hand-written and traced ATen graphs."""

import operator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ladderize.errors import LadderError
from ladderize.graph.in_flight import check_in_flight, find_in_flight
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.join_waits import JoinWaits
from ladderize.passes.pin_order import PinOrder

c10d = torch.ops._c10d_functional
aten = torch.ops.aten


class Ladder:
    """Builds `num_blocks` blocks; block i's branch reads stream value max(i - staleness, 0)."""

    def __init__(self, num_blocks, staleness, group="tp", op=c10d.all_reduce.default):
        self.graph = Graph()
        values = [self._node(self.graph.placeholder, "x")]
        for i in range(num_blocks):
            branch = self.call(aten.relu.default, values[max(i - staleness, 0)], name=f"h{i}")
            launch = self.call(op, branch, "sum", group, name=f"l{i}")
            wait = self.call(c10d.wait_tensor.default, launch, name=f"w{i}")
            values.append(self.call(aten.add.Tensor, values[-1], wait, name=f"x{i + 1}"))
        self.graph.output((values[-1],))
        self.gm = GraphModule(torch.nn.Module(), self.graph)

    def call(self, target, *args, name):
        return self._node(self.graph.call_function, target, args, name=name)

    def _node(self, make, *args, **kwargs):
        name = kwargs.pop("name", None)
        node = make(*args, **kwargs) if name is None else self._named(make, args, name)
        node.meta["val"] = torch.empty(4, device="meta")
        return node

    def _named(self, make, args, name):
        node = make(*args)
        node.name = name
        return node

    def order(self, *letters):
        return [n.name for n in self.gm.graph.nodes if n.name[0] in letters and n.name != "x"]


def test_each_wait_comes_after_the_next_launch():
    ladder = Ladder(4, staleness=1)
    result = DeferWaits()(ladder.gm)
    assert ladder.order("l", "w") == ["l0", "l1", "w0", "l2", "w1", "l3", "w2", "w3"]
    assert result.changed == 3
    ladder.gm.graph.lint()


def test_the_wait_comes_right_after_that_launch():
    ladder = Ladder(3, staleness=1)
    DeferWaits()(ladder.gm)
    assert ladder.order("h", "l", "w", "x") == (
        ["h0", "l0", "h1", "l1", "w0", "x1", "h2", "l2", "w1", "x2", "w2", "x3"]
    )


def test_staleness_two_hides_behind_two_blocks():
    ladder = Ladder(5, staleness=2)
    DeferWaits()(ladder.gm)
    assert ladder.order("l", "w") == (["l0", "l1", "l2", "w0", "l3", "w1", "l4", "w2", "w3", "w4"])


def test_a_standard_net_stays_as_it_is():
    ladder = Ladder(4, staleness=0)
    before = ladder.order("h", "l", "w", "x")
    assert DeferWaits()(ladder.gm).changed == 0
    assert ladder.order("h", "l", "w", "x") == before


def test_transfers_of_two_groups_travel_together():
    """Each group has its own link: the second is launched before the first is waited for."""
    graph = Ladder(0, 1)
    x = next(iter(graph.graph.nodes))
    with graph.graph.inserting_before(graph.graph.output_node()):
        for i, group in enumerate(["tp", "dp"]):
            launch = graph.call(c10d.all_reduce.default, x, "sum", group, name=f"l{i}")
            graph.call(c10d.wait_tensor.default, launch, name=f"w{i}")
    DeferWaits()(graph.gm)
    assert graph.order("l", "w") == ["l0", "l1", "w0", "w1"]


def test_launches_keep_their_order():
    for staleness in range(4):
        ladder = Ladder(6, staleness)
        DeferWaits()(ladder.gm)
        assert ladder.order("l") == [f"l{i}" for i in range(6)]


def test_what_two_groups_wait_for_crosswise_stays_possible():
    """l1 needs v0 and m1 needs w0: only one wait can come after the other group's launch."""
    ladder = Ladder(0, 1)
    x = next(iter(ladder.graph.nodes))
    with ladder.graph.inserting_before(ladder.graph.output_node()):
        l0 = ladder.call(c10d.all_reduce.default, x, "sum", "a", name="l0")
        m0 = ladder.call(c10d.all_reduce.default, x, "sum", "b", name="m0")
        w0 = ladder.call(c10d.wait_tensor.default, l0, name="w0")
        v0 = ladder.call(c10d.wait_tensor.default, m0, name="v0")
        l1 = ladder.call(c10d.all_reduce.default, v0, "sum", "a", name="l1")
        m1 = ladder.call(c10d.all_reduce.default, w0, "sum", "b", name="m1")
        ladder.call(c10d.wait_tensor.default, l1, name="w1")
        ladder.call(c10d.wait_tensor.default, m1, name="v1")
    DeferWaits()(ladder.gm)
    assert ladder.order("l", "m", "w", "v") == ["l0", "m0", "v0", "l1", "w0", "m1", "w1", "v1"]
    ladder.gm.graph.lint()


def test_writes_into_memory_keep_their_place():
    """What block 0 brings is written into a buffer that is read only after that, then is reset."""
    ladder = Ladder(3, staleness=1)
    by_name = {node.name: node for node in ladder.graph.nodes}
    with ladder.graph.inserting_before(by_name["h1"]):
        buffer = ladder.call(aten.zeros.default, [4], name="buffer")
        view = ladder.call(aten.view.default, buffer, [4], name="view")
        view.meta["val"] = buffer.meta["val"].view(4)
        ladder.call(aten.copy_.default, view, by_name["w0"], name="c0")
        ladder.call(aten.neg.default, buffer, name="c1")
        ladder.call(aten.zero_.default, buffer, name="c2")
        ladder.call(aten.neg.default, view, name="c3")
    assert DeferWaits()(ladder.gm).changed == 2
    assert ladder.order("l", "w", "c") == (
        ["l0", "l1", "w0", "c0", "c1", "c2", "c3", "l2", "w1", "w2"]
    )
    ladder.gm.graph.lint()


@pytest.mark.parametrize("use_control_deps", [True, False])
def test_pins_follow_the_order(use_control_deps):
    ladder = Ladder(3, staleness=1)
    DeferWaits()(ladder.gm)
    assert PinOrder(use_control_deps)(ladder.gm).changed == 2
    ladder.gm.graph.lint()
    by_name = {node.name: node for node in ladder.gm.graph.nodes}
    if use_control_deps:
        assert by_name["l1"] in by_name["w0"].args[0]
        assert by_name["l2"] in by_name["w1"].args[0]
    else:
        added = ladder.gm.graph.find_nodes(
            op="call_function", target=torch.ops.ladderize.wait_add.default
        )
        assert [node.args[2].name for node in added] == ["l1", "l2"]


def test_without_control_deps_other_readers_get_a_copy():
    ladder = Ladder(2, staleness=1)
    x1 = next(node for node in ladder.graph.nodes if node.name == "x1")
    x1.target, x1.args = aten.mul.Tensor, x1.args
    DeferWaits()(ladder.gm)
    PinOrder(use_control_deps=False)(ladder.gm)
    (wait,) = ladder.gm.graph.find_nodes(
        op="call_function", target=torch.ops.ladderize.wait_after.default
    )
    assert wait.args[1].name == "l1"


@pytest.mark.parametrize(
    ("residual", "op"), [("alike", "wait_add"), ("other", "wait_after"), ("size", "wait_after")]
)
def test_without_control_deps_dynamic_sizes_are_compared(residual, op):
    ladder = Ladder(2, staleness=1)
    env = ShapeEnv()
    rows, others = env.create_unbacked_symint(), env.create_unbacked_symint()
    with FakeTensorMode(shape_env=env):
        values = {"alike": torch.empty(rows, 4), "other": torch.empty(others, 4), "size": rows}
    for node in ladder.graph.nodes:
        node.meta["val"] = values["alike"]
    next(node for node in ladder.graph.nodes if node.name == "x").meta["val"] = values[residual]
    DeferWaits()(ladder.gm)
    PinOrder(use_control_deps=False)(ladder.gm)
    (target,) = {n.target for n in ladder.graph.nodes if "wait_a" in str(n.target)}
    assert target is getattr(torch.ops.ladderize, op).default


def test_without_control_deps_a_wait_that_nobody_reads_stays():
    ladder = Ladder(2, staleness=1)
    x1 = next(node for node in ladder.graph.nodes if node.name == "x1")
    x1.replace_all_uses_with(x1.args[0])
    ladder.graph.erase_node(x1)
    DeferWaits()(ladder.gm)
    PinOrder(use_control_deps=False)(ladder.gm)
    assert ladder.order("l", "w") == ["l0", "l1", "w0", "w1"]


def test_without_control_deps_no_arguments_of_the_replaced_op_are_left():
    """Inductor lays an op's operands out as `eager_input_vals` says, and fails on another op's."""
    ladder = Ladder(2, staleness=1)
    for node in ladder.graph.nodes:
        node.meta["eager_input_vals"] = ((), {})
    DeferWaits()(ladder.gm)
    PinOrder(use_control_deps=False)(ladder.gm)
    op = torch.ops.ladderize.wait_add.default
    (added,) = ladder.gm.graph.find_nodes(op="call_function", target=op)
    assert "eager_input_vals" not in added.meta
    assert "val" in added.meta


def test_a_launch_without_wait_is_refused():
    ladder = Ladder(2, staleness=1)
    wait = next(node for node in ladder.graph.nodes if node.name == "w1")
    wait.replace_all_uses_with(wait.args[0])
    ladder.graph.erase_node(wait)
    with pytest.raises(LadderError, match="l1 has 0 waits") as caught:
        check_in_flight(ladder.graph)
    assert "reads l1 while it is in flight" in str(caught.value)


def test_a_second_wait_is_joined_to_the_first():
    ladder = Ladder(2, staleness=1)
    by_name = {node.name: node for node in ladder.graph.nodes}
    with ladder.graph.inserting_before(ladder.graph.output_node()):
        again = ladder.call(c10d.wait_tensor.default, by_name["l0"], name="w0_again")
        twice = ladder.call(aten.add.Tensor, by_name["x2"], again, name="twice")
    ladder.graph.output_node().args = ((twice,),)
    assert JoinWaits()(ladder.gm).changed == 1
    check_in_flight(ladder.graph)
    assert twice.args == (by_name["x2"], by_name["w0"])
    assert JoinWaits()(ladder.gm).changed == 0


def test_a_wait_for_what_has_been_waited_for_is_dropped():
    ladder = Ladder(2, staleness=1)
    by_name = {node.name: node for node in ladder.graph.nodes}
    with ladder.graph.inserting_after(by_name["w0"]):
        again = ladder.call(c10d.wait_tensor.default, by_name["w0"], name="again")
    by_name["x1"].replace_input_with(by_name["w0"], again)
    assert JoinWaits()(ladder.gm).changed == 1
    assert by_name["x1"].args[1] is by_name["w0"]
    assert again not in list(ladder.graph.nodes)


def test_a_launch_that_is_handed_out_is_handed_out_waited_for():
    """Selective checkpointing saves the launch itself where its policy names the collective."""
    ladder = Ladder(2, staleness=1)
    by_name = {node.name: node for node in ladder.graph.nodes}
    output = ladder.graph.output_node()
    output.args = ((by_name["x2"], by_name["l0"]),)
    assert JoinWaits()(ladder.gm).changed == 1
    assert output.args == ((by_name["x2"], by_name["w0"]),)
    check_in_flight(ladder.graph)


def test_the_size_of_what_is_in_flight_may_be_read():
    """A mixture of experts asks how many tokens an all-to-all brings."""
    ladder = Ladder(2, staleness=1)
    by_name = {node.name: node for node in ladder.graph.nodes}
    with ladder.graph.inserting_after(by_name["l0"]):
        ladder.call(aten.sym_size.int, by_name["l0"], 0, name="size")
    check_in_flight(ladder.graph)


# ---- coalesced collectives


def coalesced(op, num_launches=2):
    """Launches of two tensors each, with each wait directly after its launch."""
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, device="meta")
    for i in range(num_launches):
        h = graph.call_function(aten.relu.default, (x,))
        how = "sum" if op is c10d.all_reduce_coalesced.default else 2
        launch = graph.call_function(op, ([h, x], how, "tp"))
        launch.name = f"l{i}"
        for j in range(2):
            item = graph.call_function(operator.getitem, (launch, j))
            wait = graph.call_function(c10d.wait_tensor.default, (item,))
            wait.name = f"w{i}{j}"
    graph.output(tuple(n for n in graph.nodes if n.name[0] == "w"))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(4, device="meta")
    return GraphModule(torch.nn.Module(), graph)


def test_each_tensor_of_a_coalesced_launch_has_a_wait_that_is_deferred():
    gm = coalesced(c10d.all_reduce_coalesced.default)
    check_in_flight(gm.graph)
    assert [pair.wait.name for pair in find_in_flight(gm.graph)] == ["w00", "w01", "w10", "w11"]
    assert DeferWaits()(gm).changed == 2
    order = [n.name for n in gm.graph.nodes if n.name[0] in "lw"]
    assert order == ["l0", "l1", "w00", "w01", "w10", "w11"]


def test_a_coalesced_launch_that_is_not_waited_for_is_an_error():
    gm = coalesced(c10d.all_gather_into_tensor_coalesced.default)
    (wait, *_) = [node for node in gm.graph.nodes if node.name == "w01"]
    wait.replace_all_uses_with(wait.args[0])
    gm.graph.erase_node(wait)
    with pytest.raises(LadderError, match="has 0 waits, not one"):
        check_in_flight(gm.graph)


def test_a_tensor_of_a_coalesced_launch_waited_for_twice_keeps_one_wait():
    gm = coalesced(c10d.all_reduce_coalesced.default)
    (wait, *_) = [node for node in gm.graph.nodes if node.name == "w01"]
    with gm.graph.inserting_after(wait):
        again = gm.graph.call_function(c10d.wait_tensor.default, wait.args)
    next(iter(wait.users)).replace_input_with(wait, again)
    with gm.graph.inserting_after(again):
        gm.graph.call_function(aten.relu_.default, (wait,))
    assert JoinWaits()(gm).changed == 1
    check_in_flight(gm.graph)
