"""The cut into islands: where, what crosses, and that the program stays the same.

Real ranks are in test_cut_ranks.py, the graphs of the zoo in zoo/sharded.py; that a wrong cut
is caught is in test_cut_check.py.
"""

import operator
import sys

import pytest
import torch
from helpers.cutting import lower_islands, without_names
from helpers.few_examples import examples
from helpers.flat_graphs import (
    aten,
    c10d,
    check,
    code,
    cut_graph,
    find,
    ladder,
    ladder_args,
    ladder_graph,
    launch,
    runnable,
    trace,
    wait,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize.backends.tensorrt.cut import CutIslands
from ladderize.backends.tensorrt.islands import Role, islands_of, role_of

# ---- where


def test_a_ladder_is_cut_at_launches_and_waits():
    gm = ladder_graph()
    assert cut_graph(gm) == 5
    assert [line for line in code(gm) if "= item" not in line] == [
        "island_0 = island_0(arg0_1, arg1_1)",
        "all_reduce = _c10d_functional.all_reduce.default(mm)",
        "island_1 = island_1(arg0_1, arg2_1)",
        "all_reduce_1 = _c10d_functional.all_reduce.default(mm_1)",
        "wait_tensor = _c10d_functional.wait_tensor.default(all_reduce)",
        "island_2 = island_2(arg0_1, wait_tensor, arg3_1)",
        "all_reduce_2 = _c10d_functional.all_reduce.default(mm_2)",
        "wait_tensor_1 = _c10d_functional.wait_tensor.default(all_reduce_1)",
        "island_3 = island_3(add, wait_tensor_1)",
        "wait_tensor_2 = _c10d_functional.wait_tensor.default(all_reduce_2)",
        "island_4 = island_4(add_1, wait_tensor_2)",
    ]
    body = islands_of(gm)["island_2"]
    assert code(body) == [
        "add = aten.add.Tensor(arg0_1, wait_tensor)",
        "relu_2 = aten.relu.default(add)",
        "t_2 = aten.t.default(arg3_1)",
        "mm_2 = aten.mm.default(relu_2, t_2)",
    ]
    assert [node.name for node in body.graph.output_node().args[0]] == ["add", "mm_2"]


def test_more_blocks_are_more_islands_of_one_kind():
    """One island per block, one for the sum that no launch follows, and one for the last sum."""
    for num_blocks in (3, 8):
        gm = ladder_graph(num_blocks)
        assert cut_graph(gm) == num_blocks + 2
        kinds = [without_names(body) for body in islands_of(gm).values()]
        first, second, *middle, lonely, last = kinds
        assert len({first, second}) == len(set(middle)) == len({lonely, last}) == 1


def test_without_boundaries_all_is_one_island():
    gm = check(lambda x, w: (torch.relu(x @ w.t()) * 2).sum(1), *ladder_args(1), islands=1)
    assert code(gm) == ["island_0 = island_0(x_1, w_1)", "sum_1 = item(island_0)"]


def test_values_of_a_ladder():
    check(ladder, *ladder_args(4), islands=5)


def test_cutting_twice_changes_nothing():
    gm = ladder_graph()
    cut_graph(gm)
    before = code(gm)
    assert CutIslands()(gm).changed == 0
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
    """Exported programs have one before each cast; the fake values have passed them."""

    def fn(x):
        y = (x * 2).view(8)
        aten._assert_tensor_metadata(y, None, None, torch.float32)
        aten._assert_tensor_metadata(y + 1, None, None, torch.float32)
        return wait(y)

    gm = check(fn, torch.randn(2, 4), islands=1)
    calls = code(gm) + code(islands_of(gm)["island_0"])
    assert len(calls) == 5  # the island, the item, the wait; the product, the view


def test_work_is_linear_in_depth():
    """Linear in the number of Python calls, of the pass and of the check."""

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
    """The transpose of a weight in each island that reads it, and outside for the output."""

    def fn(x, w):
        v = w.t()
        y = wait(launch(x @ v))
        return wait(launch(y @ v)), v

    gm = check(fn, *ladder_args(1), islands=2)
    assert [line for line in code(gm) if "= item" not in line and "c10d" not in line] == [
        "t = aten.t.default(w_1)",
        "island_0 = island_0(x_1, w_1)",
        "island_1 = island_1(wait_tensor, w_1)",
    ]


def crossing(fn, *args):
    """The names of what the first island of a graph returns."""
    body = islands_of(check(fn, *args))["island_0"]
    return [node.name for node in body.graph.output_node().args[0]]


def test_the_one_reshape_that_is_read_is_made_by_the_island():
    x = torch.randn(2, 4)
    assert crossing(lambda x: wait(launch(x.relu().view(8)[None])), x) == ["unsqueeze"]
    assert crossing(lambda x: (y := x.relu(), wait(y.view(8) + 1)), x) == ["relu", "add"]
    assert crossing(lambda x: wait((y := x.relu().view(8)) + 1) * y, x) == ["view", "add"]
    assert crossing(lambda x: ((y := x.relu()).view(8), wait(y + 1)), x) == ["view", "add"]


def test_all_other_views_of_a_result_are_made_where_they_are_read():
    """No two outputs share memory; a view that is not a plain reshape keeps its strides."""
    x = torch.randn(2, 4)
    assert crossing(lambda x: wait((y := x.relu()).view(8)) + y.view(8, 1), x) == ["relu"]
    assert crossing(lambda x: wait(y := x.relu()) + y.view(2, 4), x) == ["relu"]
    assert crossing(lambda x: wait(x.relu().t()), x) == ["relu"]
    assert crossing(lambda x: wait(x.relu()[0].view(2, 2)), x) == ["relu"]
    assert crossing(lambda x: wait(x.relu().expand(3, 2, 4)), x) == ["relu"]


def test_a_reshape_behind_a_boundary_is_made_there():
    """Its size may be known only after the boundary."""

    def fn(x):
        y = x.relu()
        return wait(x.sum()) * y.view(8)

    assert crossing(fn, torch.randn(2, 4)) == ["relu", "sum_1"]


def test_parts_of_a_result():
    """A call with several results belongs to its island with all of them; parts are views."""

    def fn(x):
        values, indices = x.topk(2)
        a, b = x.relu().split(1)
        y = wait(launch(values))
        return y * 2, indices + 1, b, a * y[:1, :1]

    gm = check(fn, torch.randn(2, 4), islands=2)
    results = islands_of(gm)["island_0"].graph.output_node().args[0]
    assert [node.name for node in results] == ["getitem", "getitem_1", "relu"]


def test_a_part_that_stands_behind_a_boundary():
    """It still belongs to the call."""

    def fn(x):
        values, indices = x.topk(2)
        y = wait(launch(values))
        return y, indices.relu()

    gm = trace(fn, torch.randn(2, 4))
    find(gm, "relu").prepend(find(gm, "getitem_1"))
    gm.graph.lint()
    assert cut_graph(gm) == 2
    results = islands_of(gm)["island_0"].graph.output_node().args[0]
    assert [node.name for node in results] == ["getitem", "getitem_1"]


def test_parts_of_what_a_boundary_returns():
    """They do not divide a run, and come before the island that reads them."""

    def fn(x):
        a, b = c10d.all_reduce_coalesced([x, x * 2], "sum", "tp")
        return x.relu() + a + b

    gm = trace(fn, torch.randn(2, 4))
    for name in ("getitem", "getitem_1"):
        find(gm, "relu").append(find(gm, name))
    assert cut_graph(gm) == 2
    gm.graph.lint()
    calls = ["island_1 = island_1(x_1, getitem, getitem_1)", "add_1 = item(island_1)"]
    assert code(gm)[-2:] == calls


def test_a_run_that_only_makes_constants_stays_outside():
    def fn(x):
        y = wait(x)
        ones = torch.ones(4, device=x.device)
        return wait(y) * ones

    gm = check(fn, torch.randn(2, 4), islands=1)
    assert "ones = aten.ones.default()" in code(gm)


def test_a_constant_crosses_as_a_tensor():
    gm = check(lambda x: x + torch.tensor([1.0, 2.0]), torch.randn(2), islands=1)
    (call,) = gm.graph.find_nodes(op="call_module", target="island_0")
    assert {source.op for source in call.args} == {"placeholder", "get_attr"}
    placeholders = islands_of(gm)["island_0"].graph.find_nodes(op="placeholder")
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
    """Values computed from sizes are computed where they are read."""

    def fn(x, w):
        rows = x.shape[0]
        y = wait(launch((x @ w.t()).view(rows, 2, 2)))
        return y.view(rows * 2, 2).relu() + torch.arange(rows * 2, device=x.device)[:, None]

    others = [(torch.randn(5, 4), torch.randn(4, 4))]
    gm = check(fn, *ladder_args(1), islands=2, symbolic=True, others=others)
    for body in islands_of(gm).values():
        inputs = body.graph.find_nodes(op="placeholder")
        assert all(isinstance(node.meta["val"], Tensor) for node in inputs)
    assert code(body)[:2] == [
        "sym_size_int = aten.sym_size.int(wait_tensor)",
        "mul = mul(sym_size_int)",
    ]


def test_a_size_of_no_tensor_crosses_as_a_number():
    """The last island reads the length of `x`, but not `x`."""

    def fn(x, y):
        z = wait(wait(x * 2).sum())
        return z + torch.arange(x.shape[0], device=x.device) * y

    args, others = (torch.randn(3), torch.randn(1)), (torch.randn(5), torch.randn(1))
    gm = check(fn, *args, symbolic=True, others=[others])
    *_, last = islands_of(gm).values()
    *_, number = last.graph.find_nodes(op="placeholder")
    assert isinstance(number.meta["val"], torch.SymInt)


def test_a_number_and_what_it_is_read_off_stand_ahead_of_the_island():
    """The size of a view of an input that the island does not read."""

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
    """They are read from values that the island computes, or outside from values that cross."""

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

    gm = check(fn, torch.ones(3, 4), torch.randn(1, 4), torch.tensor([0]), islands=3)
    calls = [line.split(" = ")[1].split("(")[0] for line in code(gm) if "= item" not in line]
    assert calls == ("island_0 aten.index_copy_.default island_1 aten.mul_.Tensor island_2".split())


def test_the_epilogue_of_a_functional_graph():
    def fn(cache, x, place):
        new = torch.index_put(cache, (place,), x)
        y = wait(launch((new * 2).sum(0)))
        cache.copy_(new)
        return y + 1, cache + 1

    check(fn, torch.ones(3, 4), torch.randn(1, 4), torch.tensor([1]), islands=2)


# ---- lowering


def test_each_island_is_lowered_by_its_name():
    gm, args = ladder_graph(), ladder_args()
    cut_graph(gm)
    bodies = islands_of(gm)
    expected, seen, given = runnable(gm)(*args), [], []

    def lower(name, body):
        seen.append(name)

        def run(*inputs):
            given.append(len(inputs))
            return body(*inputs)

        return body if name == "island_1" else run

    lower_islands(gm, lower)
    assert seen == [f"island_{i}" for i in range(5)]
    assert gm.island_1 is bodies["island_1"]
    assert torch.equal(runnable(gm)(*args), expected)
    assert given == [2, 3, 2, 2]


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
    """Steps, each with the two values that it reads, and the returned values."""
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


@examples(8)
@given(programs())
def test_any_program(program):
    def fn(x, y):
        return run_program(program, x, y)

    check(fn, *program_args(3), deferred=True)


@examples(2)
@given(programs())
def test_any_program_with_dynamic_sizes(program):
    def fn(x, y):
        return run_program(program, x, y)

    check(fn, *program_args(3), symbolic=True, deferred=True, others=[program_args(5)])
