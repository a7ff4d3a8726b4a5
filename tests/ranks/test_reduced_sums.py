"""Models that are sharded already, by where they add the residual and by what they communicate."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

import ladderize
from ladderize import LadderError, LadderWarning

BLOCKS, WIDTH, RANKS = 4, 8, 2


def reduced(value, how="sum"):
    return funcol.all_reduce(value, how, dist.group.WORLD)


def in_place(x, h):
    total = h + x / RANKS
    dist.all_reduce(total)
    return total


def exchanged(x, h):
    return x + funcol.all_to_all_single(h, None, None, dist.group.WORLD)


# What the sum of stream and branch is written as. All are the same net.
SUMS = {
    "behind": lambda x, h: x + reduced(h),
    "divided": lambda x, h: reduced(h + x / RANKS),
    "scaled": lambda x, h: reduced(x * 0.5 + h),
    "alpha": lambda x, h: reduced(torch.add(h, x, alpha=0.5)),
    "average": lambda x, h: reduced(RANKS * h + x, "avg"),
    "two branches": lambda x, h: reduced(0.25 * h + (0.75 * h + x / RANKS)),
    "in place": in_place,
}


class Net(nn.Module):
    """A table and blocks of two linears, sharded over ranks; `sums` by block."""

    def __init__(self, *sums, rank=0, ranks=RANKS):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(16, WIDTH)
        weights = torch.randn(BLOCKS, 2, WIDTH, WIDTH) / WIDTH**0.5
        self.up = nn.Parameter(weights[:, 0].chunk(ranks, 1)[rank].clone())
        self.down = nn.Parameter(weights[:, 1].chunk(ranks, 2)[rank].clone())
        self.sums = sums

    def branch(self, i, x):
        return torch.tanh(x) @ self.up[i].T @ self.down[i].T

    def forward(self, ids):
        x = self.table(ids)
        for i in range(BLOCKS):
            x = self.sums[i % len(self.sums)](x, self.branch(i, x))
        return x


def ids():
    return torch.arange(12).reshape(2, 6)


def ladder(net):
    """Block 0 reads x0, and block i reads x[i - 1]."""
    before = now = net.table(ids())
    for i in range(BLOCKS):
        before, now = now, now + net.branch(i, before)
    return now


def compiled(net, **options):
    options = {"lowering": "eager", **options}
    return torch.compile(net, backend="ladderize", fullgraph=True, options=options)


def laddered(spelling):
    net = Net(SUMS[spelling], rank=dist.get_rank())
    with torch.no_grad():
        found = compiled(net)(ids())
    hides = [block.hides for block in ladderize.last_report().blocks]
    return (found - ladder(Net(ranks=1))).abs().max().item(), hides


@pytest.mark.parametrize("spelling", SUMS)
def test_every_spelling_is_the_same_ladder(two_ranks, spelling):
    for error, hides in two_ranks.run(laddered, spelling):
        assert error <= 1e-5
        assert hides == [(), *[("all_reduce",)] * (BLOCKS - 1)]


def refusal(*sums, **options):
    with pytest.raises(LadderError) as caught, torch.no_grad():
        compiled(Net(*sums), **options)(ids())
    return str(caught.value)


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize(
    "add", [lambda x, h: reduced(h + x), lambda x, h: reduced(h + x / 3)], ids=["once", "a third"]
)
def test_a_residual_that_the_ranks_do_not_share_is_refused(add):
    """As on rank 0 of a model that adds the residual there alone."""
    text = refusal(add)
    assert "sum the residual as well as the branch" in text
    assert "added before the all-reduce (" in text
    assert "x + all_reduce(h)" in text


def whole(x, h):
    return x + h


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize("period", [2, BLOCKS])
def test_a_stream_that_is_itself_reduced_is_left_as_it_is(period):
    """The desync residual of arXiv 2501.06589: every `period`th sum is reduced, as a whole."""
    net = Net(*[whole] * (period - 1), lambda x, h: reduced(h + x / RANKS))
    with torch.no_grad(), pytest.warns(LadderWarning, match="reduces the stream itself") as caught:
        compiled(net)(ids())
    (said,) = (str(w.message) for w in caught if w.category is LadderWarning)
    assert said.count("all_reduce changes the stream itself") == BLOCKS // period
    report = ladderize.last_report()
    assert not any(block.is_rewired for block in report.blocks)
    assert f"{BLOCKS // period} all_reduce" in str(report)


@pytest.mark.usefixtures("first_of_two")
def test_named_blocks_of_a_stream_that_is_itself_reduced_are_refused():
    text = refusal(whole, lambda x, h: reduced(h + x / RANKS), blocks=[1])
    assert "would hide no collective" in text
    assert "block 1: no collective is in block 0" in text
    assert "all_reduce changes the stream itself" in text


@pytest.mark.usefixtures("first_of_two")
def test_tokens_that_travel_are_hidden():
    """What a block sends is first needed two blocks later, except for the last block."""
    net = Net(*[exchanged] * BLOCKS)
    with torch.no_grad():
        compiled(net)(ids())
    report = str(ladderize.last_report())
    assert f"{BLOCKS - 1} stale reads hide 1 all_to_all_single each" in report


@pytest.mark.usefixtures("first_of_two")
def test_blocks_that_hide_nothing_read_fresh():
    """Block 2 does not communicate, so block 3 has nothing to hide."""
    behind = SUMS["behind"]
    net = Net(behind, behind, whole, whole)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled(net)(ids())
    (text,) = (str(w.message) for w in caught if w.category is LadderWarning)
    assert "These blocks stay standard because their stale reads would hide no collective" in text
    assert "block 3: no collective is in block 2" in text
    report = ladderize.last_report()
    assert [block.is_rewired for block in report.blocks] == [False, True, True, False]
    assert "2 stale reads hide 1 all_reduce each" in str(report)


@pytest.mark.usefixtures("first_of_two")
def test_blocks_that_are_named_and_hide_nothing():
    behind = SUMS["behind"]
    sums = (behind, behind, whole, whole)
    assert "block 3: no collective" in refusal(*sums, blocks=[2, 3])
    torch._dynamo.reset()
    with (
        torch.no_grad(),
        pytest.warns(LadderWarning, match="These stale reads hide"),
    ):
        compiled(Net(*sums), blocks=[2, 3], strict=False)(ids())
    report = ladderize.last_report()
    assert [block.is_rewired for block in report.blocks] == [False, False, True, True]
    assert "hides nothing: the stale read of block 3" in str(report)


@pytest.mark.usefixtures("first_of_two")
def test_two_blocks_stale_hide_what_both_leave_out():
    behind = SUMS["behind"]
    with torch.no_grad():
        compiled(Net(behind, whole), staleness=2)(ids())
    hides = [block.hides for block in ladderize.last_report().blocks]
    assert hides == [(), *[("all_reduce",)] * (BLOCKS - 1)]
