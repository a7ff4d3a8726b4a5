"""What is said of branches and parameters that stay whole on each rank."""

import warnings

import pytest
import torch
from helpers.sharded import Sharder, shard

from ladderize.errors import Blocker, LadderError, LadderWarning
from ladderize.sharding.folded_lines import folded_lines
from ladderize.sharding.plan_checks import forget_warnings, refuse_undivided
from ladderize.sharding.undivided import Undivided

FILE = "/usr/lib/python3.11/site-packages/transformers/models/x/modeling_x.py:3"


def gate(layer: int, why: str = "topk in model.layers.{}.mlp chooses") -> Undivided:
    place = f"model.layers.{layer}.mlp"
    reason = Blocker(f"{place}.gate.weight: {why.format(layer)}", f"{place} at {FILE}")
    return Undivided((reason,), (f"{place}.gate.weight",), 8, 64, is_branch=False)


def test_layers_with_one_reason_share_a_line() -> None:
    lines = folded_lines([*map(gate, (0, 1, 2, 4)), gate(3, "another")])
    assert lines == [
        "model.layers.{0-2,4}.mlp.gate.weight: topk in model.layers.{0-2,4}.mlp chooses "
        "(model.layers.{0-2,4}.mlp at transformers/models/x/modeling_x.py:3); "
        "32 bytes and 256 FLOPs more on each rank",
        "model.layers.3.mlp.gate.weight: another "
        "(model.layers.3.mlp at transformers/models/x/modeling_x.py:3); "
        "8 bytes and 64 FLOPs more on each rank",
    ]


def test_layers_10_and_1_are_two() -> None:
    (line,) = folded_lines([gate(10, "of layers.1.x and layers.10.x")])
    assert "layers.1.x and layers.10.x" in line


def test_costs_are_added_up_where_no_layer_is_named() -> None:
    alone = Undivided((Blocker("table: 7 words"),), ("table",), 3, 0, is_branch=False)
    assert folded_lines([alone]) == ["table: 7 words; 3 bytes and 0 FLOPs more on each rank"]


def test_it_is_said_once() -> None:
    plan = shard("llama", 2, heads=3, kv=3, layers=2).plan
    with pytest.warns(LadderWarning, match=r"layers\.\{0-1\}\.self_attn\.q_proj.*3 heads"):
        refuse_undivided(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse_undivided(plan)
    forget_warnings()
    with pytest.warns(LadderWarning, match="Not everything is sharded"):
        refuse_undivided(plan)


class Distances(torch.nn.Module):
    """A branch that reads its weight in an op that has no sharding rule."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = torch.nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.cdist(x, self.centers)


def test_an_op_without_a_rule_is_named() -> None:
    model = torch.nn.Sequential(Distances(), Distances())
    sharder = Sharder(2)
    torch.compile(model, backend=sharder, fullgraph=True)(torch.randn(2, 4, 8))
    with pytest.raises(LadderError, match=r"1\.centers: no sharding rule for aten\.\w*cdist"):
        refuse_undivided(sharder.plan)
