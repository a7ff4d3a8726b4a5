"""Steps predicted by hand-computed cases and properties; exposed time; Perfetto's file."""

import itertools
import json

import pytest
from helpers.reports import block, machine, reduce_in, report_of
from hypothesis import given
from hypothesis import strategies as st

from ladderize import LadderError
from ladderize.report import Report
from ladderize.tools.predict.timeline import Interval, Lane, TimelineStep, predict, write_perfetto
from ladderize.tools.predict.timeline.spans import length, merge, subtract

TWO = machine()


def spans(lane):
    return [(interval.start, interval.end) for interval in lane.intervals]


def near(expected):
    return [pytest.approx(span) for span in expected]


def standard_and_ladder(report, hardware=TWO):
    return predict(report, hardware).steps


# ---- spans


def test_spans():
    assert merge([(5, 6), (0, 2), (1, 3), (4, 4), (3, 3.5)]) == ((0, 3.5), (5, 6))
    assert subtract([(0, 3), (5, 6)], [(2, 5.5)]) == ((0, 2), (5.5, 6))
    assert subtract([(0, 9)], [(1, 2), (3, 4), (8, 12)]) == ((0, 1), (2, 3), (4, 8))
    assert subtract([(0, 1), (2, 3)], []) == ((0, 1), (2, 3))
    assert subtract([(2, 3)], [(0, 5)]) == ()


MOMENTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


@given(MOMENTS, MOMENTS)
def test_spans_are_sets_of_moments(a, b):
    def moments(found):
        return {t for start, end in found for t in range(start, end)}

    kept, cut = merge(a), merge(b)
    assert moments(kept) == moments(a)
    assert moments(subtract(kept, cut)) == moments(a) - moments(b)
    assert length(kept) == len(moments(a))


# ---- a step


def test_exposed_is_communication_without_compute():
    step = TimelineStep(
        "ladder",
        Lane((Interval(0, 4, "a"), Interval(6, 8, "b"))),
        Lane((Interval(3, 5, "r"), Interval(4.5, 7, "s"), Interval(9, 10, "t"))),
    )
    assert step.seconds == 10
    assert step.communication.seconds == 5  # the two that overlap count once
    assert step.exposed == ((4, 6), (9, 10))
    assert step.exposed_seconds == 3
    assert step.hidden_fraction == pytest.approx(2 / 5)
    assert step.exposed_of(step.communication.intervals[0]) == 1
    assert TimelineStep("ladder", Lane(), Lane()).hidden_fraction is None


# ---- predictions by hand


def test_costs():
    assert TWO.compute_seconds(1000, 0, 2) == 5
    assert (
        machine(memory=10, flops=1e9).compute_seconds(1000, 80, 8) == 1
    )  # the weights take longer
    assert TWO.reduce_seconds(100) == pytest.approx(4)
    assert machine(ranks=4, link=1, latency=0).reduce_seconds(100) == pytest.approx(150)


def test_standard_and_ladder():
    standard, ladder = standard_and_ladder(report_of([block(i) for i in range(3)]))
    assert spans(standard.compute) == near([(0, 5), (9, 14), (18, 23)])
    assert spans(standard.communication) == near([(5, 9), (14, 18), (23, 27)])
    assert standard.exposed_seconds == pytest.approx(12)
    assert standard.hidden_fraction == pytest.approx(0)
    assert spans(ladder.compute) == near([(0, 5), (5, 10), (10, 15)])
    assert spans(ladder.communication) == near([(5, 9), (10, 14), (15, 19)])
    assert ladder.exposed_seconds == pytest.approx(4)  # nothing is left to hide the last behind
    assert predict(report_of([block(i) for i in range(3)]), TWO).speedup == pytest.approx(27 / 19)


def test_a_link_slower_than_compute_carries_one_at_a_time():
    slow = machine(link=100 / 8, latency=0)
    (_, ladder) = standard_and_ladder(report_of([block(i) for i in range(4)]), slow)
    # h2 reads x1, which the first all-reduce finishes at 13; h3 reads x2, finished at 21.
    assert spans(ladder.compute) == near([(0, 5), (5, 10), (13, 18), (21, 26)])
    assert spans(ladder.communication) == near([(5, 13), (13, 21), (21, 29), (29, 37)])
    (_, deeper) = standard_and_ladder(report_of([block(i, stale=2) for i in range(4)]), slow)
    assert spans(deeper.compute) == near([(0, 5), (5, 10), (10, 15), (15, 20)])


def test_a_subset_waits_where_it_is_standard():
    blocks = [block(0, stale=0), block(1, stale=0), block(2), block(3)]
    (_, ladder) = standard_and_ladder(report_of(blocks))
    assert spans(ladder.compute) == near([(0, 5), (9, 14), (14, 19), (19, 24)])


def test_a_decoder_reads_the_end_of_its_encoder():
    encoder = [block(0), block(1)]
    reads = {"reads_before": ("x1_1", "y1"), "reads_after": ("x0_1", "y1")}
    decoder = [block(0, stream=1), block(1, stream=1, **reads)]
    (_, ladder) = standard_and_ladder(report_of(encoder, decoder))
    # Block 1 of the decoder needs the all-reduces of the encoder: done at 9 and 14.
    assert spans(ladder.compute) == near([(0, 5), (5, 10), (10, 15), (15, 20)])
    slow = machine(link=100 / 9, latency=0)
    (_, ladder) = standard_and_ladder(report_of(encoder, decoder), slow)
    assert spans(ladder.compute) == near([(0, 5), (5, 10), (10, 15), (23, 28)])
    assert [i.label for i in ladder.compute.intervals] == ["h0", "h1", "h0_1", "h1_1"]
    # Named first, the decoder still comes second.
    swapped = [block(0, reads_before=("x0", "y1_1"), reads_after=("x0", "y1_1"))]
    report = report_of(swapped, [block(i, stream=1) for i in range(2)])
    assert next(i.label for i in standard_and_ladder(report)[0].compute.intervals) == "h0_1"


def test_what_is_read_inside_of_a_branch_needs_no_all_reduce():
    inner = {"reads_before": ("b0", "x1"), "reads_after": ("b0", "x0")}
    (_, ladder) = standard_and_ladder(report_of([block(0), block(1, **inner)]))
    assert spans(ladder.compute) == near([(0, 5), (5, 10)])


def test_a_branch_that_stays_whole_sends_nothing():
    blocks = [block(i) for i in range(3)]
    whole = report_of(blocks, collectives=[reduce_in("h0"), reduce_in("h2"), reduce_in("")])
    standard, ladder = standard_and_ladder(whole)
    assert spans(standard.compute) == near([(0, 5), (9, 19), (19, 24)])  # h1 is not divided
    assert len(standard.communication.intervals) == 2
    assert spans(ladder.compute) == near([(0, 5), (5, 15), (15, 20)])


def test_a_sum_waits_for_the_all_reduces_before_it():
    """h1 is kept whole, so its sum needs no all-reduce, but x2 also contains the result of h0."""
    slow = machine(link=100 / 29, latency=1)
    blocks = [block(0), block(1), block(2, stale=0)]
    report = report_of(blocks, collectives=[reduce_in("h0"), reduce_in("h2")])
    _, ladder = standard_and_ladder(report, slow)
    assert spans(ladder.communication)[0] == pytest.approx((5, 35))
    assert spans(ladder.compute) == near([(0, 5), (5, 15), (35, 40)])


def test_a_model_that_was_sharded_before_is_not_divided_again():
    found = [reduce_in(f"h{i}", is_inserted=False) for i in range(2)]
    standard, _ = standard_and_ladder(report_of([block(0), block(1)], collectives=found))
    assert spans(standard.compute) == near([(0, 10), (14, 24)])


def test_graphs_run_one_after_another():
    graphs = [report_of([block(i, graph=g) for i in range(2)]).graphs[0] for g in range(2)]
    _, ladder = standard_and_ladder(Report(tuple(graphs)))
    assert spans(ladder.compute) == near([(0, 5), (5, 10), (14, 19), (19, 24)])
    assert ladder.compute.intervals[2].block == (1, 0, 0)


def test_one_rank_sends_nothing():
    standard, ladder = standard_and_ladder(report_of([block(0), block(1)]), machine(ranks=1))
    assert standard.communication == ladder.communication == Lane()


def test_no_prediction():
    assert predict(Report(())).steps == ()
    unknown = predict(report_of([block(0), block(1, flops=None)]))
    assert unknown.steps == ()
    assert "sizes of h1 are not known" in unknown.origin
    refused = predict(report_of([block(0, stale=0)]), TWO)
    assert [step.name for step in refused.steps] == ["standard"]
    assert refused.speedup is None


def test_the_numbers_are_said():
    given = machine(8, 500e12, 3e12, 400e9, 10e-6, launch=2e-6)
    assert predict(report_of([block(0)]), given).origin == (
        "predicted from FLOPs, bytes and a link model: 8 ranks, 500 TFLOP/s, memory 3000 GB/s, "
        "2 µs a block, link 400 GB/s, latency 10 µs"
    )


@pytest.mark.parametrize("wrong", [{"flops": 0}, {"memory": -1}, {"launch": -1}, {"contention": 1}])
def test_no_hardware(wrong):
    with pytest.raises(LadderError, match="is not possible hardware"):
        machine(**wrong)


def test_communication_slows_computing():
    """The link is busy for 4 s: at half the rate 2 s of the 5 are computed in them."""
    standard, ladder = standard_and_ladder(
        report_of([block(i) for i in range(3)]), machine(contention=0.5)
    )
    assert spans(standard.compute) == near([(0, 5), (9, 14), (18, 23)])  # never both at once
    assert spans(ladder.compute) == near([(0, 5), (5, 12), (12, 19)])
    assert spans(ladder.communication) == near([(5, 9), (12, 16), (19, 23)])


def test_what_a_launch_takes_is_not_divided():
    standard, _ = standard_and_ladder(report_of([block(0), block(1)]), machine(launch=2))
    assert spans(standard.compute) == near([(0, 7), (11, 18)])


# ---- properties


@st.composite
def chains(draw):
    sizes = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9))
    return report_of(
        [
            block(i, draw(st.integers(0, 3)), flops=100 * flops, reduce_bytes=10 * sent)
            for i, (flops, sent) in enumerate(sizes)
        ]
    )


@given(chains())
def test_a_ladder_is_never_slower_and_exposes_what_it_waits_for(report):
    steps = predict(report, TWO).steps
    assert steps[-1].seconds <= steps[0].seconds + 1e-9
    for step in steps:
        # Compute stands still only while the link is busy.
        assert step.exposed_seconds == pytest.approx(step.seconds - step.compute.seconds)
        busy = [step.compute.seconds, step.communication.seconds]
        assert max(busy) - 1e-9 <= step.seconds <= sum(busy) + 1e-9
        link = spans(step.communication)
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(link))
    # In the standard model nothing is hidden.
    assert steps[0].seconds == pytest.approx(
        steps[0].compute.seconds + steps[0].communication.seconds
    )


# ---- Perfetto


def test_perfetto(tmp_path):
    out = tmp_path / "step.json"
    timeline = predict(report_of([block(i) for i in range(3)]), TWO)
    assert write_perfetto(timeline, out) == out
    trace = json.loads(out.read_text())
    names = {
        (e["pid"], e["tid"], e["name"]): e["args"]["name"]
        for e in trace["traceEvents"]
        if e["ph"] == "M"
    }
    assert names[1, 0, "process_name"] == "standard"
    assert names[2, 0, "process_name"] == "ladder"
    assert names[2, 2, "thread_name"] == "communication"
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    first = next(e for e in events if e["pid"] == 2 and e["name"] == "all-reduce h0")
    assert (first["tid"], first["ts"], first["dur"]) == (2, 5e6, pytest.approx(4e6))
    assert [e["name"] for e in events if e["pid"] == 2 and e["tid"] == 1] == ["h0", "h1", "h2"]
    assert trace["otherData"]["origin"] == timeline.origin


def test_perfetto_replaces_nothing(tmp_path):
    out = tmp_path / "step.json"
    timeline = predict(report_of([block(0), block(1)]), TWO)
    out.write_text("mine")
    with pytest.raises(LadderError, match="exists already"):
        write_perfetto(timeline, out)
    assert out.read_text() == "mine"
    write_perfetto(timeline, out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step.json"]
    assert json.loads(out.read_text())["traceEvents"]
    with pytest.raises(LadderError, match="not a directory"):
        write_perfetto(timeline, tmp_path / "missing" / "step.json")
    with pytest.raises(LadderError, match=r"no step to write.*no block was found"):
        write_perfetto(predict(Report(())), tmp_path / "none.json")
