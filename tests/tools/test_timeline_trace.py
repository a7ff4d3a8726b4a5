"""Steps read from traces: a real one of two gloo ranks, and a made-up one of a GPU."""

import gzip
import json

import pytest
from helpers.profiled_ranks import BLOCKS, record
from helpers.reports import block, report_of

from ladderize import LadderError
from ladderize.tools.predict.timeline import measure, read_step


@pytest.fixture(scope="module")
def traces(two_ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    two_ranks.run(record, str(folder))
    return folder


def test_a_trace_of_gloo_ranks(traces):
    step = read_step(traces / "whole.json", "ladder")
    sent = [interval.label for interval in step.communication.intervals]
    assert sent == ["gloo:all_reduce"] * BLOCKS
    computed = [interval.label for interval in step.compute.intervals]
    assert computed.count("aten::matmul") == BLOCKS
    assert "aten::mm" not in computed  # it is inside of aten::matmul
    assert not [label for label in computed if "c10d" in label]
    start = min(step.compute.intervals[0].start, step.communication.intervals[0].start)
    assert start == 0
    assert 0 <= step.exposed_seconds <= step.communication.seconds <= step.seconds
    assert step.source == "whole.json"


def test_a_wait_inside_of_an_op_is_no_compute(traces):
    """The wait of an AsyncCollectiveTensor is in the add that reads it."""
    events = json.loads((traces / "whole.json").read_text())["traceEvents"]
    waits = [e for e in events if e["name"] == "_c10d_functional::wait_tensor"]
    adds = [e for e in events if e["name"] == "aten::add"]
    inside = [w for w in waits if any(is_inside(w, add) for add in adds)]
    assert inside
    origin = min(e["ts"] for e in events if e["name"] == "aten::randn")
    step = read_step(traces / "whole.json", "standard")
    for wait in inside:
        middle = (wait["ts"] + wait["dur"] / 2 - origin) * 1e-6
        assert not any(start < middle < end for start, end in step.compute.busy)


def is_inside(inner, outer):
    return outer["ts"] <= inner["ts"] and (inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"])


def test_one_step_of_several_is_taken_from_a_zipped_trace(traces):
    step = read_step(traces / "steps.json.gz", "standard")
    assert len(step.communication.intervals) == BLOCKS
    labels = [interval.label for interval in step.compute.intervals]
    assert labels.count("aten::matmul") == BLOCKS


def test_collectives_belong_to_blocks_where_there_are_as_many(traces):
    path = traces / "whole.json"
    timeline = measure(report_of([block(i) for i in range(BLOCKS)]), ladder=path)
    (step,) = timeline.steps
    assert [i.block for i in step.communication.intervals] == [(0, 0, i) for i in range(BLOCKS)]
    assert step.communication.intervals[1].label == "gloo:all_reduce h1"
    assert timeline.origin == "measured by torch.profiler: whole.json (ladder)"
    other = measure(report_of([block(0)]), standard=path, ladder=path)
    assert [step.name for step in other.steps] == ["standard", "ladder"]
    assert not any(i.block for i in other.steps[0].communication.intervals)


def test_inductors_own_kernels_are_compute_and_its_wrappers_are_not(tmp_path):
    """Names and nesting as torch 2.13 writes them with `cpp.enable_kernel_profile`."""
    spans = {
        "Torch-Compiled Region: 0/0": (0, 100),
        "## Call CompiledFxGraph fmhxmg6l ##": (5, 90),
        "aten::mm": (10, 30),
        "aten::resolve_conj": (12, 1),
        "_c10d_functional::wait_tensor": (42, 20),
        "graph_0_cpp_fused_mul_relu_0": (70, 5),
    }
    events = [
        {"ph": "X", "cat": "cpu_op", "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": 1}
        for name, (ts, dur) in spans.items()
    ]
    (path := tmp_path / "inductor.json").write_text(json.dumps({"traceEvents": events}))
    step = read_step(path, "ladder")
    computed = [(i.label, i.start, i.end) for i in step.compute.intervals]
    assert computed == [
        ("aten::mm", 0, pytest.approx(30e-6)),
        ("graph_0_cpp_fused_mul_relu_0", pytest.approx(60e-6), pytest.approx(65e-6)),
    ]


# ---- CUDA


def synthetic_cuda_events():
    """Made up, with the fields that Kineto gives the kernels of a GPU: no such GPU was there."""

    def kernel(name, stream, ts, dur, cat="kernel", device=0):
        args = {"device": device, "stream": stream, "correlation": 7, "External id": 3}
        place = {"pid": device, "tid": stream}
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args, **place}

    late = 1.7e15  # microseconds since 1970, of which a float has no nanoseconds
    reduce = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
    return [
        {"ph": "M", "name": "process_name", "ts": late, "pid": 0, "tid": 0, "args": {"name": "p"}},
        kernel("ProfilerStep#1", 7, late, 100, cat="gpu_user_annotation"),
        kernel("nvjet_hsh_256x128_64x4", 7, late, 40.25),
        kernel(reduce, 20, late + 30, 30),
        kernel("triton_poi_fused_add_all_reduce_0", 7, late + 50, 5),
        kernel("Memcpy DtoD (Device -> Device)", 7, late + 70, 5, cat="gpu_memcpy"),
        kernel("nvjet_hsh_256x128_64x4", 7, late + 150, 40),  # behind the step
        kernel("nvjet_hsh_256x128_64x4", 7, late, 1, device=1),
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": late, "dur": 99, "pid": 9, "tid": 9},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": late, "dur": 3},
    ]


@pytest.fixture
def synthetic_cuda_trace(tmp_path):
    path = tmp_path / "synthetic_cuda.json"
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": synthetic_cuda_events()}))
    return path


def test_kernels_of_a_device(synthetic_cuda_trace):
    step = read_step(synthetic_cuda_trace, "ladder")
    assert [interval.label for interval in step.compute.intervals] == [
        "nvjet_hsh_256x128_64x4",
        "triton_poi_fused_add_all_reduce_0",
        "Memcpy DtoD (Device -> Device)",
    ]
    (reduce,) = step.communication.intervals
    assert "AllReduce" in reduce.label
    assert (reduce.start, reduce.end) == pytest.approx((30e-6, 60e-6))
    assert step.seconds == pytest.approx(75e-6)
    # Covered from 30 to 40.25 by a product and from 50 to 55 by an add.
    assert step.exposed_seconds == pytest.approx((9.75 + 5) * 1e-6)


# ---- files that are not traces


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a valid trace, or is truncated"),
        (b'{"traceEvents": [', "not a valid trace, or is truncated"),
        (b"\xff\xfe\x00", "not a valid trace, or is truncated"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:-9], "not a valid trace, or is truncated"),
        (b"\x1f\x8bnot zipped", "cannot be read"),
        (b"7", "has no list of traceEvents"),
        (b'{"traceEvents": 7}', "has no list of traceEvents"),
        (b'{"traceEvents": []}', "has no ops or kernels"),
        (b'[{"ph": "X", "name": 3}, 7, {"ph": "X", "name": "a", "ts": "1"}]', "has no ops"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, content, message):
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(LadderError, match=message) as caught:
        read_step(path, "standard")
    assert str(path) in str(caught.value)
    assert "export_chrome_trace" in str(caught.value)


def test_a_missing_trace(tmp_path):
    with pytest.raises(LadderError, match=r"none\.json cannot be read: No such file"):
        measure(report_of([block(0)]), ladder=tmp_path / "none.json")
    with pytest.raises(LadderError, match="No trace is given"):
        measure(report_of([block(0)]))
