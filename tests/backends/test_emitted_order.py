"""The emitted-code checker on hand-written wrappers: the order of waits, and the report."""

import pytest
from helpers.wrappers import FLIGHT, GATHER, call, disorder, races

from ladderize.backends.emitted import check_emitted, order_string, read_events
from ladderize.errors import LadderError

LADDER = """
    buf0 = NEW
    extern_kernels.mm(arg0_1, arg1_1, out=buf0)
    AR(buf0)
    {after_0}
    buf1 = NEW
    extern_kernels.mm(arg0_1, arg1_1, out=buf1)
    AR(buf1)
    {after_1}
    buf2 = NEW
    buf3 = NEW
    buf4 = NEW
    {block_2}
    AR(buf4)
    {after_2}
    buf5 = NEW
    cpp_fused_add_0(buf3, buf4, buf5)
    return (buf5, )
"""
IN_ORDER = {
    "after_0": "",
    "after_1": "WAIT(buf0)",
    "block_2": "cpp_fused_add_0(arg0_1, buf0, buf2)\n    extern_kernels.mm(buf2, arg1_1, out=buf4)",
    "after_2": "WAIT(buf1)\n    WAIT(buf4)\n    cpp_fused_add_0(buf2, buf1, buf3)",
}


def test_the_deferred_order_is_in_order() -> None:
    assert disorder(LADDER.format(**IN_ORDER)) == []
    assert races(LADDER.format(**IN_ORDER)) == []


def test_an_early_wait_is_found() -> None:
    early = IN_ORDER | {"after_0": "WAIT(buf0)", "after_1": ""}
    (text,) = disorder(LADDER.format(**early))
    assert text.endswith("wait_tensor.default(buf0)")


def test_fusion_that_waits_for_two_is_found() -> None:
    """Torch 2.15: one kernel makes what block 2 reads, and the stream after it as well."""
    fused = IN_ORDER | {
        "after_1": "WAIT(buf0)\n    WAIT(buf1)",
        "block_2": "cpp_fused_add_1(arg0_1, buf0, buf1, buf2, buf3)\n"
        "    extern_kernels.mm(buf2, arg1_1, out=buf4)",
        "after_2": "WAIT(buf4)",
    }
    assert races(LADDER.format(**fused)) == []
    (text,) = disorder(LADDER.format(**fused))
    assert text.endswith("wait_tensor.default(buf1)")


OPAQUE = IN_ORDER | {
    "after_1": "buf6 = torch.ops.ladderize.wait_add.default(arg0_1, buf0, buf1)",
    "block_2": "extern_kernels.mm(buf6, arg1_1, out=buf4)",
    "after_2": "buf2 = torch.ops.ladderize.wait_after.default(buf1, buf4)\n    WAIT(buf4)",
}


def test_opaque_waits_have_their_place_in_the_order() -> None:
    assert disorder(LADDER.format(**OPAQUE)) == []
    assert races(LADDER.format(**OPAQUE)) == []
    program = read_events(call(LADDER.format(**OPAQUE)))
    assert order_string(program) == "mm AR_0 mm AR_1 W_0 mm AR_2 W_1 W_2 k"
    early = OPAQUE | {"after_0": OPAQUE["after_1"], "after_1": ""}
    (text,) = disorder(LADDER.format(**early))
    assert "wait_add" in text
    needed = early | {"block_2": "", "after_1": ""}
    body = LADDER.format(**needed).replace(
        "mm(arg0_1, arg1_1, out=buf1)", "mm(buf6, buf6, out=buf1)"
    )
    assert disorder(body) == []


@pytest.mark.parametrize(
    "kernel",
    [
        "cpp_fused_add_0(buf0, buf1, buf2)",
        "cpp_fused_add_1(arg0_1, buf0, buf1, buf3, buf2)",
        "extern_kernels.addmm(buf0, buf1, arg1_1, out=buf2)",
        "buf2 = torch.ops.aten.add.Tensor(buf0, buf1)",
        "buf9 = torch.ops.aten.sort.stable(buf0 + buf1)\n    buf2 = buf9[0]",
        "some_template_kernel(buf0, buf1, buf2)",
        "cpp_fused_add_0(buf0, buf1, reinterpret_tensor(buf2, (4, 4), (8, 1), 4))",
        "cpp_fused_add_0(buf0, buf1, buf3)\n    buf2.copy_(buf3)",
        "cpp_fused_add_0(buf0, buf1, buf3)\n    buf2 = buf3; del buf3  # reuse\n"
        "    cpp_fused_silu_2(buf2)\n    buf3 = NEW",
    ],
)
def test_waits_that_the_next_launch_needs_are_in_order(kernel: str) -> None:
    """In a hybrid that returns to the standard model, block 2 needs both."""
    hybrid = IN_ORDER | {
        "after_1": "WAIT(buf0)\n    WAIT(buf1)",
        "block_2": f"{kernel}\n    extern_kernels.mm(buf2, arg1_1, out=buf4)",
        "after_2": "WAIT(buf4)",
    }
    assert disorder(LADDER.format(**hybrid)) == []


def test_the_standard_net_is_in_order() -> None:
    body = """
        buf0 = NEW
        AR(buf0)
        WAIT(buf0)
        buf1 = NEW
        extern_kernels.mm(buf0, arg1_1, out=buf1)
        AR(buf1)
        WAIT(buf1)
        return (buf1, )
    """
    assert disorder(body) == []
    assert len(disorder(body.replace("mm(buf0,", "mm(arg0_1,"))) == 1


def test_reused_memory_does_not_carry_a_dependency() -> None:
    body = """
        buf0 = NEW
        AR(buf0)
        WAIT(buf0)
        buf1 = buf0; del buf0  # reuse
        {}
        AR(buf1)
        WAIT(buf1)
        return (buf1, )
    """
    assert len(disorder(body.format("extern_kernels.mm(arg0_1, arg1_1, out=buf1)"))) == 1
    assert len(disorder(body.format("buf1.copy_(arg0_1)"))) == 1
    assert len(disorder(body.format("aten.copy_(buf1, arg0_1)"))) == 1
    assert disorder(body.format("cpp_fused_silu_2(buf1)")) == []


def test_writing_a_part_keeps_the_rest() -> None:
    """A concatenation: each operand is written to a view of the result."""
    body = """
        buf0 = NEW
        AR(buf0)
        WAIT(buf0)
        buf1 = NEW
        buf2 = {}
        buf3 = reinterpret_tensor(buf2, (4, 4), (8, 1), 0)  # alias
        buf4 = reinterpret_tensor(buf2, (4, 4), (8, 1), 4)  # alias
        cpp_fused_add_0(buf0, arg1_1, buf3)
        cpp_fused_add_0(arg0_1, arg1_1, buf4)
        AR(buf2)
        WAIT(buf2)
        return (buf2, )
    """
    assert disorder(body.format("NEW")) == []
    assert disorder(body.format("buf1; del buf1  # reuse")) == []


def test_a_wait_may_not_pass_other_collectives_that_need_it() -> None:
    """Sequence parallelism: the all-gather between two reduce-scatters needs the first."""
    body = """
        buf0 = torch.ops._c10d_functional.reduce_scatter_tensor.default(arg0_1, 'sum', 2, '0')
        WAIT(buf0)
        buf1 = torch.ops._c10d_functional.all_gather_into_tensor.default({}, 2, '0')
        buf2 = torch.ops._c10d_functional.reduce_scatter_tensor.default(arg1_1, 'sum', 2, '0')
        WAIT(buf1)
        WAIT(buf2)
        return (buf0, buf1, buf2)
    """
    assert disorder(body.format("buf0")) == []
    assert len(disorder(body.format("arg0_1"))) == 1


def test_kinds_and_groups_are_apart() -> None:
    body = """
        buf0 = NEW
        buf1 = NEW
        torch.ops._c10d_functional.all_reduce_.default(buf0, 'sum', '1')
        WAIT(buf0)
        torch.ops._c10d_functional.all_reduce_.default(buf1, 'sum', '2')
        WAIT(buf1)
        return (buf0, buf1)
    """
    assert disorder(body) == []
    assert len(disorder(body.replace("'2'", "'1'"))) == 1


def test_adjacent_waits_of_one_launch_or_of_two_groups_are_in_order() -> None:
    body = """
        buf0 = NEW
        buf1 = NEW
        buf2 = NEW
        torch.ops._c10d_functional.{}
        torch.ops._c10d_functional.{}
        WAIT(buf0)
        WAIT(buf1)
        extern_kernels.mm(buf0, arg1_1, out=buf2)
        {}
        WAIT(buf2)
        return (buf0, buf1, buf2)
    """
    groups = [f"all_reduce_.default(buf{i}, 'sum', '{i + 1}')" for i in range(2)]
    third = f"torch.ops._c10d_functional.{groups[0].replace('buf0', 'buf2')}"
    needs_both = body.replace("mm(buf0,", "addmm(buf0, buf1,")
    assert disorder(needs_both.format(*groups, third)) == []
    assert len(disorder(body.format(*groups, third).replace("'2'", "'1'"))) == 1
    coalesced = "all_reduce_coalesced_.default([{}], 'sum', '0')"
    two = (coalesced.format("arg0_1"), coalesced.format("buf0, buf1"))
    third = f"torch.ops._c10d_functional.{coalesced.format('buf2')}\n        WAIT(arg0_1)"
    assert disorder(body.format(*two, third)) == []
    early = body.format(*two, third).replace("mm(buf0", "mm(arg1_1")
    assert len(disorder(early)) == 1
    (text,) = disorder(early.replace("WAIT(buf1)", "").replace("WAIT(buf2)", "WAIT(buf1)"))
    assert text.endswith("wait_tensor.default(buf0)")  # the first wait waits for both


DISPATCH = """
    buf0 = NEW
    buf1 = NEW
    buf2 = torch.ops._c10d_functional.all_to_all_single.default(arg0_1, [4], [4], '0')
    extern_kernels.mm(arg0_1, arg1_1, out=buf0)
    WAIT(buf2)
    extern_kernels.mm(buf2, arg1_1, out=buf1)
    return (buf0, buf1)
"""


def test_a_dispatch_that_could_hide_behind_a_product_is_found() -> None:
    """The wait precedes a product that does not need it, or one that does."""
    assert disorder(DISPATCH) == []
    lines = DISPATCH.splitlines()
    early = "\n".join([*lines[:4], lines[5], lines[4], *lines[6:]])
    (text,) = disorder(early)
    assert text.endswith("wait_tensor.default(buf2)")
    assert disorder(early.replace("mm(arg0_1,", "mm(buf2,")) == []


def test_a_cat_that_is_read_as_a_whole_carries_its_parts() -> None:
    """A kernel stores part of buf2 and reads buf2 by another name, for the next launch."""
    body = """
        buf0 = NEW
        buf2 = NEW
        buf3 = NEW
        AR(buf0)
        WAIT(buf0)
        cpp_fused_cat_3(buf0, buf2, reinterpret_tensor(buf2, (2, 8), (8, 1), 0), buf3)
        AR(buf3)
        WAIT(buf3)
        return (buf2, buf3)
    """
    assert disorder(body) == []
    assert len(disorder(body.replace("cat_3(buf0, buf2", "cat_3(arg0_1, buf2"))) == 1


def test_adjacent_waits_of_a_deeper_schedule() -> None:
    """Staleness 2 has two in flight; waiting for both together exposes the second."""
    body = """
        buf0 = NEW
        buf1 = NEW
        buf2 = NEW
        buf3 = NEW
        AR(buf0)
        AR(buf1)
        AR(buf2)
        WAIT(buf0)
        {}
        AR(buf3)
        {}
        WAIT(buf2)
        WAIT(buf3)
        return (buf0, buf1, buf2, buf3)
    """
    assert disorder(body.format("extern_kernels.mm(buf0, arg1_1, out=buf3)", "WAIT(buf1)")) == []
    both = body.format("WAIT(buf1)\n        extern_kernels.mm(buf0, arg1_1, out=buf3)", "")
    (text,) = disorder(both)
    assert text.endswith("wait_tensor.default(buf1)")


def test_check_emitted_lists_every_finding_with_its_line() -> None:
    bad = IN_ORDER | {
        "after_0": "WAIT(buf0)\n    WAIT(buf0)",
        "after_1": "cpp_fused_silu_2(buf1)",
    }
    source = call(LADDER.format(**bad))
    with pytest.raises(LadderError) as raised:
        check_emitted(source)
    lines = source.splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "cpp_fused_silu_2(buf1)" in line)
    assert len(raised.value.blockers) == 3
    text = str(raised.value)
    assert f"cpp_fused_silu_2(buf1) (line {number})" in text
    assert "second wait for buf0" in text and "wait before the next launch" in text
    assert "What to do:" in text
    check_emitted(call(LADDER.format(**IN_ORDER)))


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(LadderError, match="no Python `call`"):
        check_emitted("cpp_wrapper_src = '...'\n")
    with pytest.raises(LadderError, match=r"control flow.*line 6\d"):
        check_emitted(call("buf0 = NEW\nwhile True: AR(buf0)\nreturn ()"))


def test_order_string() -> None:
    program = read_events(call(LADDER.format(**IN_ORDER)))
    assert order_string(program) == "mm AR_0 mm AR_1 W_0 k mm AR_2 W_1 W_2 k k"
    racy = read_events(call(FLIGHT.format("cpp_fused_silu_2(buf0)")))
    assert order_string(racy) == "mm AR_0 k! W_0"
    many = "\n    ".join(["foo(arg0_1)"] * 5)
    gather = read_events(call(GATHER.format("all_gather_into_tensor.default(buf0, 2", many)))
    assert order_string(gather) == "mm AG_0 foo*5 W_AG_0"
