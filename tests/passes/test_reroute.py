import pytest
import torch
from helpers.graphs import Residual, capture
from torch import nn

from ladderize.compat.module_paths import parameter_names
from ladderize.errors import LadderError
from ladderize.passes.functionalize import Functionalize
from ladderize.passes.reroute import RerouteReads
from ladderize.streams.block import stale_sources
from ladderize.streams.find import find_streams
from ladderize.streams.joins import StaleReads
from ladderize.streams.left_out import Connectivity
from ladderize.streams.recurrence import check_recurrence, read_recurrence
from ladderize.streams.specification import specify_ladder


def _prepare(model, x, chosen=None, staleness=1):
    gm, names = capture(model, x)
    Functionalize()(gm)
    streams = find_streams(gm, names)
    everything = frozenset(range(len(streams[0].blocks)))
    indices = everything if chosen is None else chosen
    return gm, RerouteReads(
        (StaleReads.of(streams[0], indices, Connectivity(staleness=staleness)),)
    )


def _check_of(gm, reroute):
    """As the pipeline does it."""
    streams = [reads.stream for reads in reroute.reads]
    specified = specify_ladder(read_recurrence(gm, streams), reroute.reads)

    def check():
        for found, wanted, stream in zip(
            read_recurrence(gm, streams), specified, streams, strict=True
        ):
            check_recurrence(found, wanted, stream)

    return check


def _run(gm, model, x):
    names = parameter_names(gm)
    tensors = dict(model.named_parameters())
    inputs = gm.graph.find_nodes(op="placeholder")
    gm.recompile()
    return gm(*(tensors[names[node]] if node in names else x for node in inputs))[0]


@pytest.mark.parametrize("staleness", [0, 1, 2, 9])
@pytest.mark.parametrize("chosen", [None, {0}, {2}, {1, 3}])
def test_values_are_those_of_the_eager_ladder(chosen, staleness):
    model, x = Residual(), torch.randn(2, 8)
    gm, reroute = _prepare(model, x, chosen, staleness)
    check = _check_of(gm, reroute)
    reroute(gm)
    check()
    torch.testing.assert_close(_run(gm, model, x), model.ladder(x, chosen, staleness))


def test_sources_stay_inside_the_stream():
    _, reroute = _prepare(Residual(), torch.randn(2, 8))
    (stream,) = (reads.stream for reads in reroute.reads)
    assert stale_sources(stream.blocks, frozenset(range(4)), 1) == {1: 0, 2: 1, 3: 2}
    assert stale_sources(stream.blocks, frozenset(range(4)), 3) == {1: 0, 2: 0, 3: 0}
    assert stale_sources(stream.blocks, frozenset({2}), 1) == {2: 1}
    assert stale_sources(stream.blocks, frozenset(range(4)), 0) == {}


def _leave_one_fresh(stream):
    block = stream.blocks[2]
    for user in list(stream.blocks[1].anchor.users):
        if user in block.members:
            user.replace_input_with(stream.blocks[1].anchor, block.anchor)


def _read_two_early(stream):
    block = stream.blocks[3]
    for user in list(stream.blocks[2].anchor.users):
        if user in block.members:
            user.replace_input_with(stream.blocks[2].anchor, stream.blocks[1].anchor)


def _reroute_the_skip(stream):
    block = stream.blocks[2]
    block.add.replace_input_with(block.skip, stream.blocks[1].anchor)


def _drop_a_branch(stream):
    block = stream.blocks[1]
    block.add.replace_input_with(block.outputs[0], stream.blocks[0].outputs[0])


@pytest.mark.parametrize(
    "fault", [_leave_one_fresh, _read_two_early, _reroute_the_skip, _drop_a_branch]
)
def test_the_recurrence_check_finds_planted_faults(fault):
    gm, reroute = _prepare(Residual(), torch.randn(2, 8))
    check = _check_of(gm, reroute)
    reroute(gm)
    check()
    fault(reroute.reads[0].stream)
    gm.graph.lint()
    with pytest.raises(LadderError, match="does not compute the ladder recurrence"):
        check()


# -- what later branches share with an earlier one


class Sharing(nn.Module):
    """In every second layer a branch picks channels, for itself or not, and for the next layer."""

    def __init__(self, kind, *, picks_for_itself):
        super().__init__()
        self.kind, self.picks_for_itself = kind, picks_for_itself
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.picks, self.ups, self.downs = (
            nn.ModuleList(nn.Linear(8, 8) for _ in range(4)) for _ in range(3)
        )

    def branch(self, i, x, shared):
        u, is_first = self.norms[i](x), i % 2 == 0
        if is_first:
            shared = self.picks[i](u)
            shared = shared.topk(3, -1).indices if self.kind == "indices" else shared
        h = self.ups[i](u)
        if self.picks_for_itself or not is_first:
            mask = torch.zeros_like(h)
            h = h * (mask.scatter(-1, shared, 1.0) if self.kind == "indices" else mask + shared)
        return self.downs[i](h), shared

    def ladder(self, x, staleness):
        states, shared = [x], None
        for i in range(4):
            read = states[max(i - staleness, 0)]
            h, shared = self.branch(i, read, shared)
            states.append(states[i] + h)
        return states[-1]

    def forward(self, x):
        return self.ladder(x, staleness=0)


@pytest.mark.parametrize(
    ("kind", "picks_for_itself", "staleness"),
    [("indices", True, 1), ("indices", False, 2), ("values", True, 2), ("values", False, 1)],
)
def test_a_shared_value_stays_what_the_earlier_branch_computes(kind, picks_for_itself, staleness):
    model, x = Sharing(kind, picks_for_itself=picks_for_itself), torch.randn(2, 8)
    gm, reroute = _prepare(model, x, staleness=staleness)
    check = _check_of(gm, reroute)
    reroute(gm)
    check()
    torch.testing.assert_close(_run(gm, model, x), model.ladder(x, staleness))


def _share_what_is_fresh(stream):
    """The third branch reads the stream as it is where it picks, and where it does not."""
    block = stream.blocks[2]
    norm = next(node for node in stream.blocks[1].anchor.users if node in block.members)
    norm.replace_input_with(stream.blocks[1].anchor, block.anchor)


def _share_nothing(stream):
    """The last branch takes for the shared value one that it computes from what it reads."""
    before, block = stream.blocks[2:]
    own = next(node for node in block.branch if node.target is torch._C._nn.linear)
    for value in before.branch:
        for user in list(value.users):
            if user not in before.members | {before.add}:
                user.replace_input_with(value, own)


@pytest.mark.parametrize("fault", [_share_what_is_fresh, _share_nothing])
def test_the_check_of_shared_values_finds_planted_faults(fault):
    gm, reroute = _prepare(Sharing("values", picks_for_itself=True), torch.randn(2, 8))
    check = _check_of(gm, reroute)
    reroute(gm)
    check()
    fault(reroute.reads[0].stream)
    with pytest.raises(LadderError, match="does not compute the ladder recurrence"):
        check()
