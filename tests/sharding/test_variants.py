"""`variant=`: the parallel form and the desync residual against eager models, also on two ranks."""

import pytest
import torch
from helpers.lockstep import ShardedProgram
from helpers.residual_forms import (
    LAYERS,
    RANKS,
    WIDTH,
    FormsNet,
    PlainBranch,
    PostNormLayer,
    TogetherLayer,
)
from torch import nn

import ladderize
from ladderize import LadderConfig, LadderError, LadderWarning
from ladderize.config.ladder_entry import ContradictionError, LadderEntry
from ladderize.frontends.sharded.program_files import write_shards
from ladderize.frontends.verdicts import settings_of
from ladderize.graph.collectives import own_launches
from ladderize.sharding.placement import Replicate, take_local


def _input():
    torch.manual_seed(1)
    return torch.randn(2, 5, WIDTH, dtype=torch.float64)


def _exported(net):
    return torch.export.export(net, (_input(),))


def _assert_equal(found, wanted, standard):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert (wanted - standard).abs().max() > 1e-2  # else nothing was compared


def _assert_ranks_equal(net, wanted, reductions, **options):
    """Outputs and gradients of all ranks, and how often they reduce."""
    sharded, x = ShardedProgram(_exported(net), RANKS, **options), _input()
    outputs = [output for (output,) in sharded(x)]
    nodes = sharded.rewritten.gm.graph.nodes
    assert sum(own_launches(n) == ("all_reduce",) for n in nodes) == reductions
    weights = torch.cos(torch.arange(x.numel())).view_as(x).double()
    parameters = dict(net.named_parameters())
    used = torch.autograd.grad(
        wanted, list(parameters.values()), weights, allow_unused=True, materialize_grads=True
    )
    whole = dict(zip(parameters, used, strict=True))
    leaves = [(r, name) for r, own in enumerate(sharded.local) for name in own]
    found = torch.autograd.grad(
        outputs,
        [sharded.local[r][name] for r, name in leaves],
        [weights] * RANKS,
        allow_unused=True,
        materialize_grads=True,
    )
    for output in outputs:
        _assert_equal(output, wanted, net(x))
    for (rank, name), gradient in zip(leaves, found, strict=True):
        place = sharded.plan.placements.get(name, Replicate())
        own = take_local(whole[name], place, rank, RANKS)
        torch.testing.assert_close(gradient, own, rtol=0, atol=1e-9, msg=name)


# ---- parallel ----------------------------------------------------------------------------------


@pytest.mark.parametrize("branches", [2, 3])
def test_a_layer_reads_one_value(branches):
    net, x = FormsNet(branches=branches), _input()
    exported = _exported(net)
    rewritten = ladderize.rewrite(exported, variant="parallel")
    _assert_equal(rewritten.module()(x), net.parallel(x), net(x))
    assert ladderize.verify(exported, rewritten, variant="parallel", variants=1).ok
    assert not ladderize.verify(exported, rewritten, variants=1).ok


def test_a_part_of_the_layers():
    net, x = FormsNet(), _input()
    rewritten = ladderize.rewrite(_exported(net), variant="parallel", layers=[0, 2])
    _assert_equal(rewritten.module()(x), net.parallel(x, {0, 2}), net(x))


@pytest.mark.parametrize("branches", [2, 3])
def test_one_reduction_a_layer(branches):
    net = FormsNet(branches=branches)
    wanted = net.parallel(_input())
    _assert_ranks_equal(net, wanted, LAYERS, variant="parallel", expect_blocks=LAYERS * branches)


def test_shards_that_sum_up_a_layer_are_verified(tmp_path):
    exported, config = _exported(FormsNet()), LadderConfig(variant="parallel")
    write_shards(exported, tmp_path / "shards", RANKS, config)
    options = {"variant": "parallel", "variants": 1}
    found = ladderize.verify(exported, tmp_path / "shards", **options)
    assert found.ok, str(found)
    assert not ladderize.verify(exported, tmp_path / "shards", variant="ladder", variants=1).ok


def test_layers_that_stay_standard_are_reduced_twice():
    net = FormsNet()
    wanted = net.parallel(_input(), {1})
    _assert_ranks_equal(net, wanted, 2 * LAYERS - 1, variant="parallel", layers=[1])


def test_blocks_in_no_list_make_layers_of_two():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = PlainBranch(), PlainBranch(), PlainBranch()

        def forward(self, x):
            x = x + self.a(x)
            x = x + self.b(x)
            return x + self.c(x)

    report = ladderize.explain(Flat().double(), _input(), options={"variant": "parallel"})
    assert [block.reads_after for block in report.blocks] == [("x0",), ("x0",), ("x2",)]


def test_layers_of_one_branch_stay_as_they_are():
    net, x = FormsNet(TogetherLayer), _input()
    with pytest.warns(LadderWarning, match="have one branch each and stay unchanged"):
        rewritten = ladderize.rewrite(_exported(net), variant="parallel")
    torch.testing.assert_close(rewritten.module()(x), net(x))


def test_post_norm_layers_have_no_parallel_form():
    with pytest.raises(LadderError, match="No two branches of a layer are summands of one sum"):
        ladderize.rewrite(_exported(FormsNet(PostNormLayer)), variant="parallel")


# ---- desync ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("period", "reductions"), [(2, 3), (4, 2), (5, 2), (9, 1)])
def test_every_nth_block_is_reduced(period, reductions):
    net = FormsNet()
    wanted = net.desync(_input(), period)
    _assert_ranks_equal(net, wanted, reductions, variant=f"desync:{period}")


class NormedHeads(PlainBranch):
    """A norm over all heads of one projection, which weighs the entries of another's heads."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x):
        return self.down(
            (self.weights(x) * self.up(self.norm(x)).unflatten(-1, (4, -1))).flatten(-2)
        )

    def weights(self, x):
        h = self.gate(self.norm(x))
        normed = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return torch.softmax(normed.unflatten(-1, (4, -1)), -1)

    def part(self, x, rank, ranks):
        up, bias = (p.chunk(ranks)[rank] for p in (self.up.weight, self.up.bias))
        values = nn.functional.linear(self.norm(x), up, bias).unflatten(-1, (4 // ranks, -1))
        mixed = (self.weights(x).chunk(ranks, -2)[rank] * values).flatten(-2)
        return nn.functional.linear(mixed, self.down.weight.chunk(ranks, 1)[rank])


def test_a_norm_over_all_heads_is_of_each_rank():
    net = FormsNet()
    for layer in net.layers:
        layer.branches[0] = NormedHeads().double()
    _assert_ranks_equal(net, net.desync(_input(), 2), LAYERS, variant="desync:2")
    standard = ShardedProgram(_exported(net), RANKS)
    assert standard.plan.num_reductions == 3 * LAYERS  # with a stream for all, in two parts


def test_branches_that_are_added_at_once_are_one_block():
    net = FormsNet(TogetherLayer)
    _assert_ranks_equal(net, net.desync(_input(), 2), 2, variant="desync:2")


def test_norms_between_blocks_are_of_each_rank():
    net = FormsNet(PostNormLayer)
    _assert_ranks_equal(net, net.desync(_input(), 2, normed=True), LAYERS, variant="desync:2")


def test_a_branch_that_is_not_divided_is_refused():
    class Odd(PlainBranch):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH)

    net = FormsNet()
    net.layers[1].branches[0] = Odd().double()
    with pytest.raises(LadderError) as caught:
        ShardedProgram(_exported(net), RANKS, variant="desync:2")
    assert "block 2 is not divided over the ranks" in str(caught.value)


def test_a_sum_inside_of_a_branch_is_refused():
    class Normed(PlainBranch):
        def forward(self, x):
            return self.norm(super().forward(x))

    net = FormsNet()
    net.layers[0].branches[1] = Normed().double()
    with pytest.raises(LadderError, match="block 1 is summed up inside of its branch"):
        ShardedProgram(_exported(net), RANKS, variant="desync:2")


def test_a_stream_that_is_returned_is_refused():
    class Returns(FormsNet):
        def forward(self, x):
            x = self.table(x)
            first = x + self.layers[0].branches[0](x)
            x = first + self.layers[0].branches[1](first)
            return x, first

    with pytest.raises(LadderError, match="is returned, and differs between ranks"):
        ShardedProgram(_exported(Returns()), RANKS, variant="desync:2")


def test_one_device_has_one_stream():
    with pytest.raises(LadderError, match="needs several ranks, each with its own stream"):
        ladderize.rewrite(_exported(FormsNet()), variant="desync:2")
    with pytest.raises(LadderError, match="A desync residual cannot be verified"):
        ladderize.verify(_exported(FormsNet()), _exported(FormsNet()), variant="desync:2")


# ---- what is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"variant": "desync"}, "neither 'ladder' nor 'parallel' nor 'desync:n'"),
        ({"variant": "desync:1"}, "n of at least 2"),
        ({"variant": "paralel"}, "did you mean 'parallel'"),
        ({"variant": "parallel", "staleness": 2}, "staleness=2 goes with variant='ladder'"),
        (
            {"variant": "parallel", "connectivity": "farskip"},
            "connectivity='farskip' goes with variant='ladder'",
        ),
        ({"variant": "desync:2", "blocks": [1]}, "do not go with variant='desync:2'"),
    ],
)
def test_options_that_contradict_each_other(options, what):
    with pytest.raises(LadderError) as caught:
        LadderConfig(**options)
    assert what in str(caught.value)


def test_a_checkpoint_may_be_parallel_and_no_desync():
    said = {"layers": "all", "variant": "parallel"}
    entry = LadderEntry.read({"ladder": said})
    assert entry.as_data() == {**said, "staleness": 1, "version": 1}
    config = LadderConfig.from_options({}, checkpoint=entry)
    assert config.variant == "parallel" and "variant = parallel" in settings_of(config)
    for other in ("ladder", "desync:2"):
        with pytest.raises(ContradictionError):
            entry.fill({"variant": other})
    with pytest.raises(LadderError, match="no checkpoint can be one"):
        LadderEntry.read({"ladder": {"variant": "desync:2"}})
