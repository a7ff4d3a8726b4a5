"""The cut into segments: what they are, that the program stays the same, that a bad cut is caught.

What is traced here has collectives of a group that does not exist; they are replaced before a run.
Real ranks are in test_cut_ranks.py, the graphs of the zoo in zoo/test_exported.py.
"""

import operator
import sys

import pytest
import torch
from cutting import without_names
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize.cut_check import cut_of
from ladderize.errors import LadderError
from ladderize.inflight import is_launch
from ladderize.jit import copy_graph
from ladderize.passes import cut
from ladderize.passes.cut import CutSegments
from ladderize.passes.defer_waits import DeferWaits
from ladderize.runner import Log, run_pass
from ladderize.segments import Role, Segment, find_segments, lower_segments, role_of, segments_of

aten, c10d = torch.ops.aten, torch.ops._c10d_functional


def launch(x: Tensor) -> Tensor:
    return c10d.all_reduce(x, "sum", "tp")


def wait(x: Tensor) -> Tensor:
    return c10d.wait_tensor(x)


def trace(fn, *args, symbolic=False):
    return make_fx(fn, tracing_mode="symbolic" if symbolic else "fake")(*args)


def cut_graph(gm):
    """Cut, with the proof that it is right; also how many segments there are."""
    return run_pass(gm, CutSegments(), Log(), cut_of(gm)).changed


def code(gm):
    """One line a node, with its operands; what is taken of a result is an item."""

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


def check(fn, *args, segments=None, symbolic=False, deferred=False, others=()):
    """Cut or whole: the same values, bit for bit, returned and in what is written to."""
    gm = trace(fn, *args, symbolic=symbolic)
    whole = runnable(gm)
    if deferred:
        run_pass(gm, DeferWaits(), Log())
    count = cut_graph(gm)
    assert segments in (None, count)
    for inputs in (args, *others):
        ours, theirs = ([value.clone() for value in inputs] for _ in range(2))
        found, expected = runnable(gm)(*ours), whole(*theirs)
        torch.testing.assert_close((found, ours), (expected, theirs), rtol=0, atol=0)
    return gm


# ---- what the segments are


def ladder(x, *weights):
    """Each block reads the stream one block stale, and is waited for at once."""
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


def test_a_ladder_is_cut_at_launches_and_waits():
    gm = ladder_graph()
    assert cut_graph(gm) == 5
    assert [line for line in code(gm) if "= item" not in line] == [
        "segment_0 = segment_0(arg0_1, arg1_1)",
        "all_reduce = _c10d_functional.all_reduce.default(mm)",
        "segment_1 = segment_1(arg0_1, arg2_1)",
        "all_reduce_1 = _c10d_functional.all_reduce.default(mm_1)",
        "wait_tensor = _c10d_functional.wait_tensor.default(all_reduce)",
        "segment_2 = segment_2(arg0_1, wait_tensor, arg3_1)",
        "all_reduce_2 = _c10d_functional.all_reduce.default(mm_2)",
        "wait_tensor_1 = _c10d_functional.wait_tensor.default(all_reduce_1)",
        "segment_3 = segment_3(add, wait_tensor_1)",
        "wait_tensor_2 = _c10d_functional.wait_tensor.default(all_reduce_2)",
        "segment_4 = segment_4(add_1, wait_tensor_2)",
    ]
    body = segments_of(gm)["segment_2"]
    assert code(body) == [
        "add = aten.add.Tensor(arg0_1, wait_tensor)",
        "relu_2 = aten.relu.default(add)",
        "t_2 = aten.t.default(arg3_1)",
        "mm_2 = aten.mm.default(relu_2, t_2)",
    ]
    assert [node.name for node in body.graph.output_node().args[0]] == ["add", "mm_2"]


def test_more_blocks_are_more_segments_of_one_kind():
    """One for each block, one for the sum that no launch follows, one for the last sum."""
    for num_blocks in (3, 8):
        gm = ladder_graph(num_blocks)
        assert cut_graph(gm) == num_blocks + 2
        kinds = [without_names(body) for body in segments_of(gm).values()]
        first, second, *middle, lonely, last = kinds
        assert len({first, second}) == len(set(middle)) == len({lonely, last}) == 1


def test_without_boundaries_all_is_one_segment():
    gm = check(lambda x, w: (torch.relu(x @ w.t()) * 2).sum(1), *ladder_args(1), segments=1)
    assert code(gm) == ["segment_0 = segment_0(x_1, w_1)", "sum_1 = item(segment_0)"]


def test_values_of_a_ladder():
    check(ladder, *ladder_args(4), segments=5)


def test_cutting_twice_changes_nothing():
    gm = ladder_graph()
    cut_graph(gm)
    before = code(gm)
    assert CutSegments()(gm).changed == 0
    assert code(gm) == before


ROLES = [
    ("view", lambda x: x.view(-1), Role.FREE),
    ("a part of a view", lambda x: x.split(1)[0], Role.FREE),
    ("_unsafe_view", lambda x: aten._unsafe_view(x, [-1]), Role.FREE),
    ("a part", lambda x: x.topk(1)[0], Role.COMPUTE),
    ("contiguous", lambda x: x.mT.contiguous(), Role.COMPUTE),
    ("arange", lambda x: torch.arange(3, device=x.device), Role.COMPUTE),
    ("in place", lambda x: x.relu_(), Role.BOUNDARY),
    ("all_to_all", lambda x: c10d.all_to_all_single(x, [1], [1], "tp"), Role.BOUNDARY),
    ("several", lambda x: c10d.all_reduce_coalesced([x], "sum", "tp")[0], Role.BOUNDARY),
    ("our wait", lambda x: torch.ops.ladderize.wait(x), Role.BOUNDARY),
    ("our copy", lambda x: torch.ops.ladderize.copy(x, "tp"), Role.BOUNDARY),
    ("a body", lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, [x]), Role.BOUNDARY),
]


@pytest.mark.parametrize(("fn", "role"), [pytest.param(*row[1:], id=row[0]) for row in ROLES])
def test_roles(fn, role):
    x = torch.randn(1, 4)
    gm = make_fx(fn, tracing_mode="fake", pre_dispatch=True)(x)
    assert role_of(gm.graph.output_node().args[0]) is role


def test_what_the_host_reads_or_asserts_is_a_boundary():
    def fn(x):
        torch._assert_async(x.sum() > 0, "positive")
        return x * x.sum().item()

    gm = trace(fn, torch.ones(3), symbolic=True)
    roles = {str(node.target): role_of(node) for node in gm.graph.nodes}
    assert roles["aten._local_scalar_dense.default"] is Role.BOUNDARY
    assert roles["aten._assert_async.msg"] is Role.BOUNDARY


def test_checks_of_form_are_left_out():
    """Exported programs have one ahead of each cast; the fake values have passed them."""

    def fn(x):
        y = (x * 2).view(8)
        aten._assert_tensor_metadata(y, None, None, torch.float32)
        return wait(y)

    gm = check(fn, torch.randn(2, 4), segments=1)
    calls = code(gm) + code(segments_of(gm)["segment_0"])
    assert len(calls) == 5  # the segment, the item, the wait; the product, the view


def test_work_is_linear_in_depth():
    """By the number of calls in Python: of the pass, and of the proof."""

    def count_calls(num_blocks):
        gm, counted = ladder_graph(num_blocks), 0

        def count(*_):
            nonlocal counted
            counted += 1

        sys.setprofile(count)
        try:
            cut_graph(gm)
        finally:
            sys.setprofile(None)
        return counted

    count_calls(2)  # what is done once
    assert count_calls(64) < 2.1 * count_calls(32)


# ---- what crosses


def test_a_view_is_made_where_it_is_read():
    """The transpose of a weight in each segment that reads it, and outside for the output."""

    def fn(x, w):
        v = w.t()
        y = wait(launch(x @ v))
        return wait(launch(y @ v)), v

    gm = check(fn, *ladder_args(1), segments=2)
    assert [line for line in code(gm) if "= item" not in line and "c10d" not in line] == [
        "t = aten.t.default(w_1)",
        "segment_0 = segment_0(x_1, w_1)",
        "segment_1 = segment_1(wait_tensor, w_1)",
    ]


def crossing(fn, *args):
    """The names of what the first segment of a graph returns."""
    body = segments_of(check(fn, *args))["segment_0"]
    return [node.name for node in body.graph.output_node().args[0]]


def test_the_one_reshape_that_is_read_is_made_by_the_segment():
    x = torch.randn(2, 4)
    assert crossing(lambda x: wait(launch(x.relu().view(8)[None])), x) == ["unsqueeze"]
    assert crossing(lambda x: (y := x.relu(), wait(y.view(8) + 1)), x) == ["relu", "add"]
    assert crossing(lambda x: wait((y := x.relu().view(8)) + 1) * y, x) == ["view", "add"]
    assert crossing(lambda x: ((y := x.relu()).view(8), wait(y + 1)), x) == ["view", "add"]


def test_all_other_views_of_a_result_are_made_where_they_are_read():
    """No two outputs are of the same memory; one that is no plain reshape keeps its strides."""
    x = torch.randn(2, 4)
    assert crossing(lambda x: wait((y := x.relu()).view(8)) + y.view(8, 1), x) == ["relu"]
    assert crossing(lambda x: wait(y := x.relu()) + y.view(2, 4), x) == ["relu"]
    assert crossing(lambda x: wait(x.relu().t()), x) == ["relu"]
    assert crossing(lambda x: wait(x.relu()[0].view(2, 2)), x) == ["relu"]
    assert crossing(lambda x: wait(x.relu().expand(3, 2, 4)), x) == ["relu"]


def test_a_reshape_behind_a_boundary_is_made_there():
    """It may be of a size that only the boundary makes known."""

    def fn(x):
        y = x.relu()
        return wait(x.sum()) * y.view(8)

    assert crossing(fn, torch.randn(2, 4)) == ["relu", "sum_1"]


def test_parts_of_a_result():
    """A call with several results belongs to its segment with all of them; parts are views."""

    def fn(x):
        values, indices = x.topk(2)
        a, b = x.relu().split(1)
        y = wait(launch(values))
        return y * 2, indices + 1, b, a * y[:1, :1]

    gm = check(fn, torch.randn(2, 4), segments=2)
    results = segments_of(gm)["segment_0"].graph.output_node().args[0]
    assert [node.name for node in results] == ["getitem", "getitem_1", "relu"]


def test_a_part_that_stands_behind_a_boundary():
    """It belongs to the call all the same."""

    def fn(x):
        values, indices = x.topk(2)
        y = wait(launch(values))
        return y, indices.relu()

    gm = trace(fn, torch.randn(2, 4))
    find(gm, "relu").prepend(find(gm, "getitem_1"))
    gm.graph.lint()
    assert cut_graph(gm) == 2
    results = segments_of(gm)["segment_0"].graph.output_node().args[0]
    assert [node.name for node in results] == ["getitem", "getitem_1"]


def test_parts_of_what_a_boundary_returns():
    """They divide no run, and stand ahead of the segment that reads them."""

    def fn(x):
        a, b = c10d.all_reduce_coalesced([x, x * 2], "sum", "tp")
        return x.relu() + a + b

    gm = trace(fn, torch.randn(2, 4))
    for name in ("getitem", "getitem_1"):
        find(gm, "relu").append(find(gm, name))
    assert cut_graph(gm) == 2
    gm.graph.lint()
    calls = ["segment_1 = segment_1(x_1, getitem, getitem_1)", "add_1 = item(segment_1)"]
    assert code(gm)[-2:] == calls


def test_a_run_that_only_makes_constants_stays_outside():
    def fn(x):
        y = wait(x)
        ones = torch.ones(4, device=x.device)
        return wait(y) * ones

    gm = check(fn, torch.randn(2, 4), segments=1)
    assert "ones = aten.ones.default()" in code(gm)


def test_a_constant_crosses_as_a_tensor():
    gm = check(lambda x: x + torch.tensor([1.0, 2.0]), torch.randn(2), segments=1)
    (call,) = gm.graph.find_nodes(op="call_module", target="segment_0")
    assert {source.op for source in call.args} == {"placeholder", "get_attr"}
    placeholders = segments_of(gm)["segment_0"].graph.find_nodes(op="placeholder")
    assert [node.meta["val"].shape for node in placeholders] == [(2,), (2,)]


def test_random_numbers_keep_their_order():
    def fn(x):
        a, b = torch.rand_like(x), torch.rand_like(x)
        c = wait(x)
        return a, b - torch.rand_like(c) * c

    gm = trace(fn, torch.randn(3))
    whole = runnable(gm)
    cut_graph(gm)
    found = []
    for run in (whole, runnable(gm)):
        torch.manual_seed(1)
        found.append(run(torch.ones(3)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


# ---- sizes


def test_sizes_are_read_off_the_tensors():
    """And what is computed from them is computed where it is read."""

    def fn(x, w):
        rows = x.shape[0]
        y = wait(launch((x @ w.t()).view(rows, 2, 2)))
        return y.view(rows * 2, 2).relu() + torch.arange(rows * 2, device=x.device)[:, None]

    others = [(torch.randn(5, 4), torch.randn(4, 4))]
    gm = check(fn, *ladder_args(1), segments=2, symbolic=True, others=others)
    for body in segments_of(gm).values():
        inputs = body.graph.find_nodes(op="placeholder")
        assert all(isinstance(node.meta["val"], Tensor) for node in inputs)
    assert code(body)[:2] == [
        "sym_size_int = aten.sym_size.int(wait_tensor)",
        "mul = mul(sym_size_int)",
    ]


def test_a_size_of_no_tensor_crosses_as_a_number():
    """The last segment reads the length of `x`, but not `x`."""

    def fn(x, y):
        z = wait(wait(x * 2).sum())
        return z + torch.arange(x.shape[0], device=x.device) * y

    args, others = (torch.randn(3), torch.randn(1)), (torch.randn(5), torch.randn(1))
    gm = check(fn, *args, symbolic=True, others=[others])
    *_, last = segments_of(gm).values()
    *_, number = last.graph.find_nodes(op="placeholder")
    assert isinstance(number.meta["val"], torch.SymInt)


def test_a_number_and_what_it_is_read_off_stand_ahead_of_the_segment():
    """The size of a view of an input that is no input of the segment."""

    def fn(x, y):
        z = y * 2
        return z + torch.arange(x.shape[0], device=x.device)

    gm = trace(fn, torch.randn(3), torch.randn(1), symbolic=True)
    product, size = find(gm, "mul"), find(gm, "sym_size_int")
    product.append(size)
    with gm.graph.inserting_after(product):
        view = gm.graph.call_function(aten.alias.default, size.args[:1])
    view.meta["val"] = size.args[0].meta["val"]
    size.args = (view, 0)
    whole = runnable(gm)
    assert cut_graph(gm) == 1
    gm.graph.lint()
    args = torch.randn(4), torch.randn(1)
    assert torch.equal(gm(*args), whole(*args))


def test_an_assertion_of_sizes_stays_outside():
    gm = trace(lambda x: x.relu().view(x.shape[0] * 2, 2), torch.randn(3, 4), symbolic=True)
    size = find(gm, "sym_size_int")
    with gm.graph.inserting_after(size):
        is_many = gm.graph.call_function(operator.gt, (size, 1))
    is_many.meta["val"] = size.meta["val"] > 1
    with gm.graph.inserting_after(is_many):
        gm.graph.call_function(aten._assert_scalar.default, (is_many, "few"), name="check")
    find(gm, "check").meta["val"] = None
    assert cut_graph(gm) == 1
    assert "check = aten._assert_scalar.default(gt)" in code(gm)


def test_sizes_that_depend_on_values():
    """They are read off what the segment itself computes, or outside off what crosses."""

    def fn(x):
        found = x.nonzero().squeeze(1)
        inside = torch.arange(found.shape[0], device=x.device) * found
        y = wait(inside)
        return wait(y.view(found.shape[0], 1)) * 2 + found.shape[0]

    check(fn, torch.tensor([1.0, 0, 2]), symbolic=True, others=[(torch.ones(4),)])


# ---- writes


def test_a_write_stays_between_the_reads_before_and_after_it():
    """Also the reads through a view that was made before."""

    def fn(cache, x, place):
        row = cache[0]
        before = row * 2
        cache.index_copy_(0, place, x)
        after = row * 3
        cache.mul_(2)
        return before + after, row + 1, cache.sum()

    gm = check(fn, torch.ones(3, 4), torch.randn(1, 4), torch.tensor([0]), segments=3)
    calls = [line.split(" = ")[1].split("(")[0] for line in code(gm) if "= item" not in line]
    assert calls == (
        "segment_0 aten.index_copy_.default segment_1 aten.mul_.Tensor segment_2".split()
    )


def test_the_epilogue_of_a_functional_graph():
    def fn(cache, x, place):
        new = torch.index_put(cache, (place,), x)
        y = wait(launch((new * 2).sum(0)))
        cache.copy_(new)
        return y + 1, cache + 1

    check(fn, torch.ones(3, 4), torch.randn(1, 4), torch.tensor([1]), segments=2)


# ---- lowering


def test_each_segment_is_lowered_by_its_name():
    gm, args = ladder_graph(), ladder_args()
    cut_graph(gm)
    bodies = segments_of(gm)
    expected, seen, given = runnable(gm)(*args), [], []

    def lower(name, body):
        seen.append(name)

        def run(*inputs):
            given.append(len(inputs))
            return body(*inputs)

        return body if name == "segment_1" else run

    lower_segments(gm, lower)
    assert seen == [f"segment_{i}" for i in range(5)]
    assert gm.segment_1 is bodies["segment_1"]
    assert torch.equal(runnable(gm)(*args), expected)
    assert given == [2, 3, 2, 2]


# ---- a cut that is wrong


def find(gm, name):
    return next(node for node in gm.graph.nodes if node.name == name)


def wrong(gm, proof):
    with pytest.raises(LadderError, match="not cut into segments properly") as caught:
        proof(gm)
    return str(caught.value)


def proper():
    gm = ladder_graph()
    proof = cut_of(gm)
    CutSegments()(gm)
    proof(gm)
    return gm, proof


def test_a_wait_ahead_of_a_launch_is_caught():
    gm, proof = proper()
    find(gm, "all_reduce_1").prepend(find(gm, "wait_tensor"))
    message = wrong(gm, proof)
    assert "wait_tensor is where all_reduce_1 was" in message
    assert "all_reduce_1 is where wait_tensor was" in message


def test_a_segment_behind_another_launch_is_caught():
    gm, proof = proper()
    find(gm, "segment_1").append(find(gm, "mm_1"))
    find(gm, "all_reduce").prepend(find(gm, "segment_1"))
    message = wrong(gm, proof)
    assert "no boundary is between segment_0 and segment_1" in message
    assert "mm_1 is computed behind boundary 0, and was not" in message


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
    assert "the results are not those of the flat graph" in message
    assert "segment_4 returns add_2, which nothing reads" in message


def returning(name):
    """An edit of a segment: it returns one value more."""

    def edit(body):
        output = body.graph.output_node()
        output.args = ((*output.args[0], find(body, name)),)

    return edit


def holding(op, name, *rest):
    """An edit of a segment: it calls one op more."""

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
        (returning("relu_2"), "segment_2 returns 3 values, of which 2 are taken"),
        (returning("mm_2"), "segment_2 returns mm_2 and another view of the same memory"),
        (returning("arg0_1"), "segment_2 returns arg0_1, which it does not compute"),
        (returning("t_2"), "segment_2 returns t_2, which it does not compute"),
        (reading("wait_tensor", "arg0_1"), "segment_2 does not read wait_tensor"),
        (reading("wait_tensor", "arg0_1"), "all_reduce_2 reads other values than before"),
        (
            holding(aten.neg.default, "relu_2"),
            "extra is computed behind boundary 3, and was not",
        ),
        (holding(aten.neg.default, "relu_2"), "segment_2 holds extra, which nothing reads"),
        (holding(aten.relu.default, "add"), "extra is computed behind boundary 3, and was not"),
        (holding(aten.relu_.default, "add"), "segment_2 holds extra, which belongs outside"),
        (holding(c10d.wait_tensor.default, "add"), "segment_2 holds extra, which belongs outside"),
        (forgetting("wait_tensor"), "segment_2 does not know the form of wait_tensor"),
        (forgetting("mm_2"), "segment_2 returns mm_2, whose form is not known outside"),
        (forgetting("mm_2"), "segment_2 has another fake value than its results"),
    ],
)
def test_a_wrong_segment_is_caught(edit, message):
    gm, proof = proper()
    edit(segments_of(gm)["segment_2"])
    assert message in wrong(gm, proof)


def halved(segments):
    return tuple(
        Segment(f"{segment.name}{half}", nodes)
        for segment in segments
        for half, nodes in (("", segment.nodes[:1]), ("0", segment.nodes[1:]))
        if nodes
    )


def without_the_last(segments):
    return segments[:-1]


def with_the_boundary(segments):
    first, *rest = segments
    return (Segment(first.name, (*first.nodes, first.nodes[-1].next)), *rest)


def with_the_next(segments):
    """The first takes the sum of the one behind it, past a launch and a wait."""
    first, second, third, *rest = segments
    return (
        first,
        Segment(second.name, (*second.nodes, third.nodes[0])),
        Segment(third.name, third.nodes[1:]),
        *rest,
    )


@pytest.mark.parametrize(
    ("fault", "messages"),
    [
        (halved, ["no boundary is between segment_0 and segment_00"]),
        (without_the_last, ["add_2 is computed outside of the segments"]),
        (with_the_boundary, ["segment_0 holds all_reduce, which belongs outside"]),
    ],
)
def test_wrong_segments_are_caught(fault, messages, monkeypatch):
    gm = ladder_graph()
    proof = cut_of(gm)
    monkeypatch.setattr(cut, "find_segments", lambda graph: fault(find_segments(graph)))
    CutSegments()(gm)
    for message in messages:
        assert message in wrong(gm, proof)


def test_a_write_in_a_segment_is_caught(monkeypatch):
    def fn(cache, x):
        before = cache * 2
        cache.add_(x)
        return before + cache * 3

    def with_the_write(graph):
        nodes = [node for node in graph.nodes if node.op == "call_function"]
        return (Segment("segment_0", tuple(nodes)),)

    gm = trace(fn, torch.ones(3), torch.ones(3))
    proof = cut_of(gm)
    monkeypatch.setattr(cut, "find_segments", with_the_write)
    CutSegments()(gm)
    assert "segment_0 holds add_, which belongs outside" in wrong(gm, proof)


def test_a_read_on_the_wrong_side_of_a_write_is_caught():
    def fn(cache, x):
        view = cache[0]
        before = view * 2
        cache.add_(x)
        return before, view * 2

    gm = trace(fn, torch.ones(3, 2), torch.ones(2))
    proof = cut_of(gm)
    CutSegments()(gm)
    proof(gm)
    first, second = gm.graph.output_node().args[0]
    gm.graph.output_node().args = ((second, first),)
    assert "the results are not those of the flat graph" in wrong(gm, proof)


def test_exchanged_random_numbers_are_caught():
    gm = trace(lambda x: (torch.rand_like(x), torch.rand_like(x)), torch.randn(3))
    proof = cut_of(gm)
    CutSegments()(gm)
    proof(gm)
    gm.graph.output_node().args = (gm.graph.output_node().args[0][::-1],)
    assert "the results are not those of the flat graph" in wrong(gm, proof)


def test_a_wrong_size_is_caught():
    gm = trace(lambda x: x.relu().view(x.shape[1], -1) * 2, torch.randn(2, 3), symbolic=True)
    proof = cut_of(gm)
    CutSegments()(gm)
    proof(gm)
    body = segments_of(gm)["segment_0"]
    (size,) = body.graph.find_nodes(op="call_function", target=aten.sym_size.int)
    size.args = (size.args[0], 0)
    assert "the results are not those of the flat graph" in wrong(gm, proof)


def test_a_size_that_a_tensor_has_is_caught():
    gm = trace(lambda x: x.relu().view(x.shape[1], -1) * 2, torch.randn(2, 3), symbolic=True)
    proof = cut_of(gm)
    CutSegments()(gm)
    call, body = find(gm, "segment_0"), segments_of(gm)["segment_0"]
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
    assert "segment_0 is given given, which is a size of one of its tensors" in message


# ---- any program


WIDTH = 4


def fold(x):
    """A copy under two reshapes, the sizes computed from those of `x`."""
    return x.clone(memory_format=torch.contiguous_format).view(x.shape[0] * 2, -1).view(x.shape)


STEPS = {
    "relu": lambda a, _: a.relu(),
    "add": lambda a, b: a + b,
    "mm": lambda a, b: a @ b[:1].t() * b,
    "fold": lambda a, _: fold(a),
    "parts": lambda a, b: torch.cat([a[:, :2], b.split(2, 1)[1]], 1),
    "sorted": lambda a, b: torch.add(*a.sort(1)) + b,
    "count": lambda a, _: a * torch.arange(a.shape[0], device=a.device)[:, None],
    "turn": lambda a, _: a.t().unsqueeze(0).squeeze(0).t(),
    "first": lambda a, _: a[0].expand(a.shape),
    "reduce": lambda a, _: wait(launch(a)),
    "boundary": lambda a, _: wait(a.clone()),
    "write": lambda a, b: a.add_(b.mean()),
}


@st.composite
def programs(draw):
    """Steps, each with the two values that it reads; and what is returned."""
    steps = []
    for made in range(2, draw(st.integers(4, 16))):
        values = st.integers(0, made - 1)
        steps.append((draw(st.sampled_from(sorted(STEPS))), draw(values), draw(values)))
    return steps, draw(st.sets(st.integers(0, len(steps) + 1), min_size=1))


def run_program(program, x, y):
    steps, returned = program
    values, is_writable = [x, y], [True, True]
    for name, a, b in steps:
        name = "relu" if name == "write" and not is_writable[a] else name
        values.append(STEPS[name](values[a], values[b]))
        is_writable.append(name != "first" and (name != "turn" or is_writable[a]))
    return tuple(values[i] for i in sorted(returned))


def program_args(rows):
    return tuple(
        torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows)) for _ in range(2)
    )


@examples(150)
@given(programs())
def test_any_program(program):
    def fn(x, y):
        return run_program(program, x, y)

    check(fn, *program_args(3), deferred=True)


@examples(20)
@given(programs())
def test_any_program_with_dynamic_sizes(program):
    def fn(x, y):
        return run_program(program, x, y)

    check(fn, *program_args(3), symbolic=True, deferred=True, others=[program_args(5)])
