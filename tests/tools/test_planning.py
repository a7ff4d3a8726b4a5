"""The planner: costs scaled from a trace, hand-made models, closed forms, properties, limits."""

import dataclasses
import itertools
import json

import pytest
import torch
from helpers.eager_ladders import tiny_llama, tokens
from helpers.graphs import Residual
from helpers.reports import block, machine, reduce_in, report_of
from hypothesis import given
from hypothesis import strategies as st
from test_cli import LLAMA, llama, run  # noqa: F401 (a fixture)

import ladderize
from ladderize import LadderError
from ladderize.config.hardware import hardware_of, known_devices
from ladderize.streams.block import stale_sources
from ladderize.tools.predict.planning import plan
from ladderize.tools.predict.planning.confidence import confidence
from ladderize.tools.predict.planning.forecast import Request, forecast, tokens_per_s
from ladderize.tools.predict.planning.limits import LEAST_GAIN, fewest_layers, gain_of, limits
from ladderize.tools.predict.planning.planned_nets import (
    VARIANTS,
    bound,
    desync,
    ladder,
    parallel,
    standard,
    variants,
)
from ladderize.tools.predict.planning.workload import (
    Phase,
    PlannedBlock,
    PlannedCosts,
    Workload,
    workload_of,
)

ONE = Phase(batch=1, queries=1, keys=1)


def net(computes, sent=100.0, staleness=1, chosen=None, segment=0, outside=PlannedCosts()):  # noqa: B008
    """Alternating attention and MLP blocks with given FLOPs per token; each sends `sent` bytes."""
    sizes = sent if isinstance(sent, list) else [sent] * len(computes)
    blocks = tuple(
        PlannedBlock(i, segment, i // 2, i % 2 == 0, PlannedCosts(flops), sizes[i])
        for i, flops in enumerate(computes)
    )
    every = frozenset(range(len(computes)))
    return Workload(blocks, outside, every if chosen is None else frozenset(chosen), staleness)


def alike(number, **how):
    """Each block takes 5 s on each of two ranks, its all-reduce 4 s."""
    return net([1000.0] * number, **how)


def seconds(variant, hardware=None, phase=ONE):
    return variant.seconds(phase, hardware or machine())


# ---- nets by hand


def test_four_nets_by_hand():
    found = {variant.name: seconds(variant) for variant in variants(alike(4))}
    assert found == pytest.approx(
        {"standard": 4 * 9, "ladder": 4 * 5 + 4, "parallel": 2 * (10 + 4), "bound": 4 * 5}
    )


def test_a_subset_hides_behind_its_own_blocks():
    assert seconds(ladder(alike(4, chosen={2}))) == pytest.approx(4 * 9 - 4)
    assert seconds(ladder(alike(4, chosen={0}))) == pytest.approx(4 * 9)  # has nothing to read
    assert seconds(ladder(alike(4, chosen={1, 2, 3}))) == pytest.approx(24)


def test_staleness_helps_where_blocks_differ():
    later = net([1000.0, 200.0, 200.0, 2000.0], sent=[100.0] * 3 + [0.1])
    # h0 0-5, AR0 5-9, h1 5-6, AR1 9-13, h2 waits for AR0: 9-10, AR2 13-17, h3 for AR1: 13-23
    assert seconds(ladder(later)) == pytest.approx(24.003)
    # h2 reads x0 and h3 x1, whose sums are there at 0 and at 9
    deeper = dataclasses.replace(later, staleness=2)
    assert seconds(ladder(deeper)) == pytest.approx(20.003)


def test_segments_keep_their_reads():
    first, second = (alike(2, segment=segment).blocks for segment in range(2))
    moved = [dataclasses.replace(b, index=b.index + 2) for b in second]
    assert stale_sources([*first, *moved], range(4), 3) == {1: 0, 3: 2}


def test_parallel_joins_attention_with_the_mlp_of_its_layer():
    odd = alike(5)
    assert [b.num_branches for b in parallel(odd).blocks] == [2, 2, 1]
    assert seconds(parallel(odd), machine(launch=1)) == pytest.approx(2 * (12 + 4) + 6 + 4)
    apart = dataclasses.replace(
        odd, blocks=tuple(dataclasses.replace(b, layer=None) for b in odd.blocks)
    )
    assert len(parallel(apart).blocks) == 5


def test_a_desync_residual_is_reduced_now_and_then():
    assert seconds(desync(alike(8), 2)) == pytest.approx(8 * 5 + 4 * 4)
    assert seconds(desync(alike(7), 4)) == pytest.approx(7 * 5 + 2 * 4)  # the last one too
    found = [net.name for net in variants(alike(4), 2)]
    assert found == ["standard", "ladder", "parallel", "desync:2", "bound"]


def test_what_is_whole_is_neither_divided_nor_sent():
    assert seconds(standard(net([1000.0, 1000.0], sent=[100.0, 0.0]))) == pytest.approx(9 + 10)


def test_the_head_is_computed_whole_and_adds_up():
    head = PlannedCosts(300.0, weight_bytes=0)
    assert seconds(bound(alike(2, outside=head))) == pytest.approx(2 * 5 + 3)


def test_reads_of_a_cache_grow_with_keys():
    reads = Workload(
        (PlannedBlock(0, 0, 0, True, PlannedCosts(cache_bytes=8.0, weight_bytes=100.0), 100.0),),
        PlannedCosts(),
        frozenset(),
    )
    slow = machine(memory=10)
    assert seconds(bound(reads), slow, Phase(3, 1, 50)) == pytest.approx((100 + 8 * 150) / 10 / 2)
    assert reads.bytes_of_a_rank(2, 3, 50) == 650


def test_tokens_per_second_by_hand():
    costs = alike(2)
    request = Request(batch=3, prompt=4, new=6)
    prefill = seconds(standard(costs), phase=Phase(3, 4, 4))
    step = seconds(standard(costs), phase=Phase(3, 1, 7))
    assert prefill == pytest.approx(2 * (12 * 5 + 12 * 3 + 1))
    assert tokens_per_s(standard(costs), request, machine()) == pytest.approx(
        18 / (prefill + 5 * step)
    )
    found = forecast(standard(costs), request, machine())
    assert (found.prefill, found.decode) == pytest.approx((prefill, step))
    assert found.prefill_exposed == pytest.approx(2 * 37)
    assert request.decode == Phase(3, 1, 7)  # after half of the new tokens
    only = forecast(standard(costs), Request(3, 4, 1), machine())
    assert only.tokens_per_s == pytest.approx(3 / prefill)


# ---- closed forms of docs/planner.md: N blocks alike, c to compute, m to all-reduce


@pytest.mark.parametrize("contention", [0, 0.25, 0.6])
@pytest.mark.parametrize("latency", [0, 1, 4, 17])
@pytest.mark.parametrize("staleness", [1, 2, 5])
def test_closed_forms_are_the_schedule(contention, latency, staleness):
    number, hardware = 8, machine(latency=latency, contention=contention)
    c, m = 5, 3 + latency
    period = max(c + contention * m, m)
    expected = {
        "standard": number * (c + m),
        "ladder": c + (number - 1) * period + m,
        "parallel": number / 2 * (2 * c + m),
        "bound": number * c,
    }
    workload = alike(number, staleness=staleness)
    assert {v.name: seconds(v, hardware) for v in variants(workload)} == pytest.approx(expected)
    if staleness == 1:
        for chosen in ({1}, {7}, {2, 3, 6}, {1, 3, 5, 7}):
            partial = expected["standard"] - len(chosen) * (c + m - period)
            assert seconds(ladder(workload, chosen), hardware) == pytest.approx(partial)


def test_where_all_is_hidden():
    workload, request = alike(5), Request(1, 1, 1)
    found = limits(workload, request, machine(contention=0.5)).prefill
    assert (found.hidden, found.reduce) == (10, 4)  # 5 s of compute at half the rate
    for faster, waits in ((1.001, False), (0.98, True)):
        hardware = machine(link=found.bandwidth * faster, contention=0.5)
        step = ladder(workload).step(ONE, hardware)
        last = hardware.reduce_seconds(100)
        assert (step.exposed_seconds > last + 1e-9) is waits
    assert limits(workload, request, machine(latency=5)).prefill.bandwidth is None


COSTS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 9)).map(lambda t: (100.0 * t[0], 10.0 * t[1])),
    min_size=1,
    max_size=9,
)
SLOWED = st.sampled_from([0.0, 0.2, 0.7])


@given(COSTS, SLOWED)
def test_a_ladder_of_blocks_that_differ(costs, contention):
    computes, sent = map(list, zip(*costs, strict=True))
    hardware = machine(contention=contention)
    compute = [flops / 200 for flops in computes]
    reduce = list(map(hardware.reduce_seconds, sent))
    # Block i runs next to the all-reduce of block i - 1, and both start at the same time.
    pairs = zip(compute[1:], reduce, strict=False)
    expected = compute[0] + sum(max(c + contention * m, m) for c, m in pairs) + reduce[-1]
    assert seconds(ladder(net(computes, sent)), hardware) == pytest.approx(expected)


# ---- properties


@given(COSTS, SLOWED)
def test_the_ladder_lies_between_bound_and_standard(costs, contention):
    computes, sent = map(list, zip(*costs, strict=True))
    hardware = machine(contention=contention)
    slow, fast, _, least = (seconds(v, hardware) for v in variants(net(computes, sent)))
    assert least - 1e-9 <= fast <= slow + 1e-9


@given(COSTS)
def test_more_staleness_is_never_slower(costs):
    computes, sent = map(list, zip(*costs, strict=True))
    found = [seconds(ladder(net(computes, sent, staleness=k))) for k in range(4)]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(found))


@given(COSTS, SLOWED, st.floats(1, 100))
def test_more_bandwidth_is_never_slower(costs, contention, factor):
    computes, sent = map(list, zip(*costs, strict=True))
    for variant in variants(net(computes, sent)):
        slow = machine(contention=contention)
        fast = machine(link=100 / 3 * factor, contention=contention)
        assert seconds(variant, fast) <= seconds(variant, slow) + 1e-9


# ---- out of a trace


def test_costs_are_those_of_any_batch_and_length():
    """Costs scaled from one trace equal those counted in another."""
    model = tiny_llama(2)
    few, many = (
        ladderize.explain(model, input_ids=torch.zeros(*shape, dtype=torch.int64))
        for shape in ((2, 8), (3, 24))
    )
    workload = workload_of(few)
    phase = Phase(3, 24, 24)
    for planned, counted in zip(workload.blocks, many.blocks, strict=True):
        assert planned.costs.flops_in(phase) == pytest.approx(counted.flops)
        cached = counted.weight_bytes + counted.cache_bytes
        assert planned.costs.bytes_in(phase) == pytest.approx(cached)
        assert planned.reduce_bytes * phase.tokens == pytest.approx(counted.reduce_bytes)
    assert workload.outside.flops_in(phase) == pytest.approx(many.graphs[0].outside.flops)
    assert [b.is_attention for b in workload.blocks] == [True, False] * 2
    assert few.blocks[0].cache_bytes > 0 == few.blocks[1].cache_bytes


@pytest.mark.parametrize("options", [{}, {"staleness": 3}, {"layers": "last:1"}, {"blocks": [1]}])
def test_reads_are_those_of_the_rewrite(options):
    report = ladderize.explain(tiny_llama(3), input_ids=tokens(), options=options)
    workload = workload_of(report)
    sources = stale_sources(workload.blocks, workload.chosen, workload.staleness)
    reads = {b.index: int(b.reads_after[0][1:]) for b in report.blocks if b.is_rewired}
    assert sources == reads


def test_a_net_without_attention():
    workload = workload_of(ladderize.explain(Residual(3, width=8), torch.randn(4, 8)))
    assert workload.blocks[0].costs.cache_bytes == 0
    assert workload.blocks[0].costs.flops == 2 * (2 * 8 * 16)
    assert workload.outside.flops == 2 * (2 * 8 * 8)  # embedding and head


def test_what_cannot_be_planned():
    with pytest.raises(LadderError, match="one residual stream; this model has 2"):
        workload_of(report_of([block(0), block(1)], [block(0, stream=1), block(1, stream=1)]))
    with pytest.raises(LadderError, match="not known before the model runs"):
        workload_of(report_of([block(0), block(1, flops=None)]))
    report = report_of([block(0), block(1)])
    (stream,) = report.streams
    for shape in ((2, 7, 8, 32), ("s0", 7, 32)):
        (segment,) = stream.segments
        moved = dataclasses.replace(stream, segments=(dataclasses.replace(segment, shape=shape),))
        graph = dataclasses.replace(report.graphs[0], streams=(moved,))
        with pytest.raises(LadderError, match="which dims of the stream"):
            workload_of(dataclasses.replace(report, graphs=(graph,)))
    with pytest.raises(LadderError, match="must be at least 1"):
        plan(report, machine(), [0])


def test_a_model_that_was_sharded_before():
    found = [reduce_in("h0", is_inserted=False)]
    first, second = workload_of(report_of([block(0), block(1)], collectives=found)).blocks
    assert (first.is_local, first.ranks(8), first.reduce_bytes > 0) == (True, 1, True)
    assert second.reduce_bytes == 0


# ---- limits


def test_where_the_gain_ends():
    workload, hardware = alike(6), machine(latency=0.5)
    request = Request(1, 1, 4)
    found = limits(workload, request, hardware)
    nets = (standard(workload), ladder(workload))
    assert found.gain == pytest.approx(gain_of(nets, request, hardware))

    def gain(**link):
        there = dataclasses.replace(hardware.link, **link)
        return gain_of(nets, request, dataclasses.replace(hardware, link=there))

    assert found.last_bandwidth is None  # the latency alone is worth more
    quick = dataclasses.replace(hardware, link=dataclasses.replace(hardware.link, latency=0))
    end = limits(workload, request, quick).last_bandwidth
    assert gain(latency=0, bandwidth=end) >= LEAST_GAIN > gain(latency=0, bandwidth=1.1 * end)
    assert limits(workload, request, machine(ranks=1)).last_batch is None
    assert limits(workload, request, machine(ranks=1)).gain == 0


def test_the_batch_ends_where_computing_outgrows_a_latency():
    workload, request = alike(6), Request(1, 1, 2)
    hardware = machine(latency=40, link=1e9)
    found = limits(workload, request, hardware)
    nets = (standard(workload), ladder(workload))
    batch = found.last_batch
    assert gain_of(nets, dataclasses.replace(request, batch=batch), hardware) >= LEAST_GAIN
    later = dataclasses.replace(request, batch=2 * batch)
    assert gain_of(nets, later, hardware) < LEAST_GAIN


def test_what_memory_holds():
    costs = PlannedCosts(1000.0, weight_bytes=100, cache_bytes=10)
    blocks = tuple(PlannedBlock(i, 0, i, True, costs, 100.0) for i in range(2))
    workload = Workload(blocks, PlannedCosts(), frozenset({0, 1}))
    hardware = machine(capacity=1100.0)  # 100 of weights and 10 a token on each of two ranks
    found = limits(workload, Request(2, 10, 10), hardware)
    assert (found.full_batch, found.full_prompt) == (5, 40)


def test_the_fewest_layers():
    workload, request = alike(20), Request(1, 1, 2)
    found = fewest_layers(workload, request, machine())
    assert (found.total, found.unit, found.text) == (10, "layers", f"{found.indices[0]}:10")
    nets = standard(workload), ladder(workload)
    whole = gain_of(nets, request, machine())

    def share(layers):
        chosen = {b for layer in layers for b in (2 * layer, 2 * layer + 1)}
        return gain_of((nets[0], ladder(workload, chosen)), request, machine()) / whole

    assert share(found.indices) >= 0.9 > share(found.indices[1:])
    assert fewest_layers(workload, request, machine(ranks=1)).text == "none"


def test_layers_that_send_more_come_first():
    workload = net([1000.0] * 12, sent=[100.0] * 4 + [400.0] * 2 + [1.0] * 6)
    found = fewest_layers(workload, Request(1, 1, 2), machine(latency=0), share=0.5)
    assert 3 in found.indices or 2 in found.indices
    assert len(found.indices) < 3


# ---- how sure


def told(name, batches=(1,), prompt=1024, new=512, weights=140e9, kinds=()):
    blocks = (PlannedBlock(0, 0, 0, True, PlannedCosts(1.0, weight_bytes=weights), 1.0),)
    requests = [Request(batch, prompt, new) for batch in batches]
    workload = Workload(blocks, PlannedCosts(), frozenset({0}))
    return confidence(workload, requests, hardware_of(name), kinds).outside


def test_what_was_measured_needs_no_word():
    for name in ("h100x2-nvlink", "h100x8-nop2p"):
        assert told(name, (1, 64)) == ()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "h200x4-nvlink"}, "h200 was not measured"),
        ({"name": "h100x4-pcie"}, "pcie-4 was not measured"),
        ({"name": "h100x16-nvlink", "weights": 300e9}, "16 ranks (measured: 2 to 8)"),
        ({"batches": (4, 128)}, "batch 128 (measured: 1 to 64)"),
        ({"prompt": 8192}, "prompt 8192 and 512 new tokens"),
        ({"new": 16}, "prompt 1024 and 16 new tokens"),
        ({"weights": 16e9}, "4 GB of weights on a rank"),
        ({"kinds": ("attention", "MoE")}, "experts"),
        ({"weights": 290e9, "prompt": 2048, "name": "h100x4-nvlink", "batches": (64,)}, None),
        ({"weights": 600e9}, "does not fit: 150 GB"),
    ],
)
def test_what_lies_outside(asked, said):
    found = told(**{"name": "h100x4-nvlink", **asked})
    if said is None:
        assert found == ()
    else:
        assert any(said in reason for reason in found), found


# ---- hardware by name


def test_names_of_hardware():
    found = hardware_of("h100x8-nvlink")
    assert (found.ranks, found.name, found.link.name) == (8, "h100x8-nvlink", "nvlink-8")
    assert found.link.latency == pytest.approx(3 * hardware_of("h100x2-nvlink").link.latency)
    assert hardware_of("h200x8-nvlink").memory > found.memory
    assert hardware_of("l40sx4-pcie").link.bandwidth < found.link.bandwidth
    device = known_devices()["h100"]
    assert found.flops < device.flops
    assert found.memory < device.memory
    for name in ("h100", "h100x8", "h100x0-nvlink", "h101x8-nvlink", "h100x8-smoke"):
        with pytest.raises(LadderError, match=r"no hardware called[\s\S]*h100[\s\S]*nvlink"):
            hardware_of(name)


# ---- the command


def test_the_command(llama):  # noqa: F811
    done = run("plan", llama, "--hardware", "h100x2-pcie", "--batch", "1, 4", "--layers", "last:1")
    assert done.exit_code == 0, done.output
    assert "2 of 4 blocks read stale" in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:])) <= 100
    for said in ("standard tok/s", "decode step", "Accuracy", "pcie-2 was not measured"):
        assert said in done.stdout, done.stdout


def test_the_command_in_json(llama):  # noqa: F811
    told = json.loads(
        run("plan", llama, "--batch", "2", "--staleness", "2", "--desync", 4, "--json").stdout
    )
    (found,) = told["batches"]
    assert [f["variant"] for f in found["forecasts"]] == [*VARIANTS[:-1], "desync:4", "bound"]
    assert found["speedup"]["standard"] == 1 <= found["speedup"]["ladder"]
    assert (told["staleness"], told["num_blocks"], told["hardware"]["name"]) == (
        2,
        2 * LLAMA["num_hidden_layers"],
        "h100x8-nvlink",
    )
    assert told["confidence"]["outside"]


def test_mistakes(llama):  # noqa: F811
    done = run("plan", llama, "--hardware", "tpu")
    assert done.exit_code == 1
    assert "h100" in done.stderr and "nvlink" in done.stderr
    for wrong in ("", "1,", "0", "1,x", "-3"):
        assert run("plan", llama, "--batch", wrong).exit_code == 2, wrong
    assert run("plan", llama, "--prompt", "0").exit_code == 2
