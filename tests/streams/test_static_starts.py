"""Streams that start from a parameter, a buffer or a constant, and static values that do not."""

import pytest
import torch
from helpers.graphs import Mlp, streams_of
from torch import Tensor, nn
from torch.export import export

from ladderize import rewrite
from ladderize.testing import assert_close, run_with_gradients

WIDTH = 8


@pytest.fixture
def x():
    return torch.randn(2, 5, WIDTH)


class ClassAttention(nn.Module):
    """CaiT's last layers (arXiv 2103.17239, Section 3): a class token reads the patches."""

    def __init__(self, start, layers=2):
        super().__init__()
        token = torch.randn(1, 1, WIDTH)
        if start == "a buffer":
            self.register_buffer("token", token)
        else:
            self.token = nn.Parameter(token)
        self.start = STARTS[start]
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(layers))
        self.query = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.mlps = nn.ModuleList(Mlp() for _ in range(layers))

    def attend(self, i, token, x):
        u = self.norms[i](torch.cat([token, x], 1))
        return nn.functional.scaled_dot_product_attention(self.query[i](u[:, :1]), u, u)

    def forward(self, x):
        token = self.start(self.token, x)
        for i, mlp in enumerate(self.mlps):
            token = token + self.attend(i, token, x)
            token = token + mlp(token)
        return token[:, 0]

    def ladder(self, x):
        read = token = self.start(self.token, x)
        for i, mlp in enumerate(self.mlps):
            read, token = token, token + self.attend(i, read, x)
            read, token = token, token + mlp(read)
        return token[:, 0]


STARTS = {
    "expanded": lambda token, x: token.expand(x.shape[0], -1, -1),
    "viewed and cast": lambda token, _: token.double().view(1, -1).repeat(2, 1)[:, None].float(),
    "scaled": lambda token, _: (token * 0.5).expand(2, -1, -1),
    "a buffer": lambda token, _: token.expand(2, -1, -1),
    "zeros": lambda *_: torch.zeros(2, 1, WIDTH),
    "like an input": lambda _, x: torch.ones_like(x[:, :1]),
}


class Everywhere(nn.Module):
    """A stream from each start, and the first one a second time, for another input."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(map(ClassAttention, STARTS))

    def forward(self, x):
        return [net(x) for net in self.nets] + [self.nets[0](x.flip(0))]

    def ladder(self, x):
        return [net.ladder(x) for net in self.nets] + [self.nets[0].ladder(x.flip(0))]


def test_the_first_sum_onto_a_static_value_is_a_block(x):
    net = Everywhere()
    ladder = rewrite(export(net, (x,)), expect_blocks=4 * (len(STARTS) + 1)).module()
    found = run_with_gradients(ladder, ladder, (x,), {})
    wanted = run_with_gradients(net.ladder, net, (x,), {})
    for name, mine, theirs in zip([*STARTS, "again"], found[0], wanted[0], strict=True):
        assert_close(mine, theirs, what=name)
    assert "nets.0.token" in wanted[1]
    assert_close(found[1], wanted[1], what="gradients")


class Queries(nn.Module):
    """A decoder of learned queries, as in DETR: at first they attend to one another alone."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, WIDTH))
        self.inner = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.outer = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        state = torch.zeros(2, 3, WIDTH)
        position = self.position.expand(2, -1, -1)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            u = state + position
            state = self.norm(state + attend(inner(u), u, state))
            u = state + position
            state = self.norm(state + attend(outer(u), x, x))
        return state


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2)).softmax(-1) @ value


def test_blocks_of_parameters_alone_come_first_in_their_stream(x):
    (stream,) = streams_of(Queries(), x)
    assert [block.index for block in stream.blocks] == [0, 1, 2, 3]
    assert {block.segment for block in stream.blocks} == {0}
    assert not stream.blockers


# ---- static values that start no stream ----------------------------------------------------------


class Positions(nn.Module):
    """Positions, added once and in every layer, before a projection and behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.bias = (nn.Parameter(torch.randn(2, 5, WIDTH)) for _ in range(2))
        self.scores = nn.Parameter(torch.randn(2, 5, 5))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = x + self.first
        seen = []
        for layer in self.layers:
            u = self.norm(x) + self.bias
            query = layer(u) + self.first
            scores = query @ u.transpose(-1, -2) + self.scores
            x = x + scores.softmax(-1) @ u
            seen.append(x)
            x = x + self.bias
        return x, seen


def test_positions_and_biases_start_no_stream(x):
    (stream,) = streams_of(Positions(), x)
    assert [block.index for block in stream.blocks] == [0, 1, 2]
    assert {block.segment for block in stream.blocks} == {0}
    assert not stream.blockers


class DeltaRule(nn.Module):
    """A state that starts from zeros in each layer, `S = g S + k (v - k S)`, step by step."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        u = self.norm(x)
        state, out = torch.zeros(x.shape[0], WIDTH, WIDTH), []
        for key, value in zip(self.key(u).split(1, 1), self.value(u).split(1, 1), strict=True):
            state = 0.9 * state + key.transpose(1, 2) @ (value - key @ state)
            out.append(key @ state)
        return self.out(torch.cat(out, 1))


def test_a_state_in_a_branch_is_no_stream_of_the_net(x):
    """It has more steps than the net has blocks, and each step is a residual sum."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([DeltaRule(), Mlp(), DeltaRule(), Mlp()])

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    (stream,) = streams_of(Net(), x)
    assert [block.layer for block in stream.blocks] == [0, 1, 2, 3]
    assert not stream.blockers
