"""The planner with expert parallelism: steps by hand, experts found in models, the command."""

import dataclasses
import json

import pytest
import torch
from helpers.reports import machine
from test_cli import run
from torch import nn
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import ladderize
from ladderize import LadderError
from ladderize.tools.predict.planning.confidence import confidence
from ladderize.tools.predict.planning.damage_curve import damage_curve
from ladderize.tools.predict.planning.forecast import Request
from ladderize.tools.predict.planning.limits import limits
from ladderize.tools.predict.planning.planned_nets import variants
from ladderize.tools.predict.planning.routed import (
    RoutedExperts,
    expert_parallel,
    routed_experts,
)
from ladderize.tools.predict.planning.workload import (
    Phase,
    PlannedBlock,
    PlannedCosts,
    Workload,
    workload_of,
)
from ladderize.tools.predict.timeline import predict

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "use_cache": False,
}
MODULES = ("layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp")
ROUTED = RoutedExperts(8, 2, {"layers.0.mlp.experts": 600, "layers.1.mlp.experts": 600})
ONE = Phase(batch=1, queries=1, keys=1)


def workload(staleness=1):
    """Two layers; each block 1000 FLOPs a token and 1000 bytes of weights."""
    costs = PlannedCosts(1000.0, weight_bytes=1000.0)
    blocks = tuple(
        PlannedBlock(i, 0, i // 2, i % 2 == 0, costs, reduce_bytes=100.0) for i in range(4)
    )
    return Workload(blocks, PlannedCosts(100.0, weight_bytes=10.0), frozenset(range(4)), staleness)


def test_steps_by_hand():
    """5 s a block on each of two ranks; to each exchange a rank gives 2 * 100 / 2 bytes."""
    of_a_rank = expert_parallel(workload(), MODULES, ROUTED, 2)
    assert machine().exchange_seconds(100.0) == pytest.approx(1 + 1.5)
    head = 0.5  # half of the tokens
    found = {net.name: net.seconds(ONE, machine()) - head for net in variants(of_a_rank)}
    # ladder: a0 0-5, D0 0-2.5, e0 5-10, C0 10-12.5, a1 10-15, D1 behind C0 12.5-15, e1 15-20, C1
    # parallel: a1 and D1 wait for C0 until 12.5, e1 17.5-22.5, C1
    assert found == pytest.approx({"standard": 30, "ladder": 22.5, "parallel": 25, "bound": 20})


# ---- other connectivities

GLM = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "use_cache": False,
}


@pytest.fixture(scope="module")
def glm():
    """The report with "farskip". Layer 0 is dense; the others have a shared expert."""
    with torch.device("meta"):
        model, ids = Glm4MoeForCausalLM(Glm4MoeConfig(**GLM)), torch.zeros(2, 8, dtype=torch.int64)
        return ladderize.explain(model, ids, options={"connectivity": "farskip"})


def alike(found):
    """Its blocks take 5 s each on two ranks, all-reduces 4 s."""
    costs = PlannedCosts(1000.0)
    blocks = (dataclasses.replace(block, costs=costs, reduce_bytes=100.0) for block in found.blocks)
    return dataclasses.replace(found, blocks=tuple(blocks), outside=PlannedCosts())


def seconds(found):
    return {net.name: net.seconds(ONE, machine()) for net in variants(found)}


def test_connectivities_over_a_divided_model_by_hand(glm):
    """The result of a shared expert has its own all-reduce, which is waited for."""
    # a0 0-5 R0 5-9, m0 9-14 R1 14-18, a1 18-23 R2, e1 23-28, landed R3 28-32 R3 32-36,
    # a2 32-37 R4 37-41, e2 37-42 R5 42-46: no block reads the landed summand of e2
    farskip = alike(workload_of(glm))
    assert seconds(farskip) == pytest.approx(
        {"standard": 6 * 9, "ladder": 6 * 5 + 4, "farskip": 46, "parallel": 42, "bound": 30}
    )
    # as with "instella", m0 does not wait for R0: four seconds less
    dense = dataclasses.replace(farskip.blocks[1], leaves_out=True)
    blocks = (farskip.blocks[0], dense, *farskip.blocks[2:])
    assert seconds(dataclasses.replace(farskip, blocks=blocks))["farskip"] == pytest.approx(42)


def test_with_whole_experts_the_times_are_those_of_a_ladder(glm):
    names = [f"model.layers.{layer}.mlp.experts" for layer in (1, 2)]
    experts = RoutedExperts(4, 2, dict.fromkeys(names, 9))
    found = expert_parallel(alike(workload_of(glm)), [b.module for b in glm.blocks], experts, 2)
    times = seconds(found)
    assert times["farskip"] == times["ladder"] < times["standard"]
    said = confidence(found, [Request(1, 1, 2)], machine()).outside
    assert any("farskip is not calibrated" in s and "those of a ladder" in s for s in said)


def test_a_connectivity_is_said_to_be_uncalibrated(glm):
    for found, expected in ((workload_of(glm), ["farskip is not calibrated"]), (workload(), [])):
        said = confidence(found, [Request(1, 1, 2)], machine()).outside
        assert [s.partition(":")[0] for s in said if "calibrated" in s] == expected
    with pytest.raises(LadderError, match="not with connectivity='farskip'"):
        damage_curve(workload_of(glm), Request(1, 1, 2), machine(), measured=None)


def test_a_predicted_step_waits_for_landed_summands_alone(glm):
    """`plot`: the attention behind a mixture starts with its landed all-reduce, not the other."""
    _, step = predict(glm, machine(flops=1e4)).steps
    tasks = {i.label: i for i in (*step.compute.intervals, *step.communication.intervals)}
    landed, routed = tasks["all-reduce h3 (landed)"], tasks["all-reduce h3"]
    assert landed.end <= tasks["h4"].start < routed.end
    assert "all-reduce h5 (landed)" not in tasks  # no block reads it apart


def test_a_rank_holds_whole_experts_and_all_else():
    of_a_rank = expert_parallel(workload(), MODULES, ROUTED, 2)
    assert of_a_rank.bytes_of_a_rank(2, 0, 0) == 2 * 1000 + 2 * (400 + 300) + 10
    assert workload().bytes_of_a_rank(2, 0, 0) == 4 * 500 + 10


def test_what_all_to_alls_hide_behind_is_no_block_of_experts():
    of_a_rank = expert_parallel(workload(), MODULES, ROUTED, 2)
    slow = dataclasses.replace(of_a_rank.blocks[1], costs=PlannedCosts(1.0))
    blocks = (of_a_rank.blocks[0], slow, *of_a_rank.blocks[2:])
    found = limits(dataclasses.replace(of_a_rank, blocks=blocks), Request(1, 1, 2), machine())
    assert (found.decode.op, found.decode.reduce) == ("all_to_all", pytest.approx(2.5))
    assert found.decode.hidden == pytest.approx(5)
    assert found.decode.bandwidth == pytest.approx(0.5 * 100 / (5 - 1))


@pytest.mark.parametrize(
    ("routed", "ranks", "said"),
    [
        (None, 2, "has no routed experts"),
        (dataclasses.replace(ROUTED, weight_bytes={"other": 1}), 2, "has no routed experts"),
        (ROUTED, 3, "8 experts cannot be divided evenly over 3 ranks"),
    ],
)
def test_what_cannot_be_planned(routed, ranks, said):
    with pytest.raises(LadderError, match=said):
        expert_parallel(workload(), MODULES, routed, ranks)
    shard = dataclasses.replace(workload().blocks[0], is_local=True)
    with pytest.raises(LadderError, match="already sharded"):
        expert_parallel(dataclasses.replace(workload(), blocks=(shard,)), MODULES, ROUTED, 2)


class Listed(nn.Module):
    """Experts as modules, as in many published models."""

    def __init__(self):
        super().__init__()
        self.config = Qwen3MoeConfig(**CONFIG)
        self.mlp = nn.Module()
        self.mlp.gate = nn.Linear(32, 8, bias=False)
        self.mlp.experts = nn.ModuleList(nn.Linear(32, 16, bias=False) for _ in range(8))


def test_experts_are_found_stacked_and_listed():
    with torch.device("meta"):
        stacked = routed_experts(Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG)))
    each = 4 * 8 * 3 * 32 * 16  # bytes of gate, up and down of all experts of a layer
    assert (stacked.num_experts, stacked.top_k) == (8, 2)
    assert stacked.bytes_in("model.layers.1.mlp") == each
    assert stacked.bytes_in("model.layers.1") == each and stacked.bytes_in("model") == 2 * each
    assert routed_experts(Listed()).bytes_in("mlp") == 4 * 8 * 32 * 16
    assert routed_experts(nn.Linear(2, 2)) is None


def test_only_active_experts_compute():
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG))
        report = ladderize.explain(model, torch.zeros(2, 8, dtype=torch.int64))
    mixture = report.blocks[1]
    active = 16 * 2 * 3 * 2 * 32 * 16  # tokens, of each two experts, of each three products
    router = 16 * 2 * 32 * 8
    assert active + router <= mixture.flops < 1.05 * (active + router)


def test_the_command(tmp_path):
    data = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **CONFIG}
    (tmp_path / "config.json").write_text(json.dumps(data))
    given = ("plan", f"hf:{tmp_path}", "--hardware", "h100x4-pcie", "--batch", "8", "--json")
    tensor, expert = (
        json.loads(run(*given, *flags).stdout) for flags in ((), ("--experts", "expert"))
    )
    assert any("expert parallelism is not calibrated" in s for s in expert["confidence"]["outside"])
    assert not any("expert parallelism" in s for s in tensor["confidence"]["outside"])
    assert expert["limits"]["prefill"]["op"] == "all_to_all"
    speeds = [found["batches"][0]["forecasts"][0]["tokens_per_s"] for found in (tensor, expert)]
    assert speeds[0] != speeds[1]
    farskip = run("plan", f"hf:{tmp_path}", "--batch", "8", "--connectivity", "farskip")
    assert "connectivity farskip" in farskip.stdout and "farskip is not" in farskip.stdout
    refused = run("plan", "hf:no-such-model", "--connectivity", "farskop")
    assert refused.exit_code == 1 and "did you mean 'farskip'" in refused.stderr
    refused = run(*given, "--experts", "both")
    assert refused.exit_code == 1 and 'must be "tensor" or "expert"' in refused.stderr
