"""Caches that are passed to a model: each rank keeps its heads, and gathers where it must."""

import torch
import torch.distributed as dist
from helpers.fake_group import fake_group
from helpers.lockstep import run_in_lockstep
from helpers.ranks import mesh
from helpers.sharded import Sharder
from torch import nn
from torch.nn import functional

from ladderize.graph.local_heads import all_heads, own_heads
from ladderize.sharding.placement import Replicate, take_local

HEADS, SIZE, WIDTH = 4, 8, 32


class Layer(nn.Module):
    """Attention that keeps its keys and values; `mix` is done to all keys before."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x, past):
        q, k, v = (
            proj(x).view(*x.shape[:2], HEADS, SIZE).transpose(1, 2)
            for proj in (self.q, self.k, self.v)
        )
        how = 1, 2, dist.group.WORLD.group_name
        keys = torch.cat([past[0], own_heads(k, *how)], 2)
        values = torch.cat([past[1], own_heads(v, *how)], 2)
        read = self.mix(all_heads(keys, *how)), all_heads(values, *how)
        y = functional.scaled_dot_product_attention(q, *read)
        return self.o(y.transpose(1, 2).flatten(2)), keys, values


class Decoder(nn.Module):
    def __init__(self, mix=lambda keys: keys):
        super().__init__()
        self.layers = nn.ModuleList(Layer(mix) for _ in range(2))
        self.head = nn.Linear(WIDTH, 11)

    def forward(self, x, *past):
        kept = []
        for i, layer in enumerate(self.layers):
            y, *new = layer(x, past[2 * i : 2 * i + 2])
            x, kept = x + y, kept + new
        return (self.head(x), *kept)


def sharded(model, x, past):
    sharder = Sharder(2)
    with fake_group(), torch.no_grad():
        mesh()
        torch._dynamo.reset()
        torch.compile(model, backend=sharder, fullgraph=True)(x, *past)
    return sharder


def whole(model, x, past):
    """The result of one process with all heads and its own layers."""
    kept = []
    for i, layer in enumerate(model.layers):
        q, k, v = (
            proj(x).view(*x.shape[:2], HEADS, SIZE).transpose(1, 2)
            for proj in (layer.q, layer.k, layer.v)
        )
        new = [torch.cat([past[2 * i + j], own], 2) for j, own in enumerate((k, v))]
        y = functional.scaled_dot_product_attention(q, layer.mix(new[0]), new[1])
        x, kept = x + layer.o(y.transpose(1, 2).flatten(2)), kept + new
    return [model.head(x), *kept]


def test_ranks_keep_the_heads_that_they_compute():
    torch.manual_seed(0)
    model, x = Decoder(), torch.randn(2, 3, WIDTH)
    past = [torch.randn(2, HEADS, 5, SIZE) for _ in range(4)]
    parts = [[p.chunk(2, 1)[rank] for p in past] for rank in range(2)]
    sharder = sharded(model, x, parts[0])
    targets = [node.target for node in sharder.gm.graph.nodes]
    assert own_heads not in targets
    assert all_heads not in targets
    assert sharder.plan.whole == ()
    inputs = [arguments(sharder, model, x, part, rank) for rank, part in enumerate(parts)]
    found = run_in_lockstep(sharder.gm, inputs)
    with torch.no_grad():
        expected = whole(model, x, past)
    for rank, (logits, *kept) in enumerate(found):
        torch.testing.assert_close(logits, expected[0], rtol=0, atol=1e-5)
        for own, full in zip(kept, expected[1:], strict=True):
            torch.testing.assert_close(own, full.chunk(2, 1)[rank], rtol=0, atol=1e-5)


def arguments(sharder, model, x, past, rank):
    """The arguments of the graph of `rank`, in order."""
    rest = iter([x, *past])
    return [
        next(rest)
        if name is None
        else take_local(
            model.get_parameter(name).detach(),
            sharder.plan.placements.get(name, Replicate()),
            rank,
            2,
        )
        for name in sharder.order
    ]


def test_what_needs_all_heads_gathers_them():
    """Keys that are mixed along the heads: only they are gathered; the rest is divided."""
    torch.manual_seed(0)
    model, x = Decoder(mix=lambda keys: keys.cumsum(1)), torch.randn(2, 3, WIDTH)
    sharder = sharded(model, x, [torch.randn(2, HEADS // 2, 5, SIZE) for _ in range(4)])
    assert [node.target for node in sharder.gm.graph.nodes].count(all_heads) == 2
    assert own_heads not in [node.target for node in sharder.gm.graph.nodes]
    assert "layers.0.v.weight" in sharder.plan.placements
    for node in sharder.gm.graph.find_nodes(op="output"):
        for kept in node.args[0][1:]:
            assert list(kept.meta["val"].shape) == [2, HEADS // 2, 8, SIZE]
