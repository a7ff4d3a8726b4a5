"""Wrong cuts are caught: graphs that are cut wrongly, and graphs edited afterwards."""

import pytest
import torch
from helpers.flat_graphs import aten, c10d, find, ladder_graph, trace, wait

from ladderize.backends.tensorrt import cut
from ladderize.backends.tensorrt.check_cut import cut_of
from ladderize.backends.tensorrt.cut import CutIslands
from ladderize.backends.tensorrt.islands import Island, find_islands, islands_of
from ladderize.errors import LadderError


def wrong(gm, proof):
    with pytest.raises(LadderError, match="not cut into islands correctly") as caught:
        proof(gm)
    return str(caught.value)


def proper():
    gm = ladder_graph()
    proof = cut_of(gm)
    CutIslands()(gm)
    proof(gm)
    return gm, proof


def test_a_wait_ahead_of_a_launch_is_caught():
    gm, proof = proper()
    find(gm, "all_reduce_1").prepend(find(gm, "wait_tensor"))
    message = wrong(gm, proof)
    assert "wait_tensor is in the place of all_reduce_1" in message
    assert "all_reduce_1 is in the place of wait_tensor" in message


def test_a_island_behind_another_launch_is_caught():
    gm, proof = proper()
    find(gm, "island_1").append(find(gm, "mm_1"))
    find(gm, "all_reduce").prepend(find(gm, "island_1"))
    message = wrong(gm, proof)
    assert "there is no boundary between island_0 and island_1" in message
    assert "mm_1 is computed after boundary 0, but was not" in message


def test_another_collective_is_caught():
    gm, proof = proper()
    find(gm, "all_reduce_1").args = (find(gm, "mm_1"), "sum", "dp")
    assert "all_reduce_1 reads other values than before" in wrong(gm, proof)
    find(gm, "wait_tensor_2").replace_all_uses_with(find(gm, "all_reduce_2"))
    gm.graph.erase_node(find(gm, "wait_tensor_2"))
    assert "wait_tensor_2 is missing" in wrong(gm, proof)


def test_other_results_are_caught():
    gm, proof = proper()
    gm.graph.output_node().args = (find(gm, "add_1"),)
    message = wrong(gm, proof)
    assert "the results differ from those of the flat graph" in message
    assert "island_4 returns add_2, which nothing reads" in message


def returning(name):
    """An edit of an island: it returns one more value."""

    def edit(body):
        output = body.graph.output_node()
        output.args = ((*output.args[0], find(body, name)),)

    return edit


def holding(op, name, *rest):
    """An edit of an island: it calls one more op."""

    def edit(body):
        source = find(body, name)
        with body.graph.inserting_before(body.graph.output_node()):
            extra = body.graph.call_function(op, (source, *rest), name="extra")
            extra.meta = dict(source.meta)

    return edit


def reading(old, new):
    return lambda body: find(body, old).replace_all_uses_with(find(body, new))


def forgetting(name):
    return lambda body: find(body, name).meta.update(val=torch.empty(1))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (returning("relu_2"), "island_2 returns 3 values, but 2 are used"),
        (returning("mm_2"), "island_2 returns mm_2 and another view of the same memory"),
        (returning("arg0_1"), "island_2 returns arg0_1, which it does not compute"),
        (returning("t_2"), "island_2 returns t_2, which it does not compute"),
        (reading("wait_tensor", "arg0_1"), "island_2 does not read wait_tensor"),
        (reading("wait_tensor", "arg0_1"), "all_reduce_2 reads other values than before"),
        (
            holding(aten.neg.default, "relu_2"),
            "extra is computed after boundary 3, but was not",
        ),
        (holding(aten.neg.default, "relu_2"), "island_2 contains extra, which nothing reads"),
        (holding(aten.relu.default, "add"), "extra is computed after boundary 3, but was not"),
        (holding(aten.relu_.default, "add"), "island_2 contains extra, which belongs outside"),
        (
            holding(c10d.wait_tensor.default, "add"),
            "island_2 contains extra, which belongs outside",
        ),
        (forgetting("wait_tensor"), "island_2 has wrong metadata for wait_tensor"),
        (forgetting("mm_2"), "island_2 returns mm_2, whose metadata is wrong outside"),
        (forgetting("mm_2"), "island_2 has a fake value that differs from its results"),
    ],
)
def test_a_wrong_island_is_caught(edit, message):
    gm, proof = proper()
    edit(islands_of(gm)["island_2"])
    assert message in wrong(gm, proof)


def halved(islands):
    return tuple(
        Island(f"{island.name}{half}", nodes)
        for island in islands
        for half, nodes in (("", island.nodes[:1]), ("0", island.nodes[1:]))
        if nodes
    )


def without_the_last(islands):
    return islands[:-1]


def with_the_boundary(islands):
    first, *rest = islands
    return (Island(first.name, (*first.nodes, first.nodes[-1].next)), *rest)


def cut_by(faulty, gm, monkeypatch):
    """The message of the check for a cut into other islands."""
    proof = cut_of(gm)
    monkeypatch.setattr(cut, "find_islands", faulty)
    CutIslands()(gm)
    return wrong(gm, proof)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (halved, "there is no boundary between island_0 and island_00"),
        (without_the_last, "add_2 is computed outside of the islands"),
        (with_the_boundary, "island_0 contains all_reduce, which belongs outside"),
    ],
)
def test_wrong_islands_are_caught(fault, message, monkeypatch):
    found = cut_by(lambda graph: fault(find_islands(graph)), ladder_graph(), monkeypatch)
    assert message in found


def test_a_constant_beside_a_island_is_caught(monkeypatch):
    def without_the_constant(graph):
        (island,) = find_islands(graph)
        return (Island(island.name, island.nodes[1:]),)

    gm = trace(lambda x: torch.arange(3, device=x.device) * x, torch.ones(3))
    message = cut_by(without_the_constant, gm, monkeypatch)
    assert "arange is computed outside of the islands" in message


def test_a_island_of_a_constant_is_caught(monkeypatch):
    def of_the_constant(graph):
        return (Island("island_0", (find(graph.owning_module, "arange"),)),)

    gm = trace(lambda x: wait(x) * wait(torch.arange(3, device=x.device)), torch.ones(3))
    assert "island_0 computes nothing" in cut_by(of_the_constant, gm, monkeypatch)


def test_a_view_that_crosses_is_caught():
    gm, proof = proper()
    call = find(gm, "island_1")
    with gm.graph.inserting_before(call):
        view = gm.graph.call_function(aten.alias.default, call.args[:1], name="view")
    view.meta = dict(call.args[0].meta)
    call.args = (view, *call.args[1:])
    assert "island_1 gets the view view instead of its base" in wrong(gm, proof)


def test_a_write_in_a_island_is_caught(monkeypatch):
    def fn(cache, x):
        before = cache * 2
        cache.add_(x)
        return before + cache * 3

    def with_the_write(graph):
        nodes = [node for node in graph.nodes if node.op == "call_function"]
        return (Island("island_0", tuple(nodes)),)

    gm = trace(fn, torch.ones(3), torch.ones(3))
    message = cut_by(with_the_write, gm, monkeypatch)
    assert "island_0 contains add_, which belongs outside" in message


def test_a_read_on_the_wrong_side_of_a_write_is_caught():
    def fn(cache, x):
        view = cache[0]
        before = view * 2
        cache.add_(x)
        return before, view * 2

    gm = trace(fn, torch.ones(3, 2), torch.ones(2))
    proof = cut_of(gm)
    CutIslands()(gm)
    proof(gm)
    first, second = gm.graph.output_node().args[0]
    gm.graph.output_node().args = ((second, first),)
    assert "the results differ from those of the flat graph" in wrong(gm, proof)


def test_exchanged_random_numbers_are_caught():
    gm = trace(lambda x: (torch.rand_like(x), torch.rand_like(x)), torch.randn(3))
    proof = cut_of(gm)
    CutIslands()(gm)
    proof(gm)
    gm.graph.output_node().args = (gm.graph.output_node().args[0][::-1],)
    assert "the results differ from those of the flat graph" in wrong(gm, proof)


def test_a_wrong_size_is_caught():
    gm = trace(lambda x: x.relu().view(x.shape[1], -1) * 2, torch.randn(2, 3), symbolic=True)
    proof = cut_of(gm)
    CutIslands()(gm)
    proof(gm)
    body = islands_of(gm)["island_0"]
    (size,) = body.graph.find_nodes(op="call_function", target=aten.sym_size.int)
    size.args = (size.args[0], 0)
    assert "the results differ from those of the flat graph" in wrong(gm, proof)


def test_a_size_that_a_tensor_has_is_caught():
    gm = trace(lambda x: x.relu().view(x.shape[1], -1) * 2, torch.randn(2, 3), symbolic=True)
    proof = cut_of(gm)
    CutIslands()(gm)
    call, body = find(gm, "island_0"), islands_of(gm)["island_0"]
    (size,) = body.graph.find_nodes(op="call_function", target=aten.sym_size.int)
    with gm.graph.inserting_before(call):
        given = gm.graph.call_function(aten.sym_size.int, (call.args[0], 1), name="given")
    with body.graph.inserting_after(size.args[0]):
        taken = body.graph.placeholder("given")
    given.meta, taken.meta = dict(size.meta), dict(size.meta)
    call.args = (*call.args, given)
    size.replace_all_uses_with(taken)
    body.graph.erase_node(size)
    message = wrong(gm, proof)
    assert "island_0 gets given, which is a size of one of its tensors" in message
