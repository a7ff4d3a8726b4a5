"""`experts="expert"`: each rank holds whole experts, and the ranks equal one, in lockstep."""

from functools import cache

import pytest
import torch
import transformers.integrations.moe  # noqa: F401 (registers grouped_mm_fallback)
from helpers.language_models import MIXTURES, mixture
from helpers.lockstep import ShardedProgram
from helpers.reads import HEAD
from torch import nn
from torch.export import Dim, export

from ladderize import LadderConfig, LadderError, LadderWarning
from ladderize.frontends.sharded.localize import explain_local
from ladderize.sharding.placement import Replicate, take_local
from ladderize.testing import eager_ladder

pytestmark = pytest.mark.filterwarnings("ignore:Not everything is sharded")
IDS = torch.arange(12).view(2, 6) * 5 % 64
STACKS = ("gate_up_proj", "down_proj")
DYNAMIC = ("grouped_mm", True)
SIZES = {"input_ids": {0: Dim("batch", max=8), 1: Dim("length", max=32)}}


@cache
def traced(name, implementation="grouped_mm", is_dynamic=False):
    model = mixture(name)
    model.config._experts_implementation = implementation
    if name == "gpt-oss":  # one rank of four has no token
        model.model.layers[0].mlp.router.bias.data[2] = -1e4
    sizes = SIZES if is_dynamic else None
    with torch.no_grad():
        program = export(model, (), {"input_ids": IDS}, strict=False, dynamic_shapes=sizes)
    return model, program


def sharded(num_ranks, *how, **options):
    model, program = traced(*how)
    given = {"experts": "expert", "shard_vocabulary": False} | options
    return model, ShardedProgram(program, num_ranks, **given)


def expected(model, ids=IDS):
    with eager_ladder(model, HEAD["llama"]):
        return model(input_ids=ids).logits


def largest(outputs, wanted):
    return max((output - wanted).abs().max().item() for (output,) in outputs)


def deep(*case):
    return pytest.param(*case, marks=pytest.mark.deep)


@pytest.mark.parametrize(
    ("num_ranks", "how"),
    [
        (2, ("mixtral",)),
        (4, ("mixtral", "batched_mm")),
        (4, ("qwen3",)),
        (2, ("deepseek",)),
        (4, ("gpt-oss",)),
        (4, ("llama4", "grouped_mm", True)),
        *(deep(n, (name, *more)) for name in MIXTURES for n in (2, 4) for more in ((), DYNAMIC)),
        *(deep(2, (name, "batched_mm")) for name in ("gpt-oss", "deepseek")),
    ],
)
def test_ranks_equal_one(num_ranks, how):
    model, program = sharded(num_ranks, *how)
    error = largest(program(input_ids=IDS), expected(model))
    assert error <= 1e-5
    assert (expected(model) - model(input_ids=IDS).logits).abs().max() > 0.1
    norms = how[0] == "olmoe"  # over all heads of q and k, which are summed together
    assert program.plan.num_reductions == 2 + norms, "one a block"
    assert not program.plan.split_experts
    for local in program.local:
        for name, part in local.items():
            if name.endswith(STACKS):
                full = model.get_parameter(name)
                assert part.shape == (full.shape[0] // num_ranks, *full.shape[1:])


def test_gradients_equal_those_of_one():
    """An expert without tokens has none; biases of experts are whole on each rank."""
    model, program = sharded(4, "gpt-oss")
    wanted = expected(model)
    model.zero_grad()
    wanted.sin().sum().backward()
    sum(output.sin().sum() for (output,) in program(input_ids=IDS)).backward()
    full = dict(model.named_parameters())
    for rank, local in enumerate(program.local):
        for name, part in local.items():
            placement = program.plan.placements.get(name, Replicate())
            grad = take_local(full[name].grad, placement, rank, 4)
            torch.testing.assert_close(part.grad, grad, atol=1e-4, rtol=1e-4, msg=name)
    up = "model.layers.0.mlp.experts.gate_up_proj"
    assert [bool(local[up].grad.any()) for local in program.local] == [True, True, False, True]


def test_lengths_that_were_not_traced():
    model, program = sharded(4, "llama4", "grouped_mm", True)
    ids = torch.arange(15).view(3, 5)
    assert largest(program(input_ids=ids), expected(model, ids)) <= 1e-5


# ---- what the models above do not have


class Routed(nn.Module):
    """The best of the experts for each token; `between` and `after` their two products."""

    def __init__(self, num_experts, between=torch.relu, after=None, dtype=torch.float32):
        super().__init__()
        self.between, self.after, self.dtype = between, after, dtype
        self.router = nn.Linear(32, num_experts)
        self.up = nn.Parameter(torch.randn(num_experts, 32, 48) / 6)
        self.down = nn.Parameter(torch.randn(num_experts, 48, 32) / 6)

    def forward(self, x):
        flat = x.reshape(-1, 32)
        expert, order = self.router(flat).argmax(-1).sort()
        counts = torch.histc(expert.float(), self.router.out_features, 0, len(self.up) - 1)
        ends = counts.cumsum(0, dtype=torch.int32)
        inner = self.between(self.multiply(flat[order], self.up, ends))
        out = self.multiply(inner, self.down, ends)
        out = out if self.after is None else self.after(out)
        return out[order.argsort()].view(x.shape)

    def multiply(self, rows, weight, ends):
        if self.dtype == torch.float32:  # torch's own has no float32 when it is traced
            return torch.ops.transformers.grouped_mm_fallback(rows, weight, ends)
        return torch._grouped_mm(rows.to(self.dtype), weight.to(self.dtype), ends).float()


class Blocks(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(nn.functional.layer_norm(x, x.shape[-1:]))
        return x


def run_blocks(num_ranks, *branches):
    """The sharded standard model, and its largest error."""
    torch.manual_seed(0)
    model, x = Blocks(*branches), torch.randn(2, 6, 32)
    with torch.no_grad():
        traced = export(model, (x,), strict=False)
        program = ShardedProgram(traced, num_ranks, staleness=0, experts="expert")
        return program, largest(program(x), model(x))


def test_a_norm_of_what_experts_make():
    """A value that is no longer a sum over ranks is zeroed where it belongs to another rank."""
    program, error = run_blocks(
        2,
        Routed(4, after=lambda out: torch.exp(nn.functional.layer_norm(out, (32,)))),
        Routed(4),
    )
    assert error <= 1e-5
    assert len(program.plan.whole_experts) == 4
    assert program.plan.num_reductions == 2


def test_rows_that_a_product_leaves_undefined():
    """torch's grouped product writes no row behind its last end; nor their gradients."""
    torch.manual_seed(0)
    model = Blocks(*(Routed(4, dtype=torch.bfloat16) for _ in range(2)))
    x = torch.randn(2, 20, 32)
    program = ShardedProgram(export(model, (x,), strict=False), 4, staleness=0, experts="expert")
    assert "_grouped_mm" in program.rewritten.gm.code
    for _ in range(3):
        torch.full((1 << 16,), torch.nan)  # what is undefined is likely to be memory freed last
        outputs = program(x)
        assert largest(outputs, model(x)) <= 1e-5
        sum(output.square().sum() for (output,) in outputs).backward()
        for local in program.local:
            grads = [part.grad for part in local.values() if part.grad is not None]
            assert all(grad.isfinite().all() for grad in grads)


def test_experts_that_do_not_divide_are_split():
    with pytest.warns(LadderWarning, match="6 experts cannot be divided over 4 ranks"):
        program, error = run_blocks(4, Routed(8), Routed(6))
    assert error <= 1e-5
    assert program.plan.whole_experts == {"branches.0.up", "branches.0.down"}
    assert len(program.plan.split_experts) == 1, "the second product follows the first"
    assert program.plan.num_reductions == 2
    assert program.local[0]["branches.1.up"].shape == (6, 32, 12)


def test_experts_whose_rows_are_mixed_are_split():
    with pytest.warns(LadderWarning, match="mixes rows of different experts"):
        program, error = run_blocks(2, Routed(4, between=lambda rows: rows.cumsum(0)), Routed(4))
    assert error <= 1e-5
    assert program.plan.whole_experts == {"branches.1.up", "branches.1.down"}


def test_no_experts_is_an_error():
    with pytest.raises(LadderError, match="No experts can be placed whole on 4 ranks") as caught:
        run_blocks(4, Routed(6), Routed(6))
    assert "6 experts cannot be divided" in str(caught.value)
    dense = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    with pytest.raises(LadderError, match="no branch multiplies by a stack"):
        run_blocks(2, dense, dense)


def test_every_rank_has_one_graph_and_its_own_first_expert():
    _, program = sharded(4, "mixtral")
    (first,) = [i for i in program.plan.index_inputs if i.name == "rank_first_of_4"]
    assert [first.tensor(rank).item() for rank in range(4)] == [0, 1, 2, 3]
    described = "\n".join(program.plan.describe())
    assert "down_proj: 1 of 4 experts, sharded on dim 0 as 4" in described


def test_the_report_counts_what_is_divided_by_experts():
    torch.manual_seed(0)
    traced = export(Blocks(Routed(8), Routed(6)), (torch.randn(2, 6, 32),), strict=False)
    with pytest.warns(LadderWarning, match="Not all experts are placed whole on 4 ranks"):
        report = str(explain_local(traced, 4, LadderConfig(experts="expert")))
    assert "4 parameters to be sharded over 4 ranks, 2 of them by experts" in report
    assert "experts split: branches.1.up: 6 experts cannot be divided over 4 ranks" in report


def test_experts_is_tensor_unless_asked_for():
    _, program = sharded(2, "mixtral", experts="tensor")
    assert not program.plan.whole_experts
    with pytest.raises(LadderError, match="experts='experts' is not one of 'tensor', 'expert'"):
        LadderConfig(experts="experts")
