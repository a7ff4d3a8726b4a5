"""The emitted-code checker on hand-written wrappers: events and races."""

import pytest
from helpers.wrappers import FLIGHT, GATHER, call, races

from ladderize.backends.emitted import (
    EventKind,
    find_races,
    foreign_waits,
    order_string,
    read_events,
)


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("compute", "cpp_fused_add_0(arg0_1, buf0, buf1)"),
        ("compute", "cpp_fused_add_0(arg0_1, arg1_1, buf0)"),
        ("compute", "cpp_fused_silu_2(buf0)"),
        ("compute", "cpp_fused_silu_2(arg0_1, workspace=buf0)"),
        ("compute", "extern_kernels.mm(buf0, arg1_1, out=buf1)"),
        ("compute", "extern_kernels.mm(arg0_1, arg1_1, out=buf0)"),
        (
            "compute",
            "extern_kernels.mm(reinterpret_tensor(buf0, (8, 4), (1, 8), 0), arg1_1, out=buf1)",
        ),
        ("compute", "buf1 = torch.ops.aten.sort.stable(buf0, stable=False)"),
        ("compute", "triton_poi_fused_add_0.run(arg0_1, buf0, 32, stream=stream0)"),
        ("compute", "buf1 = torch.ops.mylib.anything.default([arg0_1, (buf0, 3)])"),
        ("compute", "something_new(x=buf0)"),
        ("compute", "if buf0.sum().item() > 0: pass"),
        ("compute", "assert not buf0.isnan().any().item()"),
        ("compute", "with torch.cuda._DeviceGuard(0): extern_kernels.mm(buf0, arg1_1, out=buf1)"),
        ("copy", "arg0_1.copy_(buf0, False)"),
        ("copy", "buf0.copy_(arg0_1, False)"),
        ("copy", "aten.copy_(arg0_1, buf0)"),
        ("free", "buf1 = buf0; del buf0; del buf1; buf0 = NEW"),
        ("reuse", "buf1 = buf0; del buf0  # reuse\n    buf0 = buf1"),
        (
            "reuse",
            "buf1 = reinterpret_tensor(buf0, (32,), (1,), 0); del buf0  # reuse\n    buf0 = buf1",
        ),
        ("launch", "AR(buf0)"),
        ("launch", "torch.ops._c10d_functional.all_reduce_.default(buf0, 'sum', '1')"),
        ("compute", "buf1 = buf0\n    cpp_fused_silu_2(buf1)"),
        (
            "compute",
            "buf1 = reinterpret_tensor(buf0, (4, 4), (8, 1), 4)\n    cpp_fused_silu_2(buf1)",
        ),
        (
            "compute",
            "buf1 = torch.ops.aten.slice.Tensor(buf0, 0, 0, 2)\n    cpp_fused_silu_2(buf1)",
        ),
        ("compute", "buf1 = aten.split(buf0, 2)\n    buf2 = buf1[1]\n    cpp_fused_silu_2(buf2)"),
        ("compute", "buf1 = [arg0_1, buf0]\n    buf2 = buf1[1]\n    cpp_fused_silu_2(buf2)"),
        ("compute", "buf1, buf2 = (arg0_1, buf0)\n    cpp_fused_silu_2(buf2)"),
    ],
)
def test_touching_a_buffer_in_flight_is_a_race(kind: str, statement: str) -> None:
    found = races(FLIGHT.format(statement))
    assert any(f": {kind} of buf0, in flight (launched at line" in text for text in found), found


@pytest.mark.parametrize(
    "statement",
    [
        "cpp_fused_add_0(arg0_1, arg1_1, buf1)",
        "extern_kernels.mm(arg0_1, arg1_1, out=buf1)",
        "assert_size_stride(buf0, (4, 8), (8, 1), 'input')",
        "assert_size_stride_grouped((buf0, arg0_1), ((4, 8), (4, 8)), ((8, 1), (8, 1)), 'input')",
        "assert_alignment(buf0, 16, 'torch.ops.aten.sort.default')",
        "assert_tensor_metadata(buf0, (4, 8), (8, 1), torch.float32, 'torch.ops.x.default')",
        "buf1 = buf0",
        "buf1 = reinterpret_tensor(buf0, (8, 4), (1, 8), 0)",
        "buf1 = [arg0_1, buf0]\n    buf2 = buf1[0]\n    cpp_fused_silu_2(buf2)",
        "buf1, buf2 = (arg0_1, buf0)\n    cpp_fused_silu_2(buf1)",
        "buf1 = NEW; buf2 = buf1; del buf1  # reuse\n    cpp_fused_silu_2(buf2)",
        "del arg0_1",
        "stream0 = get_raw_stream(0)",
    ],
)
def test_what_does_not_touch_it_is_no_race(statement: str) -> None:
    assert races(FLIGHT.format(statement)) == []


OUT_OF_PLACE = (
    "all_gather_into_tensor.default(buf0, 2",
    "reduce_scatter_tensor.default(buf0, 'sum', 2",
    "all_to_all_single.default(buf0, [2, 2], [2, 2]",
    "all_reduce.default(buf0, 'sum'",
)


@pytest.mark.parametrize("collective", OUT_OF_PLACE)
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("cpp_fused_add_0(buf0, arg1_1, arg0_1)", ""),  # the operand may be read
        ("del buf0", ""),  # and dropped: c10d holds it
        ("cpp_fused_silu_2(buf0)", "compute of buf0, an operand in flight"),
        ("buf0.copy_(arg0_1)", "copy of buf0, an operand in flight"),
        ("buf2 = buf0; del buf0  # reuse", "reuse of buf0, an operand in flight"),
        ("cpp_fused_add_0(buf1, arg1_1, arg0_1)", "compute of buf1, in flight"),
    ],
)
def test_out_of_place_collectives(collective: str, statement: str, expected: str) -> None:
    found = races(GATHER.format(collective, statement))
    assert len(found) == bool(expected), found
    assert expected in "".join(found)


def test_out_variant_has_its_out_in_flight() -> None:
    body = """
        buf0 = NEW
        buf1 = NEW
        torch.ops._c10d_functional.all_gather_into_tensor_out.default(buf0, 2, '0', out=buf1)
        cpp_fused_add_0(buf0, arg1_1, arg0_1)
        cpp_fused_add_0(buf1, arg1_1, arg0_1)
        WAIT(buf1)
        return (buf1, )
    """
    (found,) = races(body)
    assert "compute of buf1, in flight" in found
    event = next(e for e in read_events(call(body)).events if e.kind is EventKind.LAUNCH)
    assert event.channel == ("all_gather_into_tensor", "'0'")


def test_each_tensor_of_a_coalesced_collective_has_its_own_wait() -> None:
    body = """
        buf0 = NEW
        buf1 = NEW
        torch.ops._c10d_functional.all_reduce_coalesced_.default([buf0, buf1], 'sum', '0')
        WAIT(buf0)
        cpp_fused_silu_2({})
        WAIT(buf1)
        return (buf0, buf1)
    """
    assert races(body.format("buf0")) == []
    assert "compute of buf1, in flight" in races(body.format("buf1"))[0]
    out_of_place = """
        buf2 = torch.ops._c10d_functional.all_reduce_coalesced.default([arg0_1, arg1_1], 'sum', '0')
        buf3 = buf2[0]
        buf4 = buf2[1]
        WAIT(buf3)
        cpp_fused_silu_2({})
        WAIT(buf4)
        return (buf3, buf4)
    """
    assert races(out_of_place.format("buf3")) == []
    assert len(races(out_of_place.format("buf4"))) == 1


def test_results_of_one_op_are_different_buffers() -> None:
    body = """
        buf1 = torch.ops.aten.sort.stable(arg0_1, stable=False)
        buf2 = buf1[0]
        buf3 = buf1[1]
        AR(buf2)
        cpp_fused_silu_2({})
        WAIT(buf2)
        return (buf2, buf3)
    """
    assert races(body.format("buf3")) == []
    assert len(races(body.format("buf2"))) == 1


def test_launches_and_waits_pair_up() -> None:
    assert "launch without a wait for buf0" in races("buf0 = NEW\nAR(buf0)\nreturn (arg0_1, )")[0]
    returned = races("buf0 = NEW\nAR(buf0)\nreturn (buf0, )")
    assert any("return of buf0, in flight" in text for text in returned)
    assert "wait for buf0, which was not launched" in races("buf0 = NEW\nWAIT(buf0)\nreturn ()")[0]
    assert "not launched here" in races("WAIT(unheard_of)\nreturn ()")[0]
    twice = races("buf0 = NEW\nAR(buf0)\nWAIT(buf0)\nWAIT(buf0)\nreturn (buf0, )")
    assert len(twice) == 1 and "second wait for buf0" in twice[0]
    again = "buf0 = NEW\nAR(buf0)\nWAIT(buf0)\nAR(buf0)\nWAIT(buf0)\nreturn (buf0, )"
    assert races(again) == []
    early = races("buf0 = NEW\nWAIT(buf0)\nAR(buf0)\nWAIT(buf0)\nreturn (buf0, )")
    assert len(early) == 1


PINNED = """
    buf0 = NEW
    AR(buf0)
    buf1 = NEW
    extern_kernels.mm(arg0_1, arg1_1, out=buf1)
    AR(buf1)
    buf2 = {}
    buf3 = buf2
    cpp_fused_silu_2({})
    WAIT(buf1)
    return (buf0, buf1, buf3)
"""


@pytest.mark.parametrize("wait", ["wait_add.default(arg0_1, buf0, ", "wait_after.default(buf0, "])
def test_an_opaque_wait_does_not_read_the_launch_that_it_comes_after(wait: str) -> None:
    wait = f"torch.ops.ladderize.{wait}"
    for touched in ("buf0", "buf3"):
        assert races(PINNED.format(f"{wait}buf1)", touched)) == []
    (found,) = races(PINNED.format(f"{wait}buf1)", "buf1"))
    assert "compute of buf1, in flight" in found
    found = races(PINNED.format(wait.replace("buf0", "buf1") + "buf0)", "buf0"))
    assert any("compute of buf0, in flight" in text for text in found)
    program = read_events(call(PINNED.format(f"{wait}buf1)", "buf3")))
    event = next(event for event in program.events if event.kind is EventKind.WAIT)
    assert event.name in wait and event.pending == {"buf0"}


def test_an_opaque_wait_reads_what_it_adds_to() -> None:
    (found,) = races(
        PINNED.format("torch.ops.ladderize.wait_add.default(buf1, buf0, buf1)", "buf3")
    )
    assert "wait of buf1, in flight" in found


def test_wait_for_an_input_is_reported_apart() -> None:
    body = "{}\nWAIT(arg0_1)\ncpp_fused_silu_2(arg0_1)\nreturn (arg0_1, )"
    assert races(body.format("")) == []
    (wait,) = foreign_waits(read_events(call(body.format(""))))
    assert wait.kind is EventKind.WAIT and wait.pending == {"arg0_1"}
    (found,) = races(body.format("cpp_fused_silu_2(arg0_1)"))
    assert "in flight (launched outside of this graph)" in found
    assert "second wait" in races(body.format("WAIT(arg0_1)"))[0]


def test_partitions_and_subgraphs_are_read_in_place() -> None:
    source = """
def partition_0(args):
    buf7, arg9 = args
    args.clear()
    buf1 = empty_strided_cpu((4, 8), (8, 1), torch.float32)
    with torch.cuda._DeviceGuard(0):
        extern_kernels.mm({}, arg9, out=buf1)
    return (buf1, )

def subgraph_0(args):
    arg0_1, = args
    args.clear()
    return (arg0_1, )

class Runner:
    def __init__(self, partitions):
        self.partitions = partitions

    def call(self, args):
        arg0_1, = args
        args.clear()
        buf0 = empty_strided_cpu((4, 8), (8, 1), torch.float32)
        torch.ops._c10d_functional.all_reduce_.default(buf0, 'sum', '0')
        partition0_args = [buf0, arg0_1]
        (buf1, ) = self.partitions[0](partition0_args)
        del partition0_args
        (buf2, ) = subgraph_0([buf0])
        torch.ops._c10d_functional.wait_tensor.default(buf2)
        return (buf1, buf2, )

runner = Runner(partitions=[partition_0,])
"""
    assert find_races(read_events(source.format("arg9"))) == ()
    (found,) = find_races(read_events(source.format("buf7")))
    assert "compute of buf0, in flight" in found.what


def test_a_flight_across_cuda_graphs_is_found() -> None:
    """A collective outside of CUDA graphs may be in flight while a graph runs."""
    source = """
def partition_0(args):
    arg0_1, = args
    args.clear()
    buf0 = empty_strided_cuda((4, 4), (4, 1), torch.float32)
    extern_kernels.mm(arg0_1, arg0_1, out=buf0)
    torch.ops._c10d_functional.all_reduce_.default(buf0, 'sum', '0')
{}
    return (buf0, )

def partition_1(args):
    buf0, = args
    args.clear()
{}
    return (buf0, )

class Runner:
    def call(self, args):
        arg0_1, = args
        args.clear()
        (buf0,) = self.partitions[0]([arg0_1])
        (buf0,) = self.partitions[1]([buf0])
{}
        return (buf0, )
"""
    wait = "torch.ops._c10d_functional.wait_tensor.default(buf0)"
    within, across, outside = (
        [f"{' ' * (8 if i == 2 else 4)}{wait}" if i == place else "" for i in range(3)]
        for place in range(3)
    )
    assert find_races(read_events(source.format(*within))) == ()
    (found,) = find_races(read_events(source.format(*across)))
    assert "across CUDA graphs (partition_0 to partition_1)" in found.what
    (found,) = find_races(read_events(source.format(*outside)))
    assert "(partition_0 to outside of them)" in found.what


def test_an_input_that_is_aligned_is_read_and_stays_what_it_is() -> None:
    source = """
def call(args):
    arg0_1, = args
    args.clear()
    torch.ops._c10d_functional.all_reduce_.default(arg0_1, 'sum', '0')
    {}
    arg0_1 = copy_if_misaligned(arg0_1)
    {}
    return (arg0_1, )
"""
    wait = "torch.ops._c10d_functional.wait_tensor.default(arg0_1)"
    program = read_events(source.format(wait, ""))
    assert find_races(program) == ()
    assert order_string(program) == "AR_0 W_0"
    assert "align of arg0_1, in flight" in find_races(read_events(source.format("", wait)))[0].what


def test_module_level_call_is_read() -> None:
    source = "def call(args):\n    arg0_1, = args\n    foo(arg0_1)\n    return (arg0_1, )\n"
    assert [event.kind for event in read_events(source).events] == [
        EventKind.COMPUTE,
        EventKind.RETURN,
    ]


def test_events_have_lines_reads_and_writes() -> None:
    source = call(FLIGHT.format("buf2 = buf0 ; del buf0  # reuse\n    buf0 = buf2"))
    program = read_events(source)
    kinds = [event.kind for event in program.events]
    assert kinds == [
        EventKind.COMPUTE,
        EventKind.LAUNCH,
        EventKind.REUSE,
        EventKind.WAIT,
        EventKind.RETURN,
    ]
    mm, launch, *_ = program.events
    assert (mm.name, mm.reads, set(mm.writes)) == ("mm", {"arg0_1", "arg1_1"}, {"buf0"})
    assert launch.channel == ("all_reduce", "'0'") and launch.pending == {"buf0"}
    for event in program.events:
        assert source.splitlines()[event.line - 1].strip() == event.text
    assert program.inputs == {"arg0_1", "arg1_1"}


def test_sizes_are_no_buffers() -> None:
    """A dynamic size appears in every allocation and must not tie the buffers together."""
    body = """
        s77 = arg0_1
        buf0 = empty_strided_cpu((s77, 8), (8, 1), torch.float32)
        extern_kernels.mm(arg1_1, arg1_1, out=buf0)
        AR(buf0)
        buf1 = empty_strided_cpu((2*s77, 8), (8, 1), torch.float32)
        cpp_fused_add_0(arg1_1, arg1_1, buf1, s77)
        WAIT(buf0)
        return (buf0, buf1)
    """
    assert races(body) == []
