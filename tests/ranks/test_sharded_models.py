"""Models that are already sharded, compiled as is: values, and the order that Inductor emits.

Values are tested on real ranks; graphs, reports and most orders on one rank.
Training is in test_parallel_training.py, what is refused in test_sharded_refusals.py.
"""

import re
from collections import Counter

import pytest
import torch
from helpers.parallel_nets import eager_ladder, gradient_errors, make_ids, make_net, shard
from helpers.ranks import mesh
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import config as inductor_config

import ladderize
from ladderize import compat
from ladderize.backends.emitted import find_disorder, find_races, order_string, read_events
from ladderize.graph import ops
from ladderize.testing.emitted_code import record_emitted_code

LAYERS = 2
WAYS = ["dtensor", "sequence", "megatron", "functions", "ladderize", "in_place", "functional"]


def rows(table, *every_run):
    """All rows, those of other ways than `every_run` only under --deep."""
    cases = [row if isinstance(row, tuple) else (row,) for row in table]
    return [
        pytest.param(*case, marks=[] if case[0] in every_run else [pytest.mark.deep])
        for case in cases
    ]


def compiled(net, **options):
    return torch.compile(net, backend="ladderize", fullgraph=True, options=options)


def inference_errors(way, lengths, options):
    """Largest difference to the whole eager ladder, and to the standard model."""
    whole, run = make_net(LAYERS), compiled(shard(way, make_net(LAYERS), mesh()), **options)
    errors = []
    with torch.no_grad():
        for length in lengths:
            ids = make_ids(length=length)
            found = run(ids)
            ladder = eager_ladder(whole, ids, options.get("staleness", 1))
            errors.append(((found - ladder).abs().max().item(), (found - whole(ids)).abs().max()))
    return [(ladder, float(standard)) for ladder, standard in errors]


# In every run: sequence parallelism two blocks stale, in-place all-reduces through Inductor,
# Megatron's functions in training.
@pytest.mark.parametrize("way", rows(WAYS, "dtensor"))
def test_inference_equals_the_unsharded_eager_ladder(two_ranks, way):
    """At two lengths: the second is compiled with a dynamic one."""
    lowering = "eager" if way in ("dtensor", "sequence") else "aot_eager"  # half a minute each
    options = {"lowering": lowering, "expect_blocks": 2 * LAYERS}
    for errors in two_ranks.run(inference_errors, way, (8, 12), options):
        for ladder, standard in errors:
            assert ladder <= 1e-4
            assert standard > 1e-2


@pytest.mark.parametrize("way", rows(["dtensor", "sequence", "in_place"], "sequence"))
def test_two_blocks_stale(two_ranks, way):
    options = {"lowering": "eager", "staleness": 2}
    for errors in two_ranks.run(inference_errors, way, (8,), options):
        assert errors[0][0] <= 1e-4
        assert errors[0][1] > 1e-2


def kept_graphs(way, grad):
    """The calls that Dynamo's graph shows, and the collectives after AOTAutograd."""
    net = shard(way, make_net(LAYERS), mesh())
    seen = {}

    def keep(name):
        def compiler(gm, _):
            targets = [str(node.target) for node in gm.graph.nodes]
            found = [target for target in targets if "c10d" in target and "wait" not in target]
            seen[name] = Counter(target.split(".")[1] for target in found)
            return compat.boxed(gm.forward)

        return compiler

    def backend(gm, inputs):
        seen["dynamo"] = Counter(ops.op_name(node) for node in gm.graph.nodes)
        compilers = {"fw_compiler": keep("forward"), "bw_compiler": keep("backward")}
        return aot_autograd(**compilers)(gm, inputs)

    with torch.set_grad_enabled(grad):
        out = torch.compile(net, backend=backend, fullgraph=True)(make_ids())
        if grad:
            out.square().mean().backward()
    return seen


AR, RS, AG = "all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor"
LOOKS = [  # docs/sharded.md; of two layers, that is four branches. The head takes a collective more
    ("dtensor", ["from_local", "redistribute", "to_local"], {AR: 4, AG: 1}, {AR: 9}),
    ("sequence", ["from_local", "redistribute", "to_local"], {RS: 5, AG: 6}, {RS: 5, AG: 5}),
    ("megatron", ["autograd_function_apply"], {AR: 4}, {AR: 4}),
    ("functions", ["autograd_function_apply"], {AR: 4}, {AR: 4}),
    ("ladderize", ["copy", "reduce", "wait"], {AR: 4}, {AR: 4}),
    ("in_place", ["all_reduce", "wait_tensor", "copy_"], {AR: 4}, None),
    ("functional", ["all_reduce", "wait_tensor"], {AR: 4}, None),
]


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize(("way", "in_dynamo", "forward", "backward"), rows(LOOKS, "ladderize"))
def test_the_table_of_the_docs(way, in_dynamo, forward, backward):
    """What each way looks like to torch's compiler, without ladderize."""
    seen = kept_graphs(way, backward is not None)
    assert set(in_dynamo) <= set(seen["dynamo"])
    assert seen["forward"] == forward
    assert backward is None or seen["backward"] == backward


def reported(way, grad):
    """What `explain` shows: collectives by block, kinds of blocks."""
    net = shard(way, make_net(LAYERS), mesh())
    with torch.set_grad_enabled(grad):
        report = ladderize.explain(net, make_ids())
    inside = Counter(c.op for c in report.collectives if c.block)
    outside = Counter(c.op for c in report.collectives if not c.block)
    groups = {c.group for c in report.collectives}
    return inside, outside, [block.kind for block in report.blocks], groups


BACKWARD = f"{AR} (backward)"
REPORTED = [
    ("dtensor", {AR: 4}, {AG: 1}),
    ("sequence", {AG: 4, RS: 4}, {RS: 1, AG: 2}),
    ("megatron", {AR: 4, BACKWARD: 4}, {}),
    ("ladderize", {AR: 4, BACKWARD: 4}, {}),
    ("in_place", {AR: 4}, {}),
]


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize(
    ("way", "inside", "outside"), rows(REPORTED, "dtensor", "megatron", "sequence")
)
def test_the_report_shows_the_collectives(way, inside, outside):
    """Those of autograd functions and of DTensors too, steps that stay on a rank not."""
    found = reported(way, way != "in_place")
    assert found[:2] == (inside, outside)
    assert found[2] == ["attention", "MLP"] * LAYERS
    assert len(found[3]) == 1


def through_inductor(way, grad, staleness=1):
    """The model, its logits, the emitted orders and the checker's findings."""
    net = shard(way, make_net(LAYERS), mesh())
    run = compiled(net, verify="code", staleness=staleness)
    with torch.set_grad_enabled(grad), record_emitted_code() as sources:
        found = run(make_ids())
        if grad:
            found.square().mean().backward()
    programs = [read_events(source) for source in sources]
    problems = [str(f) for p in programs for f in (*find_races(p), *find_disorder(p))]
    return net, found, [order_string(program) for program in programs], problems


def through_inductor_and_whole(way, grad, staleness=1):
    """Largest error of values and gradients; the emitted orders; what the checker finds."""
    net, found, orders, problems = through_inductor(way, grad, staleness)
    whole = make_net(LAYERS)
    with torch.set_grad_enabled(grad):
        expected = eager_ladder(whole, make_ids(), staleness)
        errors = [(found - expected).abs().max().item()]
        if grad:
            expected.square().mean().backward()
            errors += gradient_errors(net, whole, mesh()).values()
    return max(errors), orders, problems


def letters(order):
    """`AR_0 mm mm AR_1 W_0` as `A.Aw`: collectives, and a dot for any matmuls in between."""
    names = {"AR": "A", "RS": "R", "AG": "G", "W": "w", "W_RS": "r", "W_AG": "g"}
    names |= dict.fromkeys(MATMULS, ".")
    short = [names.get(re.sub(r"(_\d+|\*\d+)$", "", word), "") for word in order.split()]
    return re.sub(r"\.+", ".", "".join(short))


MATMULS = ("mm", "addmm")


@pytest.mark.parametrize("way", rows(["dtensor", "in_place"], "in_place"))
def test_every_all_reduce_hides_behind_the_next_block(two_ranks, way):
    """The last gather is that of the head's logits."""
    for error, orders, problems in two_ranks.run(through_inductor_and_whole, way, False):
        assert error <= 1e-4
        assert not problems
        (order,) = orders
        assert letters(order).startswith(".A" + ".Aw" * 3 + "w")


def check_sequence(orders, problems):
    """A matmul hides each reduce-scatter and each gather, except at the ends."""
    assert not problems
    forward, backward = orders
    middle = ".Rg.rG"  # scatter, next block's gather awaited, compute, scatter awaited, gather
    assert letters(forward).startswith("RrGGg" + middle * 2)
    assert count_hidden(forward, "RS") == 3  # Inductor's order for peak memory would expose one
    # In C++ one kernel computes what the last two scatters send: they leave, and wait, together.
    is_fused = not inductor_config.fallback_by_default
    assert count_hidden(backward, "RS") >= (2 if is_fused else 5)
    assert min(count_hidden(order, "AG") for order in orders) >= 2


@pytest.mark.usefixtures("first_of_two")
def test_sequence_parallelism_hides_scatters_and_gathers():
    check_sequence(*through_inductor("sequence", True)[2:])


@pytest.mark.deep
def test_sequence_parallelism_through_inductor_trains_as_the_eager_ladder(two_ranks):
    for error, *emitted in two_ranks.run(through_inductor_and_whole, "sequence", True):
        assert error <= 1e-4
        check_sequence(*emitted)


def count_hidden(order, kind):
    """How many collectives of a kind have a matmul between launch and wait."""
    words = order.split()
    hidden = 0
    for i, word in enumerate(words):
        if re.fullmatch(rf"{kind}_\d+", word):
            behind = words[i : words.index(f"W_{word}")]
            hidden += any(step.split("*")[0] in MATMULS for step in behind)
    return hidden


@pytest.mark.deep
def test_staleness_two_gives_gathers_more_room(two_ranks):
    for error, (order,), problems in two_ranks.run(
        through_inductor_and_whole, "sequence", False, 2
    ):
        assert error <= 1e-4
        assert not problems
        assert count_hidden(order, "RS") >= 2
        assert count_hidden(order, "AG") >= 2
        assert letters(order).startswith("RrGGGg.Rg.Rg.")


@pytest.mark.deep
def test_the_standard_net_waits_at_once(two_ranks):
    for error, (order,), problems in two_ranks.run(
        through_inductor_and_whole, "sequence", False, 0
    ):
        assert error <= 1e-4
        assert not problems
        assert letters(order).startswith("RrGg." * (2 * LAYERS + 1))
