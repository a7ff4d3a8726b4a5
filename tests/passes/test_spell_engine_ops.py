"""Ops of serving engines, as stand-ins with their schemas: the ladder equals that of torch ops."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.emitted_orders import collectives
from torch import Tensor, nn
from torch.fx import symbolic_trace

import ladderize
from ladderize import LadderError
from ladderize.graph.engine_ops import BlockingReduce, understand
from ladderize.passes.spell_engine_ops import SpellEngineOps, refuse_unspelled
from ladderize.testing.emitted_code import record_emitted_code

WIDTH, LAYERS = 8, 3
Norm = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Reduce = Callable[[Tensor], Tensor]

_libraries = []  # an op is gone with the last reference to its library


def define(schema: str, function: Any) -> None:
    """Define the op `namespace::name`; its fake is the function itself, unless it returns None."""
    namespace, _, rest = schema.partition("::")
    name = rest.partition("(")[0]
    library = torch.library.Library(namespace, "FRAGMENT")
    library.define(rest)
    library.impl(name, function, "CompositeExplicitAutograd")
    library._register_fake(name, (lambda *_: None) if rest.endswith("-> ()") else function)
    _libraries.append(library)


def norm_of_sum(x: Tensor, skip: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + skip
    return F.rms_norm(total, total.shape[-1:], weight, eps), total


def norm_in_place(x: Tensor, skip: Tensor, weight: Tensor, eps: float) -> None:
    normed, total = norm_of_sum(x, skip, weight, eps)
    x.copy_(normed)
    skip.copy_(total)


def norm_and_scale(
    out: Tensor, x: Tensor, skip: Tensor, weight: Tensor, scale: Tensor, eps: float
) -> None:
    normed, total = norm_of_sum(x, skip, weight, eps)
    out.copy_(normed * scale)
    skip.copy_(total)


def product(out: Tensor, x: Tensor, weight: Tensor) -> None:
    out.copy_(x @ weight)


NORM = "fused_add_rms_norm"
define(f"engine_ir::{NORM}(Tensor x, Tensor s, Tensor w, float e) -> (Tensor, Tensor)", norm_of_sum)
define(
    f"engine_ir::{NORM}.maybe_inplace(Tensor(a!) x, Tensor(b!) s, Tensor w, float e)"
    " -> (Tensor, Tensor)",
    norm_of_sum,
)
define(f"engine_c::{NORM}(Tensor(a!) x, Tensor(b!) s, Tensor w, float e) -> ()", norm_in_place)
define("engine::normed(Tensor x, Tensor s, Tensor w, float e) -> (Tensor, Tensor)", norm_of_sum)
define(
    "engine_c::normed_fp8(Tensor(a!) out, Tensor x, Tensor(b!) s, Tensor w, Tensor c, float e)"
    " -> ()",
    norm_and_scale,
)
define("engine::scan(Tensor x, Tensor gates) -> Tensor", lambda x, gates: x * gates.sigmoid())
define("engine_c::product(Tensor(a!) out, Tensor x, Tensor w) -> ()", product)
define("engine::all_reduce(Tensor x, str group) -> Tensor", lambda x, _: x.clone())
define("engine_c::all_reduce_(int handle, Tensor(a!) x) -> ()", lambda *_: None)

known = {"tp:0": "0"}  # this engine's names of groups


@pytest.fixture(autouse=True)
def groups_of_the_engine(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("first_of_two")
    group = dist.group.WORLD.group_name
    known["tp:0"] = known[""] = group
    understand(BlockingReduce("engine::all_reduce", 0, 1, known.get, "here"))
    understand(BlockingReduce("engine_c::all_reduce_", 1, None, known.get, "here"))


def in_torch(x: Tensor, skip: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return norm_of_sum(x, skip, weight, 1e-5)


def returned(x: Tensor, skip: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.engine_ir.fused_add_rms_norm(x, skip, weight, 1e-5)


def perhaps_in_place(x: Tensor, skip: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.engine_ir.fused_add_rms_norm.maybe_inplace(x, skip, weight, 1e-5)


def in_place(x: Tensor, skip: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    torch.ops.engine_c.fused_add_rms_norm.default(x, skip, weight, 1e-5)
    return x, skip


def on_one(x: Tensor) -> Tensor:
    return x


def reduced(x: Tensor) -> Tensor:
    return torch.ops.engine.all_reduce(x, "tp:0")


def reduced_in_place(x: Tensor) -> Tensor:
    torch.ops.engine_c.all_reduce_(0, x)
    return x


class Layer(nn.Module):
    def __init__(self, norm: Norm, reduce: Reduce) -> None:
        super().__init__()
        self.norm, self.reduce = norm, reduce
        self.weight = nn.Parameter(1 + torch.rand(WIDTH))
        self.up = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, branch: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        normed, skip = self.norm(branch, skip, self.weight)
        out = torch.empty_like(skip)
        torch.ops.engine_c.product(out, self.up(normed).relu(), self.down)
        return self.reduce(out).float(), skip  # the same memory, under another name


class Net(nn.Module):
    """As an engine writes it: each layer gets the previous branch and adds it."""

    def __init__(self, norm: Norm, reduce: Reduce = on_one) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(norm, reduce) for _ in range(LAYERS))
        self.embed = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        skip, branch = self.embed(x), self.embed(x) * 0.5
        for layer in self.layers:
            branch, skip = layer(branch, skip)
        return skip + branch

    def ladder(self, x: Tensor) -> Tensor:
        stream = stale = self.embed(x) + self.embed(x) * 0.5
        for layer in self.layers:
            normed = F.rms_norm(stale, (WIDTH,), layer.weight, 1e-5)
            stale, stream = stream, stream + layer.up(normed).relu() @ layer.down
        return stream


@torch.no_grad()
def compiled(net: Net, x: Tensor, **options: Any) -> Tensor:
    torch._dynamo.reset()
    options = {"lowering": "eager"} | options
    result: Tensor = torch.compile(net, backend="ladderize", fullgraph=True, options=options)(x)
    return result


@pytest.mark.parametrize("norm", [in_torch, returned, perhaps_in_place, in_place])
def test_a_norm_of_the_sum(norm: Norm) -> None:
    x = torch.randn(4, WIDTH)
    with torch.no_grad():
        expected = Net(in_torch).ladder(x)
        assert not torch.allclose(Net(in_torch)(x), expected, atol=1e-3)
    torch.testing.assert_close(compiled(Net(norm), x), expected)


@pytest.mark.parametrize("reduce", [reduced, reduced_in_place])
@pytest.mark.parametrize("norm", [in_torch, in_place])
def test_an_all_reduce_that_waits_becomes_a_launch_and_a_late_wait(
    norm: Norm, reduce: Reduce
) -> None:
    """On one of two ranks a sum is unchanged; each wait except the last follows the next launch."""
    x = torch.randn(4, WIDTH)
    with torch.no_grad():
        expected = Net(in_torch).ladder(x)
    with record_emitted_code() as sources:
        found = compiled(Net(norm, reduce), x, lowering="inductor")
    torch.testing.assert_close(found, expected)
    assert [collectives(source) for source in sources] == ["AR_0 AR_1 W_0 AR_2 W_1 W_2"]
    report = ladderize.last_report()
    assert [found.block for found in report.collectives] == ["h0", "h1", "h2"]


def test_a_group_that_its_engine_does_not_have() -> None:
    known["tp:0"] = None  # type: ignore[assignment]
    with pytest.raises(LadderError, match="cannot be written in torch's words") as caught:
        compiled(Net(in_torch, reduced), torch.randn(4, WIDTH))
    blockers = caught.value.blockers
    assert len(blockers) == LAYERS
    assert "engine::all_reduce: c10d has no group 'tp:0'" in blockers[0].what
    assert "test_spell_engine_ops.py" in blockers[0].where


def unknown(x: Tensor, skip: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.engine.normed(x, skip, weight, 1e-5)


def unknown_in_place(x: Tensor, skip: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x)
    torch.ops.engine_c.normed_fp8(out, x, skip, weight, torch.ones(1), 1e-5)
    return out, skip


@pytest.mark.parametrize("norm", [unknown, unknown_in_place])
@pytest.mark.parametrize("layers", [range(LAYERS), [1], [LAYERS - 1]])
def test_an_unknown_op_that_may_hide_a_sum_is_named(norm: Norm, layers: Sequence[int]) -> None:
    """However few of the sums it hides, the blocks around it would stay standard."""
    net = Net(in_torch)
    for i in layers:
        net.layers[i].norm = norm
    with pytest.raises(LadderError, match="what they mean is not known") as caught:
        compiled(net, torch.randn(4, WIDTH))
    first = caught.value.blockers[0]
    assert "engine" in first.what and "::normed" in first.what
    assert "test_spell_engine_ops.py" in first.where


def test_an_unknown_op_inside_a_branch_is_the_branchs_own() -> None:
    """A state-space scan: it takes a value of the branch, and gates that were made of it."""

    class Scanning(Layer):
        def forward(self, branch: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
            normed, skip = self.norm(branch, skip, self.weight)
            inner = self.up(normed)
            return torch.ops.engine.scan(inner, inner @ self.down), skip

    net = Net(in_torch)
    net.layers = nn.ModuleList(Scanning(in_torch, on_one) for _ in range(LAYERS))
    compiled(net, torch.randn(4, WIDTH))
    assert "3 blocks in 1 stream, 2 read stale" in str(ladderize.last_report())


def test_what_is_known_of_an_op_that_is_used_otherwise() -> None:
    def whole(x: Tensor, skip: Tensor, weight: Tensor) -> Any:
        return torch.ops.engine_ir.fused_add_rms_norm(x, skip, weight, 1e-5)

    gm = symbolic_trace(whole)
    assert SpellEngineOps()(gm).changed == 0
    with pytest.raises(LadderError, match="its two results are used as one"):
        refuse_unspelled(gm)
