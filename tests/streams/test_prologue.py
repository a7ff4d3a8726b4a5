"""Blocks before the first layer: the convolution of wav2vec 2 that makes positions."""

import pytest
import torch
from helpers.graphs import Mlp, streams_of
from torch import nn
from torch.export import export

from ladderize import LadderError, explain, rewrite
from ladderize.testing import assert_close

WIDTH = 8


class Positions(nn.Module):
    """A positional convolution, then `layers`; `adds` says which module writes the sums."""

    def __init__(self, positions=None, layers=2, adds="layer"):
        super().__init__()
        self.positions = positions or Mlp()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.adds = adds

    def forward(self, x):
        x = x + self.positions(x)
        for layer in self.layers:
            if self.adds == "layer":
                x = layer(x)
            else:
                x = x + layer.first(x)
                x = x + layer.second(x)
        return x

    def ladder(self, x, first=0, staleness=1):
        """The blocks from `first` on read stale, but never before the sum that precedes `first`."""
        branches = [self.positions, *(b for la in self.layers for b in (la.first, la.second))]
        stream = [x]
        for i, branch in enumerate(branches):
            source = max(i - staleness, first) if i >= first else i
            stream.append(stream[-1] + branch(stream[source]))
        return stream[-1]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Mlp(), Mlp()

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


@pytest.fixture
def x():
    return torch.randn(2, 5, WIDTH)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Positions()


@pytest.fixture(scope="module")
def program(net):
    return export(net, (torch.randn(2, 5, WIDTH),))


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, 1),
        ({"staleness": 3}, 1),
        ({"layers": "0:2"}, 1),
        ({"layers": [1]}, None),
        ({"blocks": "all"}, 0),
        ({"blocks": "all", "staleness": 2}, 0),
        ({"blocks": "1:"}, 1),
    ],
)
def test_it_stays_standard_unless_blocks_are_named(options, first, net, program, x):
    ladder = rewrite(program, expect_blocks=5, **options).module()
    if first is None:  # layer 1 alone: its first block reads what layer 0's first one left
        stream = [x, x + net.positions(x)]
        for branch, source in (("first", 1), ("second", 2)):
            stream.append(stream[-1] + getattr(net.layers[0], branch)(stream[source]))
        for branch, source in (("first", 2), ("second", 3)):
            stream.append(stream[-1] + getattr(net.layers[1], branch)(stream[source]))
        wanted = stream[-1]
    else:
        wanted = net.ladder(x, first, options.get("staleness", 1))
    assert_close(ladder(x), wanted)


PLACES = {
    "sums in the layers": Positions(),
    "sums in the net": Positions(adds="net"),
    "positions in a list": Positions(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())),
    "positions in a list, sums in the net": Positions(
        nn.Sequential(nn.Linear(WIDTH, WIDTH)), adds="net"
    ),
    "one layer": Positions(layers=1),
}


@pytest.mark.parametrize("name", PLACES)
def test_it_is_told_from_a_layer(name, x):
    (stream,) = streams_of(PLACES[name], x)
    layers = range(len(PLACES[name].layers))
    assert [block.layer for block in stream.blocks] == [None, *(i for i in layers for _ in "ab")]
    assert [block.is_prologue for block in stream.blocks] == [True] + [False] * 2 * len(layers)


class Unnumbered(nn.Module):
    """Layers in no list; inside of one branch there is one."""

    def __init__(self):
        super().__init__()
        self.first, self.fourth = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.third = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x):
        for branch in (self.first, self.second, self.third, self.fourth):
            x = x + branch(x)
        return x


def test_a_net_without_layers_has_none(x):
    (stream,) = streams_of(Unnumbered(), x)
    assert [block.layer for block in stream.blocks] == [None] * 4
    assert not any(block.is_prologue for block in stream.blocks)


def test_of_shared_layers_what_comes_once_is_none(x):
    net = Positions()
    net.layers = nn.ModuleList([net.layers[0]] * 2)
    (stream,) = streams_of(net, x)
    assert [block.layer for block in stream.blocks] == [None, 0, 0, 1, 1]


def test_the_report_says_so(net, x):
    said = "block 0 before the first layer: standard unless"
    assert said in str(explain(net, x))
    assert said not in str(explain(net, x, options={"blocks": "all"}))


def test_with_a_single_block_behind_it_nothing_reads_earlier(x):
    class Short(Layer):
        def forward(self, x):
            return x + self.first(x)

    net = Positions()
    net.layers = nn.ModuleList([Short()])
    with pytest.raises(LadderError, match="Need at least two consecutive blocks"):
        rewrite(export(net, (x,)))
