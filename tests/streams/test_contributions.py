"""The summands of a block: which are in flight, and which cannot be left out."""

import pytest
import torch
from helpers.expert_nets import Dense, InstellaNet, Mixture, expert_model
from helpers.fake_group import fake_group
from helpers.graphs import capture
from torch import nn
from torch.distributed import _functional_collectives as funcol

import ladderize
from ladderize import LadderConfig, LadderError
from ladderize.passes.functionalize import Functionalize
from ladderize.streams.context import AnalysisContext
from ladderize.streams.contributions import find_contributions
from ladderize.streams.find import streams_in
from ladderize.streams.left_out import Connectivity


def _left_out(model, *args, **options):
    """For each block what it leaves out: the modules of summands, or a block as a number."""
    gm, names = capture(model, *args)
    Functionalize()(gm)
    context = AnalysisContext(gm, names)
    streams = streams_in(context)
    config = LadderConfig(**{"connectivity": "farskip", **options})
    connectivity = Connectivity.of(config, find_contributions(context, streams, config))
    blocks = streams[0].blocks
    everything = range(len(blocks))
    parts = connectivity.parts(blocks, everything)
    named = {i: [summand.module for summand in part.in_flight] for i, part in parts.items()}
    return connectivity.sources(blocks, everything) | named


X = torch.randn(2, 5, 16, dtype=torch.float64)


def test_routers_are_known_by_their_operations():
    model = expert_model("Glm4Moe").float()
    model.set_experts_implementation("grouped_mm")
    found = _left_out(model, torch.arange(12).view(2, 6))
    assert found == {3: 2, 4: ["model.layers.1.mlp.experts"], 5: 4}


def test_forms_of_connectivity():
    net = InstellaNet()
    parts = {4: ["layers.1.mlp.experts"], 6: ["layers.2.mlp.experts"]}
    assert _left_out(net, X) == {3: 2, 5: 4, **parts}
    assert _left_out(net, X, connectivity="instella") == {1: 0, 3: 2, 5: 4, 7: 6, **parts}
    assert _left_out(net, X, connectivity="ladder") == {i: i - 1 for i in range(1, 8)}


class Layers(nn.Module):
    """Layers of one sum: of `branches` what each adds."""

    def __init__(self, *branches, between=None):
        super().__init__()
        self.layers, self.between = nn.ModuleList(branches), between
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in branches)
        self.double()

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
            if self.between is not None:
                x = self.between(x)
        return x


class Scaled(Mixture):
    """Its sum is laid out, scaled by a number and by a weight, and cast."""

    def forward(self, u):
        flat = (super().forward(u) * 0.5).reshape(-1, u.shape[-1])
        return flat.view(u.shape).to(u.dtype)


class Normed(Mixture):
    def __init__(self, width):
        super().__init__(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, u):
        return self.norm(super().forward(u))


def test_a_sum_is_split_behind_what_is_linear_alone():
    dense = Dense(16, 24)
    assert _left_out(Layers(Scaled(16), dense), X) == {1: ["layers.0.experts"]}
    assert _left_out(Layers(Normed(16), dense), X) == {1: 0}


def test_a_difference_is_left_out_as_a_whole():
    net = Layers(Mixture(16), Dense(16, 24))

    def differences(x):
        x = x - net.layers[0](x)
        return x + net.layers[1](x)

    assert _left_out(differences, X) == {1: 0}


def test_experts_named_by_the_user():
    dense = [Dense(16, 24) for _ in range(3)]
    assert _left_out(Layers(*dense), X, routed="layers.1.down") == {1: 0, 2: 1}
    found = _left_out(InstellaNet(), X, routed=["layers.*.mlp.shared"])
    shared = [f"layers.{i}.mlp.shared.down" for i in (1, 2)]
    assert found == {3: 2, 4: shared[:1], 5: 4, 6: shared[1:]}
    with pytest.raises(LadderError, match=r"match no module[^\0]*'layers.*.moe'"):
        _left_out(InstellaNet(), X, routed=["layers.*.moe", "layers.*.mlp.experts"])


class Reduced(nn.Module):
    """Of two linears; the results of one are all-reduced, or sent to other ranks and back."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.here, self.there = kind, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, u):
        if self.kind == "all_reduce":
            return self.here(u) + funcol.all_reduce(self.there(u), "sum", "0")
        sent = funcol.all_to_all_single(u, None, None, "0")
        return self.here(u) + funcol.all_to_all_single(self.there(sent), None, None, "0")


@pytest.mark.parametrize("kind", ["all_reduce", "all_to_all"])
def test_without_routers_what_comes_off_a_collective_is_in_flight(kind):
    dense = Dense(16, 24)
    with fake_group():
        found = _left_out(Layers(dense, Reduced(kind), dense), X)
    # What is dispatched to other ranks does not wait for the block before.
    early = {1: 0} if kind == "all_to_all" else {}
    assert found == {2: ["layers.1.there"], **early}


def test_nothing_in_flight_is_refused():
    with pytest.raises(LadderError, match="Nothing is in flight") as caught:
        _left_out(Layers(Dense(16, 24), Dense(16, 24)), X)
    assert "connectivity='ladder'" in str(caught.value)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(16, 1, dtype=torch.float64)

    def forward(self, x):
        return x * torch.sigmoid(self.score(x))


def test_a_mixing_op_ahead_of_the_next_anchor_is_refused():
    net = Layers(Mixture(16), Dense(16, 24), between=Gate())
    with pytest.raises(LadderError, match=r"cannot be applied without[^\0]*linear mixes"):
        ladderize.compile(net, connectivity="farskip", lowering="eager", expect_blocks=2)(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connectivity": "far-skip"}, "did you mean 'farskip'"),
        (
            {"connectivity": "farskip", "staleness": 2},
            "staleness=2 goes with connectivity='ladder'",
        ),
        ({"connectivity": "instella", "staleness": 0}, "'instella' has 1"),
        ({"routed": "*.experts"}, "routed= goes with connectivity='farskip'"),
        ({"connectivity": "farskip", "routed": [1]}, "neither a module path nor a list"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(LadderError) as caught:
        LadderConfig(**options)
    assert [message in blocker.what for blocker in caught.value.blockers] == [True]
