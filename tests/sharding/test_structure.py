"""Sharding: structure, and values and gradients of all ranks in lockstep."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.sharded import Sharder, run_sharded, shard, shard_anew, shard_module
from torch import nn

from ladderize.compat import python_dispatcher
from ladderize.graph.fake_values import signature
from ladderize.sharding.placement import Shard, take_local
from ladderize.sharding.plan import ShardPlan
from ladderize.sharding.rules.table import shared_heads
from ladderize.sharding.views import DimGroup, dim_groups

TOLERANCE = 1e-4


# ---- values


def check_errors(errors: dict[str, Any]) -> None:
    assert errors["error"] <= TOLERANCE
    assert errors.get("other shape", 0) <= TOLERANCE
    assert errors["input gradient"] <= TOLERANCE
    assert max(errors["gradients"].values()) <= TOLERANCE


def check(
    num_ranks: int, name: str, dynamic: bool = False, per_layer: int = 2, **options: Any
) -> None:
    sharder, errors = run_sharded(name, num_ranks, dynamic, options)
    assert sharder.plan is not None
    assert sharder.plan.whole_branches == ()
    blocks = per_layer * options.get("layers", 2)
    assert sharder.plan.num_reductions == len(sharder.blocks) == blocks
    check_errors(errors)
    assert len(errors["gradients"]) >= 5 * blocks // per_layer * num_ranks


CASES = [
    ("llama", False, {}),
    ("llama", True, {"kv": 2, "layers": 1}),
    ("llama", False, {"kv": 1, "layers": 1}),
    ("llama", True, {"kv": 2, "layers": 1, "attn_implementation": "eager"}),
    ("gpt2", False, {"layers": 1}),
    ("gpt2", True, {"layers": 1}),
    ("bert", False, {"layers": 1}),
    ("bert", True, {"layers": 1, "attn_implementation": "eager"}),
]


def deep(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.deep)


@pytest.mark.parametrize(
    ("name", "dynamic", "options"),
    # In every run sizes are dynamic over four ranks.
    [deep(*case) if case[1] else case for case in CASES],
)
def test_two_ranks_equal_one(name: str, dynamic: bool, options: dict[str, Any]) -> None:
    check(2, name, dynamic, **options)


@pytest.mark.parametrize(
    ("name", "dynamic", "options"), [CASES[1], *(deep(*case) for case in CASES[3::2])]
)
def test_four_ranks_equal_one(name: str, dynamic: bool, options: dict[str, Any]) -> None:
    check(4, name, dynamic, **options)


@pytest.mark.parametrize("name", ["bloom", "mixtral", "t5"])
def test_merged_heads_experts_and_relative_bias(name: str) -> None:
    check(2, name, layers=1)


def test_key_heads_that_do_not_divide() -> None:
    check(2, "llama", heads=6, kv=3, layers=1)


def test_parallel_blocks_take_one_reduction_for_both_halves() -> None:
    check(2, "neox", per_layer=1, layers=1)


# ---- nets of our own, for what the models above do not have


class Net(nn.Module):
    """Two residual blocks around `make()`; `combine` spells the residual sum."""

    def __init__(
        self, make: type[nn.Module], combine: Callable[..., Any] = torch.add, **options: Any
    ) -> None:
        super().__init__()
        self.combine = combine
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(make(**options) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = self.combine(x, block(torch.nn.functional.layer_norm(x, x.shape[-1:])))
        return x


class SharedHeads(nn.Module):
    """Attention with fewer key heads by `enable_gqa`; a norm of size head_dim on the queries."""

    def __init__(self, heads: int = 8, kv: int = 2) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(32, 4 * heads), nn.Linear(32, 8 * kv)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4 * heads, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q = self.norm(self.q(x).view(batch, length, -1, 4)).transpose(1, 2)
        k, v = self.kv(x).chunk(2, -1)
        k, v = (t.reshape(batch, length, -1, 4).transpose(1, 2) for t in (k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class FusedGate(nn.Module):
    """[gate|up] in one weight, divided by a slice; a bias on the way back; a per-channel gain."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(32, 48), nn.Linear(24, 32)
        self.gain = nn.Parameter(torch.randn(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.both(x)
        return self.down(nn.functional.silu(both[..., :24]) * both[..., 24:] * self.gain)


class Slopes(nn.Module):
    """A mask that differs between heads and is computed from a parameter, not divided itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.slopes = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).split(32, -1)
        q, k, v = (t.view(batch, length, 4, 8).transpose(1, 2) for t in qkv)
        steps = torch.arange(length, dtype=x.dtype)
        bias = torch.tanh(self.slopes)[:, None, None] * (steps[None, :] - steps[:, None])
        scores = torch.softmax(q @ k.mT / 8**0.5 + bias, -1)
        return self.out((scores @ v).transpose(1, 2).reshape(batch, length, 32))


class Deep(nn.Module):
    """Three weights: the second's result is partial where a nonlinear op reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.layers
        return c(torch.relu(b(torch.relu(a(x)))))


class OneKey(nn.Module):
    """Many queries on one key and value head, all from one weight: [q|q|q|q|k|v]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.out = nn.Linear(32, 48), nn.LayerNorm(8), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).split([32, 8, 8], -1)
        q = q.view(batch, length, 4, 8).transpose(1, 2)
        k, v = self.norm(k)[:, None], v[:, None]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, 32))


class Channels(nn.Module):
    """Convolutions, one of them by channel, with a batch norm in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(32, 48, 3, padding=1)
        self.norm, self.each = nn.BatchNorm1d(48), nn.Conv1d(48, 48, 3, padding=1, groups=48)
        self.last = nn.Conv1d(48, 32, 1)
        self.norm.running_mean.uniform_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm(self.first(x.transpose(1, 2))))
        return self.last(self.each(inner)).transpose(1, 2)


class Experts(nn.Module):
    """All experts of every token, weighted by a router; biases inside of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(32, 4)
        self.up = nn.Parameter(torch.randn(4, 32, 48) / 6)
        self.down = nn.Parameter(torch.randn(4, 48, 32) / 6)
        self.bias = nn.Parameter(torch.randn(4, 1, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 32)
        weights = torch.softmax(self.router(flat), -1)
        inner = torch.relu(torch.bmm(flat.expand(4, -1, -1), self.up))
        each = torch.bmm(inner, self.down) + self.bias
        return (each * weights.t()[..., None]).sum(0).view(x.shape)


OWN = {
    "one key": (OneKey, {}),
    "channels": (Channels, {}),
    "experts": (Experts, {}),
    "shared heads": (SharedHeads, {}),
    "shared heads, one": (SharedHeads, {"kv": 1}),
    "shared heads, uneven": (SharedHeads, {"heads": 12, "kv": 3}),
    "fused gate": (FusedGate, {}),
    "slopes": (Slopes, {}),
    "deep": (Deep, {}),
    "scaled branch": (FusedGate, {"combine": partial(torch.add, alpha=0.5)}),
    "scaled skip": (FusedGate, {"combine": lambda x, h: torch.add(h, x, alpha=0.5)}),
    "difference": (FusedGate, {"combine": torch.sub}),
}


# Over four ranks in every run: keys of fewer heads than ranks, and weights of experts.
FOUR = {"one key", "experts", "shared heads, uneven"}


@pytest.mark.parametrize(
    ("name", "num_ranks"),
    [
        pytest.param(name, num_ranks, id=f"{name}-{num_ranks}", marks=marks)
        for name in OWN
        for num_ranks, marks in ((2, []), (4, [] if name in FOUR else [pytest.mark.deep]))
    ],
)
def test_own_nets(name: str, num_ranks: int) -> None:
    make, options = OWN[name]
    sharder = Sharder(num_ranks, execute=True)
    errors = shard_module(sharder, Net(make, **options).eval(), torch.randn(2, 6, 32))
    assert sharder.plan is not None
    assert sharder.plan.whole_branches == ()
    assert sharder.plan.num_reductions == 2
    check_errors(errors)


# ---- structure


def test_one_copy_and_one_reduction_a_branch() -> None:
    targets = shard("llama", 2, layers=2).targets()
    assert targets.count("ladderize.copy.default") == 4
    assert targets.count("ladderize.reduce.default") == 4
    assert targets.count("ladderize.wait.default") == 4


def test_biases_are_added_after_the_wait() -> None:
    graph = shard("bert", 2, layers=1).gm.graph
    waits = [node for node in graph.nodes if str(node.target) == "ladderize.wait.default"]
    for wait in waits:
        (bias,) = wait.users
        assert str(bias.target) == "aten.add.Tensor"
        assert bias.args[1].op == "placeholder"
        launch = wait.args[0].args[0]
        while str(launch.target) != "aten.linear.default":
            launch = launch.args[0]
        assert len(launch.args) == 2


def test_fused_qkv_is_divided_in_three_chunks() -> None:
    placements = shard("gpt2", 2, layers=1).plan.placements
    assert placements["h.0.attn.c_attn.weight"] == Shard(1, (32, 32, 32))
    assert placements["h.0.attn.c_attn.bias"] == Shard(0, (32, 32, 32))
    assert placements["h.0.attn.c_proj.weight"] == Shard(0, (32,))


def test_the_parts_of_a_fused_weight_stay_divided() -> None:
    """A rank has its heads of q, k and v; it selects none."""
    sharder = shard("gpt2", 2, layers=1)
    assert sharder.plan.index_inputs == ()
    assert "aten.index_select.default" not in sharder.targets()


def test_only_branches_are_divided() -> None:
    sharder = shard("llama", 2, layers=1)
    assert all(".self_attn." in name or ".mlp." in name for name in sharder.plan.placements)
    assert len(sharder.plan.placements) == 7


def test_rank_enters_by_an_input() -> None:
    sharder = shard("llama", 4, kv=2, layers=1)
    (index,) = sharder.plan.index_inputs
    assert sharder.gm.graph.find_nodes(op="placeholder")[-1].name == index.name
    assert "aten.index_select.default" in sharder.targets()


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        ("llama", True),
        ("gpt2", False),
        ("bert", True),
        *(deep(*case) for case in (("llama", False), ("gpt2", True), ("bert", False))),
    ],
)
def test_fake_values_agree_with_a_full_run(name: str, dynamic: bool) -> None:
    """Every meta equals what running the whole sharded graph on its fake inputs gives."""
    gm = shard(name, 2, dynamic, layers=1).gm
    inputs = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    mode = next(value.fake_mode for value in inputs if isinstance(value, torch.Tensor))
    checked = []

    class Check(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            value = super().run_node(node)
            if isinstance(value, torch.Tensor) and node.op == "call_function":
                assert signature(value) == signature(node.meta["val"]), node
                checked.append(node)
            return value

    with mode, python_dispatcher():
        Check(gm).run(*inputs)
    assert len(checked) > 20


def test_visits_grow_linearly_with_depth() -> None:
    shallow, deep = (shard("llama", 2, layers=n, kv=1).plan.visits for n in (1, 2))
    assert shallow == deep / 2


def test_ranks_that_decide_alike_have_the_same_lines() -> None:
    first = shard("llama", 2, layers=1).plan.decisions()
    assert shard_anew("llama", 2, layers=1).plan.decisions() == first
    others = [
        shard("llama", 4, layers=1),
        shard("llama", 2, layers=1, kv=1),
        shard("llama", 2, layers=2),  # others look at it too
    ]
    assert len({tuple(lines) for lines in (first, *(o.plan.decisions() for o in others))}) == 4


# ---- refusals


def reasons(plan: ShardPlan) -> list[str]:
    return [str(reason) for branch in plan.whole_branches for reason in branch.reasons]


def test_every_reason_is_named_with_its_place() -> None:
    plan = shard("llama", 2, heads=7, kv=7, hidden_size=56, intermediate_size=45, layers=1).plan
    lines = reasons(plan)
    assert len(lines) == 5
    for name in "qkv":
        (line,) = [b for b in lines if f"layers.0.self_attn.{name}_proj.weight" in b]
        assert "7 heads of size 8 cannot be divided over 2 ranks" in line
        assert "modeling_llama.py:" in line
    for name in ("gate", "up"):
        (line,) = [b for b in lines if f"layers.0.mlp.{name}_proj.weight" in b]
        assert "45" in line and "modeling_llama.py:" in line
    assert plan.placements == {}
    assert plan.num_reductions == 0
    assert plan.rewrites == plan.entries == ()


def test_what_stays_whole_is_counted() -> None:
    """Attention of 7 heads cannot be divided over 2 ranks, but the MLP next to it can."""
    plan = shard("llama", 2, heads=7, kv=7, hidden_size=56, intermediate_size=48, layers=1).plan
    (branch,) = plan.whole
    assert branch.is_branch
    assert len(branch.parameters) == 4  # with o_proj, which no reason names
    assert branch.num_bytes == 4 * 56 * 56 * 4 // 2
    tokens, scores = 2 * 6, 2 * 7 * 6 * 6 * 8
    assert branch.flops == (4 * 2 * tokens * 56 * 56 + 2 * 2 * scores) // 2
    assert plan.num_reductions == 1
    assert all(".mlp." in name for name in plan.placements)
    assert f"{branch.num_bytes:,} bytes and {branch.flops:,} FLOPs" in "".join(plan.describe())


def test_key_heads_that_stay_whole_are_counted() -> None:
    plan = shard("llama", 2, kv=1, layers=1).plan
    assert not any(w.is_branch for w in plan.whole)
    assert {name for w in plan.whole for name in w.parameters} == {
        "layers.0.self_attn.k_proj.weight",
        "layers.0.self_attn.v_proj.weight",
    }
    assert sum(w.num_bytes for w in plan.whole) == 2 * 8 * 32 * 4 // 2


def test_hidden_size_that_does_not_divide() -> None:
    plan = shard("bert", 4, heads=3, hidden_size=30, layers=1).plan
    lines = reasons(plan)
    assert len(plan.whole_branches) == 1
    assert len(lines) == 4
    assert all("30 entries" in line for line in lines)
    assert plan.num_reductions == 1  # the MLP's 48 still divides


class UsedTwice(nn.Module):
    """One weight makes the inner values and takes them back, transposed or not."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))
        self.transposed = transposed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(nn.functional.linear(x, self.weight))
        return inner @ self.weight if self.transposed else nn.functional.linear(inner, self.weight)


def test_a_weight_wanted_in_two_placements_stays_whole() -> None:
    sharder = Sharder(2)
    shard_module(sharder, Net(UsedTwice, transposed=True), torch.randn(2, 6, 32))
    assert set(sharder.plan.placements.values()) == {Shard(0, (32,))}
    assert sharder.plan.num_reductions == 2
    sharder = Sharder(2)
    shard_module(sharder, Net(UsedTwice, transposed=False), torch.randn(2, 6, 32))
    assert sharder.plan.placements == {}
    assert len(sharder.plan.whole_branches) == 2
    assert all("used in two ways" in line for line in reasons(sharder.plan))


class Shared(nn.Module):
    """Every block is the same module, as in ALBERT."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, inner), nn.Linear(inner, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + self.down(torch.relu(self.up(x)))
        return x


def test_weights_shared_by_all_blocks() -> None:
    sharder = Sharder(2)
    shard_module(sharder, Shared(48), torch.randn(2, 6, 32))
    assert sharder.plan.num_reductions == 3
    assert len(sharder.plan.placements) == 3
    sharder = Sharder(2)
    shard_module(sharder, Shared(45), torch.randn(2, 6, 32))
    assert len(sharder.plan.whole_branches) == 3
    assert len({branch.reasons for branch in sharder.plan.whole_branches}) == 1
    assert "up.weight: 45 entries cannot be divided over 2 ranks" in reasons(sharder.plan)[0]
    # The weights are shared: their bytes are counted once, the FLOPs of each use.
    costs = [(branch.num_bytes > 0, branch.flops > 0) for branch in sharder.plan.whole_branches]
    assert costs == [(True, True), (False, True), (False, True)]


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).cummax(-1).values)


def test_an_op_without_a_rule_keeps_its_branch_whole() -> None:
    sharder = Sharder(2)
    shard_module(sharder, Net(Unknown), torch.randn(2, 6, 32))
    lines = reasons(sharder.plan)
    assert len(lines) == 2
    assert all("no sharding rule for aten.cummax" in line for line in lines)


# ---- parts


def test_take_local_takes_its_share_of_each_chunk() -> None:
    full = torch.arange(16).reshape(2, 8)
    part = take_local(full, Shard(1, (4, 2, 2)), 1, 2)
    assert part.tolist() == [[2, 3, 5, 7], [10, 11, 13, 15]]


@pytest.mark.parametrize(
    ("heads", "kv", "ranks", "rows"),
    [
        (8, 2, 4, ((0,), (0,), (1,), (1,))),
        (8, 1, 2, ((0,), (0,))),
        (6, 3, 2, ((0, 0, 1), (1, 2, 2))),
        (12, 3, 2, ((0, 0, 0, 0, 1, 1), (1, 1, 2, 2, 2, 2))),
    ],
)
def test_shared_heads(heads: int, kv: int, ranks: int, rows: Any) -> None:
    assert shared_heads(heads, kv, ranks) == rows


@pytest.mark.parametrize(
    ("old", "new", "groups"),
    [
        ((2, 8, 32), (2, 8, 4, 8), [((0,), (0,)), ((1,), (1,)), ((2,), (2, 3))]),
        ((2, 8, 8), (2, 8, 1, 8), [((0,), (0,)), ((1,), (1,)), ((2,), (2, 3))]),
        ((2, 4, 2, 8), (2, 8, 8), [((0,), (0,)), ((1, 2), (1,)), ((3,), (2,))]),
        ((6, 4), (4, 6), [((0, 1), (0, 1))]),
        ((4, 1), (4,), [((0, 1), (0,))]),
    ],
)
def test_dim_groups(old: Any, new: Any, groups: Any) -> None:
    assert dim_groups(old, new) == [DimGroup(*pair) for pair in groups]
