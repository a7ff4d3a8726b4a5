"""A model of plain branches, and hand-written variants of its residual stream.

parallel    the branches of a layer read the same value
desync      one stream per rank, with every n-th block reduced
"""

import torch
from torch import nn

RANKS, WIDTH, LAYERS = 2, 8, 3


class PlainBranch(nn.Module):
    """A norm and two linears, the second of which ends in a reduction."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        return self.down(self.up(self.norm(x)).tanh())

    def part(self, x, rank, ranks):
        """The result of one rank for `x` with its part of the weights."""
        up, bias = (p.chunk(ranks)[rank] for p in (self.up.weight, self.up.bias))
        inner = nn.functional.linear(self.norm(x), up, bias).tanh()
        return nn.functional.linear(inner, self.down.weight.chunk(ranks, 1)[rank])


class PlainLayer(nn.Module):
    def __init__(self, branches=2):
        super().__init__()
        self.branches = nn.ModuleList(PlainBranch() for _ in range(branches))
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return x

    def blocks(self):
        """The branches of each sum."""
        return [[branch] for branch in self.branches]


class TogetherLayer(PlainLayer):
    """Its branches are added at once."""

    def forward(self, x):
        first, *others = (branch(x) for branch in self.branches)
        return x + sum(others, first)

    def blocks(self):
        return [list(self.branches)]


class PostNormLayer(PlainLayer):
    def forward(self, x):
        for branch in self.branches:
            x = nn.functional.layer_norm(x + branch(x), (WIDTH,), self.gain)
        return x


class FormsNet(nn.Module):
    def __init__(self, layer=PlainLayer, **sizes):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(layer(**sizes) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)
        self.double()

    def forward(self, x):
        x = self.table(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def parallel(self, x, layers=range(LAYERS)):
        """The `layers` in parallel, as in GPT-J and PaLM."""
        x = self.table(x)
        for number, layer in enumerate(self.layers):
            x = x + sum(b(x) for b in layer.branches) if number in layers else layer(x)
        return self.norm(x)

    def desync(self, x, period, normed=False):
        """As in `gpt_desync_TP.py` by the authors of arXiv 2501.06589, one rank after the other."""
        streams = [self.table(x)] * RANKS
        blocks = [(layer, branches) for layer in self.layers for branches in layer.blocks()]
        for count, (layer, branches) in enumerate(blocks, 1):
            bias = sum(branch.down.bias for branch in branches)
            parts = [sum(b.part(own, r, RANKS) for b in branches) for r, own in enumerate(streams)]
            if count % period and count < len(blocks):
                streams = [own + part + bias for own, part in zip(streams, parts, strict=True)]
            else:
                shares = [part + own / RANKS for own, part in zip(streams, parts, strict=True)]
                streams = [sum(shares) + bias] * RANKS
            if normed:
                streams = [nn.functional.layer_norm(own, (WIDTH,), layer.gain) for own in streams]
        return self.norm(streams[0])
