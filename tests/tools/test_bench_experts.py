"""`ladderize bench` of a mixture of experts that brings its own all-to-alls: two real ranks."""

import json

import pytest
import torch
from helpers.fake_group import fake_group
from helpers.forked_launch import forked_launch
from helpers.tiny_experts import SIZES
from moe_nets import MoeNet, WrittenMoe, make
from torch import nn
from typer.testing import CliRunner

from ladderize import rewrite
from ladderize.config.hardware import Link
from ladderize.tools.bench.least_exposed import StepGraph, StepOp
from ladderize.tools.cli import app

FACTORIES = "helpers.tiny_experts"
LINK = Link("test", ranks=2, latency=1.0, bandwidth=1e18)


@pytest.fixture(scope="module", autouse=True)
def ranks_are_forked():
    with forked_launch():
        yield


def measure(name, *options):
    done = CliRunner().invoke(
        app,
        [
            *("bench", f"{FACTORIES}:{name}", "--written", f"{FACTORIES}:written"),
            *("--alpha-us", "20000", "--lowering", "eager", "--repeats", "1", "--warmup", "0"),
            *("--variants", "standard,written,bound", "--json", *options),
        ],
    )
    assert done.exit_code == 0, done.output
    return {row["key"]["variant"]: row for row in json.loads(done.stdout)["rows"]}


@pytest.mark.deep
def test_its_all_to_alls_are_measured():
    rows = measure("standard")
    assert {row["key"]["phase"] for row in rows.values()} == {"forward"}
    standard, written = rows["standard"]["values"], rows["written"]["values"]
    for values in (standard, written):
        # Two a layer, each of them 20 ms.
        assert values["communicating_all_to_all_s"] == pytest.approx(6 * 0.02)
        assert values["communicating_s"] == values["communicating_all_to_all_s"]
        assert values["error"] < 1e-5
    assert rows["bound"]["values"].get("exposed_s") is None
    assert written["allowed_fraction"] is not None


def test_its_training_is_measured():
    rows = measure(
        "standard_trained", "--phase", "training", "--written", f"{FACTORIES}:written_trained"
    )
    assert {row["key"]["phase"] for row in rows.values()} == {"training"}
    for name in ("standard", "written"):
        # Two layers, in the backward pass as many again.
        assert rows[name]["values"]["communicating_all_to_all_s"] == pytest.approx(8 * 0.02)
        assert rows[name]["values"]["error"] < 1e-5


def test_the_ladder_written_by_hand_is_the_ladder():
    """On one rank, which has all experts: against ladderize's own rewrite."""
    torch.manual_seed(0)
    model, (x,) = make(MoeNet, SIZES)
    written = WrittenMoe(SIZES)
    written.load_state_dict(model.state_dict())
    expected = rewrite(torch.export.export(model, (x,))).module()(x)
    torch.testing.assert_close(written(x), expected)
    assert not torch.allclose(expected, model(x))


# ---- what no order hides


def op(flops=0.0, *needs, kind=""):
    return StepOp(flops, kind, 8, needs)


@pytest.mark.parametrize(
    ("ops", "exposed"),
    [
        ([op(2), op(0, 0, kind="all_to_all"), op(2, 1)], 1),  # nothing to hide behind
        ([op(2), op(0, 0, kind="all_to_all"), op(1), op(1, 1)], 0),  # the third runs meanwhile
        ([op(2), op(0, 0, kind="all_to_all"), op(0.5), op(1.5, 1)], 0.5),
        # Two at once share the link.
        ([op(1), *[op(0, 0, kind="all_to_all")] * 2, op(1), op(2, 1, 2)], 1),
        # The chain goes first, although the other op was written ahead of it.
        ([op(1), op(1), op(0, 1, kind="all_to_all"), op(1, 2), op(1, 3)], 0),
        ([op(2), op(2, 0)], 0),
    ],
)
def test_ops_that_are_ready_hide_transfers(ops, exposed):
    seconds = sum(each.flops for each in ops)
    graph = StepGraph((tuple(ops),))
    assert graph.least_exposed(seconds, LINK) == pytest.approx(exposed)
    # The backward graph begins when the forward graph has ended.
    assert StepGraph((tuple(ops),) * 2).least_exposed(2 * seconds, LINK) == pytest.approx(
        2 * exposed
    )


def test_the_collectives_of_a_step_are_found():
    """Of a rank of two: dispatch and combine of each layer, of the slots of both ranks' experts."""
    with fake_group():
        model, (x,) = make(MoeNet, SIZES)
        graph = StepGraph.of(model, lambda module: module(x))
    sent = [each for each in graph.graphs[0] if each.kind]
    assert {each.kind for each in sent} == {"all_to_all"} and len(sent) == 2 * SIZES.layers
    slots = SIZES.num_experts * SIZES.capacity
    assert {each.num_bytes for each in sent} == {4 * slots * SIZES.width}


def test_the_graphs_of_a_step_are_those_after_autograd():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    x = torch.randn(2, 4)
    forward = StepGraph.of(model.requires_grad_(False), lambda module: module(x))
    trained = StepGraph.of(model.requires_grad_(True), lambda module: module(x).sum().backward())
    assert len(forward.graphs) == 1 and len(trained.graphs) == 2
    flops = [sum(each.flops for each in graph) for graph in trained.graphs]
    assert sum(each.flops for each in forward.graphs[0]) == flops[0] == 2 * (2 * 2 * 4 * 8)
    assert flops[1] > flops[0]
