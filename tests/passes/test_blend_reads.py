"""A graph with blended reads equals every hybrid of its blocks exactly, and blends of them."""

import pytest
import torch
from helpers.language_models import language_model
from torch.utils.checkpoint import checkpoint

import ladderize
from ladderize.frontends.compile import compile_blended
from ladderize.passes.blend_reads import Blends

IDS = torch.randint(0, 64, (4, 8), generator=torch.Generator().manual_seed(0))
SETS = (set(), {1}, {2, 3}, {1, 2, 3})  # none of them the same counted from behind


def _ladder(model, blocks, ids=IDS):
    if not blocks:
        return ladderize.restore(model)(ids).logits
    return ladderize.compile(model, blocks=sorted(blocks), lowering="eager")(ids).logits


@pytest.fixture(scope="module")
def ladders():
    """The logits of the ladder of each set."""
    model = language_model("llama")
    return [_ladder(model, blocks) for blocks in SETS]


@pytest.mark.parametrize("lowering", ["eager", "aot_eager", "inductor"])
def test_weights_choose_the_blocks(lowering, ladders):
    model, blends = language_model("llama"), Blends()
    compile_blended(model, blends, lowering=lowering)
    everything = model(IDS).logits
    assert sorted(blends.values) == [1, 2, 3]  # block 0 has nothing earlier to read
    found = []
    for blocks in SETS:
        blends.choose(blocks)
        found.append(model(IDS).logits)
    tolerance = {"rtol": 0, "atol": 0} if lowering != "inductor" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, ladders, **tolerance)
    torch.testing.assert_close(everything, ladders[-1], **tolerance)
    assert not torch.allclose(ladders[0], ladders[1])


def test_parts_of_a_batch_choose_for_themselves(ladders):
    model, blends = language_model("llama"), Blends()
    wanted = [logits[i] for i, logits in enumerate(ladders)]
    compile_blended(model, blends, lowering="eager")
    model(IDS)
    blends.choose(*SETS)
    torch.testing.assert_close(model(IDS).logits, torch.stack(wanted), rtol=0, atol=1e-6)


class Halfway(torch.nn.Module):
    """Two blocks, `x1 = x + a(x)`, `x2 = x1 + b(…)`; the second one reads between x1 and x."""

    def __init__(self, model, weight):
        super().__init__()
        self.model, self.weight = model, weight

    def forward(self, x):
        first = x + self.model.a(x)
        return first + self.model.b(torch.lerp(first, x, self.weight))


class Two(torch.nn.Module):
    def __init__(self, is_checkpointed=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.is_checkpointed = is_checkpointed

    def forward(self, x):
        run = self._checkpointed if self.is_checkpointed else lambda step, x: step(x)
        return run(lambda x: x + self.b(x), run(lambda x: x + self.a(x), x))

    def _checkpointed(self, step, x):
        return checkpoint(step, x, use_reentrant=False)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_gradients_of_a_blend(is_checkpointed):
    x = torch.randn(3, 8, requires_grad=True)
    model, blends = Two(is_checkpointed), Blends(0.25)
    wanted = Halfway(model, 0.25)(x)
    of = [x, *model.parameters()]
    gradients = torch.autograd.grad(wanted.square().sum(), of)
    compile_blended(model, blends, lowering="aot_eager", expect_blocks=2)
    found = model(x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), of), gradients)
    blends.fill(0.75)
    torch.testing.assert_close(model(x), Halfway(Two(), 0.75)(x))


def test_a_later_graph_reads_as_the_first_does():
    """Another shape has another graph; both use the values of the blends."""
    model, blends = language_model("llama"), Blends()
    compile_blended(model, blends, lowering="eager", dynamic=False)
    model(IDS)
    blends.choose({2})
    found = model(IDS[:2, :5]).logits
    torch.testing.assert_close(found, _ladder(model, {2}, IDS[:2, :5]), rtol=0, atol=0)


def test_half_precision():
    model, blends = language_model("llama").bfloat16(), Blends()
    wanted = _ladder(model, {1, 3})
    compile_blended(model, blends, lowering="eager")
    model(IDS)
    blends.choose({1, 3})
    torch.testing.assert_close(model(IDS).logits, wanted, rtol=0, atol=0)
