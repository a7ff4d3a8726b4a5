"""Models that are partly ladders, and the effect of `layers=`, `blocks=` and `staleness=`."""

import warnings
from functools import cache

import pytest
import torch
from helpers.fake_group import fake_group
from helpers.few_examples import examples
from helpers.graphs import Mlp, Residual
from helpers.lockstep import ShardedProgram
from helpers.reads import BODY
from helpers.sharded import MODELS
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import export
from torch.fx import symbolic_trace

import ladderize
from ladderize import LadderError, LadderWarning, rewrite
from ladderize.testing import eager_ladder

BLOCKS = 5
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


@cache
def net():
    torch.manual_seed(0)
    return Residual(BLOCKS)


class ByHand(nn.Module):
    """A ladder of `net()`, written out; unlike `Residual.ladder` it copies no state."""

    def __init__(self, stale, staleness=1):
        super().__init__()
        self.net, self.stale, self.staleness = net(), stale, staleness

    def forward(self, x):
        states = [self.net.embed(x)]
        for i, layer in enumerate(self.net.layers):
            read = max(i - self.staleness, 0) if i in self.stale else i
            states.append(states[i] + layer(states[read]))
        return self.net.head(states[-1])


def extended(model, **options):
    """`model` traced and rewritten; a warning, that it is a ladder already, would be an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", LadderWarning)
        return rewrite(symbolic_trace(model), (X,), **options)


def is_ladder(gm, chosen, staleness=1):
    return torch.equal(gm(X), net().ladder(X, set(chosen), staleness))


subsets = st.sets(st.integers(0, BLOCKS - 1), min_size=1)


@given(subsets, subsets, st.integers(1, 3))
@examples(3)
def test_blocks_beyond_those_that_are_stale(stale, more, staleness):
    options = {"layers": sorted(stale | more), "staleness": staleness}
    assert is_ladder(extended(ByHand(stale, staleness), **options), stale | more, staleness)
    once = extended(net(), layers=sorted(stale), staleness=staleness)
    twice = rewrite(once, (X,), **options)
    assert is_ladder(twice, stale | more, staleness)
    everything = rewrite(twice, (X,), layers="all", staleness=staleness)
    assert everything.code == extended(net(), staleness=staleness).code


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layers": "last:1"}, {3: "is not chosen"}),
        ({"layers": [0, 1]}, {3: "is not chosen", 4: "is not chosen"}),
        ({"blocks": [3]}, {4: "is not chosen"}),
        ({"staleness": 0}, {3: "is not chosen", 4: "is not chosen"}),
        ({"staleness": 2}, {3: "should read 2 blocks earlier", 4: "should read 2 blocks earlier"}),
        ({"layers": [0], "staleness": 2}, {3: "is not chosen", 4: "is not chosen"}),
    ],
)
def test_what_takes_or_changes_stale_reads_is_an_error(options, named):
    with pytest.raises(LadderError, match="already read stale, but not as") as caught:
        extended(ByHand({3, 4}), **options)
    expected = [f"block {i} already reads 1 block earlier and {why}" for i, why in named.items()]
    assert [blocker.what for blocker in caught.value.blockers] == expected


@pytest.mark.parametrize("stale", [{3, 4}, {2}], ids=["a run", "one"])
def test_without_options_it_is_left_as_it_is(stale):
    model = ByHand(stale)
    with pytest.warns(LadderWarning, match=rf"with {len(stale)} stale blocks?\. Its reads"):
        gm = rewrite(symbolic_trace(model), (X,))
    assert gm.code == symbolic_trace(model).code


def test_every_second_block_might_be_half_of_a_parallel_one():
    """Nothing in the graph of this ladder says that these are not two parallel blocks."""

    class Pairs(ByHand):
        def forward(self, x):
            x = self.net.embed(x)
            for first, second in zip(self.net.layers[:4:2], self.net.layers[1:4:2], strict=True):
                x = x + first(x) + second(x)
            return self.net.head(x)

    with pytest.raises(LadderError, match="either parallel or already stale in part") as caught:
        extended(Pairs({1, 3}), layers="all")
    assert [blocker.what for blocker in caught.value.blockers] == [
        "block 0 adds several branches at once, of layers [0, 1]",
        "block 1 adds several branches at once, of layers [2, 3]",
    ]
    extended(Pairs({1, 3}), blocks="all", expect_blocks=2)


def test_half_of_what_a_block_adds_is_a_block_elsewhere():
    """The branches of layers are blocks by themselves, that of `embed` is not."""

    class Other(ByHand):
        def forward(self, x):
            x, (first, second, *_) = self.net.embed(x), self.net.layers
            x = x + first(x)
            return self.net.head(x + second(x) + self.net.embed(torch.relu(x)))

    with pytest.raises(LadderError, match="either parallel or already stale in part") as caught:
        extended(Other({}), blocks="all")
    assert "block 1 adds several branches at once, one of which" in str(caught.value)
    extended(Other({}), blocks="all", expect_blocks=2)


class Laid(nn.Module):
    """Every second block works on `[batch * length, width]`, as in OPT."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Mlp() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        for i, layer in enumerate(self.layers):
            x = x.reshape(-1, 8) if i % 2 else x.view(shape)
            x = x + layer(x)
        return x.view(shape)


@pytest.mark.parametrize("stale", [[2, 3], [1, 2, 4]])
def test_stale_values_that_were_laid_out_anew(stale):
    x = torch.randn(2, 3, 8)
    once = rewrite(symbolic_trace(Laid()), (x,), blocks=stale)
    twice = rewrite(once, (x,), blocks="all")
    assert torch.equal(twice(x), rewrite(symbolic_trace(Laid()), (x,))(x))


class Launching(ByHand):
    """Tensor-parallel, as the paper's code: a stale branch comes before the sum of the last one."""

    def forward(self, x):
        x, pending = self.net.embed(x), None
        for i, layer in enumerate(self.net.layers):
            stale = layer(x)
            if pending is not None:
                x = x + torch.ops._c10d_functional.wait_tensor(pending)
            branch = stale if i in self.stale else layer(x)
            pending = torch.ops._c10d_functional.all_reduce(branch, "sum", "0")
        return self.net.head(x + torch.ops._c10d_functional.wait_tensor(pending))


def test_a_tensor_parallel_net_keeps_its_collectives():
    with fake_group(), torch.no_grad():
        gm = extended(Launching({2, 3}), layers="all")
        assert torch.equal(gm(X), ByHand(range(BLOCKS))(X))
    report = ladderize.last_report()
    assert [block.was_stale for block in report.blocks] == [False, False, True, True, False]
    assert [block.hides for block in report.blocks] == [(), *[("all_reduce",)] * 4]
    assert "already read stale and are left unchanged: block 2, block 3" in str(report)


class Shared(ByHand):
    """Block 1 reads what block 0 has normed."""

    def forward(self, x):
        first, second, third, *_ = self.net.layers
        x = self.net.embed(x)
        read = first.norm(x)
        between = x + first.down(torch.relu(first.up(read)))
        x = between + second.down(torch.relu(second.up(read)))
        return self.net.head(x + third(between))


class Gated(ByHand):
    """What comes to each sum is gated by a buffer, written behind the branch that reads stale."""

    def __init__(self):
        super().__init__({1, 2})
        self.register_buffer("gate", torch.zeros(3, 8))

    def forward(self, given):
        first, *others = self.net.layers[:3]
        x = self.net.embed(given)
        pending = first(x)
        for layer in others:
            stale = layer(x)
            self.gate.index_copy_(0, torch.tensor([0]), given[:1])
            x, pending = x + pending * self.gate, stale
        return self.net.head(x + pending)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Shared(()), "its fresh read is unknown"),
        (Gated(), "must stay after index_copy_"),
    ],
)
def test_what_cannot_be_restored_is_refused(model, reason):
    with pytest.raises(LadderError, match="cannot be reconstructed") as caught:
        extended(model, layers="all")
    assert reason in caught.value.blockers[0].what


# ---- programs


IDS = torch.arange(12).reshape(2, 6)


@cache
def program(stale=()):
    """A Llama of 6 blocks, of which those are `stale` when it is traced."""
    model = MODELS["llama"](layers=3)
    with eager_ladder(model, BODY["llama"], chosen=stale):
        return export(model, (IDS,))


@pytest.mark.parametrize(
    "make",
    [lambda: program((2, 3)), lambda: rewrite(program(), layers=[1])],
    ids=["traced", "rewritten"],
)
def test_a_llama_of_which_one_layer_is_a_ladder(make):
    ladder, whole = make(), rewrite(program())
    with warnings.catch_warnings():
        warnings.simplefilter("error", LadderWarning)
        found = rewrite(ladder, layers="all")
    assert torch.equal(found.module()(IDS)[0], whole.module()(IDS)[0])
    assert [block.was_stale for block in ladderize.last_report().blocks] == [*FFTTFF]
    with pytest.raises(LadderError, match="already read stale, but not as the options ask"):
        rewrite(ladder, layers="last:1")


FFTTFF = (False, False, True, True, False, False)


def test_over_ranks_as_the_standard_net():
    extended, whole = (
        ShardedProgram(given, 2, layers="all") for given in (program((2, 3)), program())
    )
    assert extended.plan.placements == whole.plan.placements
    for found, expected in zip(extended(IDS), whole(IDS), strict=True):
        assert torch.equal(found[0], expected[0])


def test_verify_holds_it_to_the_whole_ladder():
    ladder = program((2, 3))
    checked = ladderize.verify(ladder, rewrite(program()), layers="all", variants=1)
    assert checked.ok, str(checked)
    assert "6 blocks, 5 to read stale" in checked.title
    wrong = ladderize.verify(ladder, ladder, layers="all", variants=1)
    assert "recurrence" in [check.name for check in wrong.failed], str(wrong)
    with pytest.raises(LadderError, match="already read stale, but not as the options ask"):
        ladderize.verify(ladder, ladder, layers=[0])
