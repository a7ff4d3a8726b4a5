"""FarSkip's connectivity: values and gradients against eager models, and the report."""

import pytest
import torch
from helpers.expert_nets import (
    MODELS,
    Dense,
    Experts,
    InstellaNet,
    Mixture,
    expert_model,
    farskip_logits,
)
from helpers.fake_group import fake_group
from helpers.graphs import capture
from helpers.lockstep import ShardedProgram
from torch import nn
from torch.distributed import _functional_collectives as funcol
from torch.utils.checkpoint import checkpoint

import ladderize
from ladderize import LadderConfig, LadderError, LadderWarning
from ladderize.config.ladder_entry import ContradictionError, LadderEntry
from ladderize.frontends.verdicts import settings_of
from ladderize.passes.before_autograd import rewrite_graph
from ladderize.passes.rewriting_state import Rewriting
from ladderize.streams.recurrence import check_recurrence, read_recurrence
from ladderize.streams.specification import specify_ladder
from ladderize.testing import ReferenceBlock, ReferenceNet, assert_ladder_equal


def _compiled(model, **options):
    options = {"connectivity": "farskip", "lowering": "eager", **options}
    return torch.compile(model, backend="ladderize", fullgraph=True, options=options)


def _assert_equal(found, wanted, standard):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert (found - standard).abs().max() > 1e-2  # else nothing was compared


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_equal_the_eager_net(name):
    model, ids = expert_model(name), torch.arange(12).view(2, 6)
    with torch.no_grad():
        found = _compiled(model)(ids).logits
        _assert_equal(found, farskip_logits(model, ids), model(ids).logits)


@pytest.mark.parametrize(
    ("connectivity", "post_norm"), [("farskip", False), ("farskip", True), ("instella", False)]
)
def test_an_instella_net_and_its_gradients(connectivity, post_norm):
    net, x = InstellaNet(post_norm=post_norm), torch.randn(2, 5, 16, dtype=torch.float64)
    found = _compiled(net, connectivity=connectivity)(x)
    wanted = net.farskip(x, dense_reads_early=connectivity == "instella")
    _assert_equal(found, wanted, net(x))
    weights = torch.randn_like(x)
    gradients = [
        torch.autograd.grad((result * weights).sum(), list(net.parameters()))
        for result in (found, wanted)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_a_subset_of_the_blocks():
    model, ids = expert_model("DeepseekV3"), torch.arange(12).view(2, 6)
    chosen = [2, 4]
    with torch.no_grad():
        found = _compiled(model, blocks=chosen)(ids).logits
        _assert_equal(found, farskip_logits(model, ids, chosen), model(ids).logits)


def test_by_blocks_of_the_reference():
    net, x = InstellaNet(), torch.randn(2, 5, 16, dtype=torch.float64)
    blocks = []
    for layer in net.layers:
        blocks.append(ReferenceBlock(lambda x, own=layer: own.attention(own.norm1(x))))
        if isinstance(layer.mlp, Mixture):
            shared = lambda x, own=layer: own.mlp.shared(own.norm2(x))  # noqa: E731
            routed = lambda x, own=layer: own.mlp.experts(own.norm2(x))  # noqa: E731
            blocks.append(ReferenceBlock(shared, routed=routed))
        else:
            blocks.append(ReferenceBlock(lambda x, own=layer: own.mlp(own.norm2(x))))
    reference = ReferenceNet(blocks)
    found = assert_ladder_equal(
        net, (x,), reference=reference, connectivity="farskip", chosen=[1, 3, 6]
    )
    assert found.standard > 1e-2
    with pytest.raises(AssertionError):
        assert_ladder_equal(net, (x,), reference=reference, options={"connectivity": "instella"})
    with pytest.raises(ValueError, match="needs reference="):
        assert_ladder_equal(net, (x,), reads=["layers.*.norm1"], connectivity="farskip")


class Wide(nn.Module):
    """Its routed experts are in float64, and so is the stream after them."""

    def __init__(self):
        super().__init__()
        self.experts, self.shared = Experts(16).double(), Dense(16, 24)
        self.second = Dense(16, 24)

    def forward(self, x):
        x = x + (self.experts(x.double()) + self.shared(x))
        return x + self.second(x.float())


def test_a_part_in_the_dtype_of_the_whole():
    net, x = Wide(), torch.randn(2, 5, 16)
    with torch.no_grad():
        found = _compiled(net, expect_blocks=2)(x)
        whole = x + (net.experts(x.double()) + net.shared(x))
        wanted = whole + net.second((x.double() + net.shared(x)).float())
        _assert_equal(found, wanted, net(x))


def test_checkpointed_layers():
    class Checkpointed(InstellaNet):
        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False)
            return x

    net, x = Checkpointed(), torch.randn(2, 5, 16, dtype=torch.float64)
    found = _compiled(net)(x)
    wanted = net.farskip(x, dense_reads_early=False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    parameters = list(net.parameters())
    gradients = [torch.autograd.grad(y.sum(), parameters) for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


# ---- programs: what verifies them, and ranks that share them -----------------------------------


@pytest.fixture(scope="module")
def program():
    net, x = InstellaNet(post_norm=True).eval(), torch.randn(2, 6, 16, dtype=torch.float64)
    with torch.no_grad():
        yield torch.export.export(net, (x,)), x, net.farskip(x, dense_reads_early=False)


def test_verify_knows_the_connectivity(program):
    exported, x, wanted = program
    rewritten = ladderize.rewrite(exported, connectivity="farskip")
    torch.testing.assert_close(rewritten.module()(x), wanted, rtol=0, atol=1e-6)
    assert ladderize.verify(exported, rewritten, connectivity="farskip", variants=1).ok
    other = ladderize.verify(exported, rewritten, connectivity="instella", variants=1)
    assert "its branch reads x1, fresh, not x0" in str(other)
    part = ladderize.rewrite(exported, connectivity="farskip", blocks=[3])
    missed = ladderize.verify(exported, part, connectivity="farskip", blocks=[3, 4], variants=1)
    assert "reads x4, fresh, not x4 without what is in flight" in str(missed)


@pytest.mark.filterwarnings("ignore:Not everything is sharded")
def test_ranks_that_share_the_model(program):
    exported, x, wanted = program
    for (output,) in ShardedProgram(exported, 2, connectivity="farskip")(x):
        torch.testing.assert_close(output, wanted, rtol=0, atol=1e-6)


# ---- what is said, and what is checked ---------------------------------------------------------


def test_the_report_shows_what_is_left_out():
    net, x = InstellaNet(), torch.randn(2, 5, 16, dtype=torch.float64)
    report = ladderize.explain(net, x, options={"connectivity": "farskip"})
    left_out = {b.index: b.leaves_out for b in report.blocks if b.leaves_out}
    assert left_out == {
        3: ("h2: layers.1.attention",),
        4: ("h3: layers.1.mlp.experts",),
        5: ("h4: layers.2.attention",),
        6: ("h5: layers.2.mlp.experts",),
    }
    assert [block.reads_after for block in report.blocks[3:6]] == [("x2",), ("s3", "x3"), ("x4",)]
    edges = report.to_networkx().edges
    assert edges["h3", "h4"]["role"] == "read" and edges["x3", "h4"]["staleness"] == 1
    assert "+y4 = x4 + h4(s3, x3)" in str(report.diff())
    lines = report.table(width=140).splitlines()
    assert "leaves out" in next(line for line in lines if "kind" in line)
    (row,) = [line for line in lines if "x4 → s3, x3" in line]
    assert "layers.1.mlp.experts" in row
    assert ">leaves out</th>" in report._repr_html_()
    ladder = ladderize.explain(net, x)
    assert "leaves out" not in ladder.table(width=140) and "leaves out" not in ladder._repr_html_()


class Combined(Mixture):
    """Its experts are on all ranks, the shared one too; the attention of each layer is whole."""

    def forward(self, u):
        shared = funcol.all_reduce(self.shared(u), "sum", "0")
        return shared + funcol.all_reduce(self.experts(u), "sum", "0")


def test_what_is_hidden_on_ranks():
    net, x = InstellaNet(), torch.randn(2, 5, 16, dtype=torch.float64)
    for layer in net.layers[1:3]:
        layer.mlp = Combined(16).double()
    with fake_group(), torch.no_grad():
        report = ladderize.explain(net, x, options={"connectivity": "farskip"})
        hides = {block.index: block.hides for block in report.blocks if block.is_rewired}
        assert hides == {3: (), 4: ("all_reduce",), 5: (), 6: ("all_reduce",)}
        instella = {"connectivity": "instella", "strict": False}
        with pytest.warns(LadderWarning, match="their stale reads would hide no collective"):
            report = ladderize.explain(net, x, options=instella)
    assert [block.index for block in report.blocks if block.is_rewired] == [3, 4, 5, 6]


def _rewritten():
    net, x = InstellaNet(post_norm=True), torch.randn(2, 5, 16, dtype=torch.float64)
    gm, names = capture(net, x)
    state = Rewriting(gm, names, LadderConfig(connectivity="farskip"), may_be_a_layer=False)
    return rewrite_graph(state)


def _partial_sum(state):
    """The sum that block 4 reads instead, and the norm of it."""
    (norm,) = {move.stale for move in state.moved if move.block.index == 4}
    return norm.all_input_nodes[0], norm


def _read_experts_too(state):
    total, _ = _partial_sum(state)
    before = state.streams[0].blocks[3]
    total.replace_input_with(total.args[1], before.partial_sums[0])


def _forget_the_shared_expert(state):
    total, norm = _partial_sum(state)
    norm.replace_input_with(total, state.streams[0].blocks[3].skip)


def _forget_the_norm(state):
    total, norm = _partial_sum(state)
    norm.replace_all_uses_with(total)


def _drop_the_experts(state):
    before = state.streams[0].blocks[3]
    total = before.partial_sums[0]
    shared = state.connectivity.splits[before].landed[0].value
    total.replace_all_uses_with(shared)


@pytest.mark.parametrize(
    "fault", [_read_experts_too, _forget_the_shared_expert, _forget_the_norm, _drop_the_experts]
)
def test_the_recurrence_finds_planted_faults(fault):
    state = _rewritten()
    (specified,) = specify_ladder(state.standard, state.reads)
    (found,) = read_recurrence(state.gm, state.streams, state.connectivity.splits)
    check_recurrence(found, specified, state.streams[0])
    fault(state)
    state.gm.graph.lint()
    (found,) = read_recurrence(state.gm, state.streams, state.connectivity.splits)
    with pytest.raises(LadderError, match="does not compute the ladder recurrence"):
        check_recurrence(found, specified, state.streams[0])


def test_a_checkpoint_and_the_other_ranks_are_told():
    said = {"blocks": [2, 4], "connectivity": "farskip", "routed": ["*.experts"]}
    entry = LadderEntry.read({"ladder": said})
    assert entry.as_data() == {**said, "staleness": 1, "version": 1}
    config = LadderConfig.from_options({}, checkpoint=entry)
    assert (config.connectivity, config.routed) == ("farskip", ["*.experts"])
    assert "connectivity = farskip" in settings_of(config)
    assert "connectivity farskip" in str(entry)
    for contradiction in ({"connectivity": "ladder"}, {"routed": "*.mlp"}):
        with pytest.raises(ContradictionError):
            entry.fill(contradiction)
    with pytest.raises(LadderError, match="goes with connectivity='ladder'"):
        LadderEntry.read({"ladder": {**said, "staleness": 2}})
