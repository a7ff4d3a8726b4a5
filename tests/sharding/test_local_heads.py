"""Caches that are passed to a model: each rank keeps its heads, and gathers where it must."""

import pytest
import torch
import torch.distributed as dist
import transformers
from helpers.fake_group import fake_group
from helpers.lockstep import run_in_lockstep
from helpers.ranks import mesh
from helpers.sharded import Sharder
from torch import nn
from torch.nn import functional

from ladderize.frontends.mesh.local_caches import keep_own_heads
from ladderize.graph.local_heads import all_heads, own_heads
from ladderize.sharding.placement import Replicate, take_local

HEADS, SIZE, WIDTH = 4, 8, 32


attend = functional.scaled_dot_product_attention


class Layer(nn.Module):
    """Attention that keeps its keys and values."""

    def __init__(self, how, key_heads):
        super().__init__()
        self.attend, self.key_heads = how, key_heads
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, key_heads * SIZE, bias=False) for _ in range(2))

    def projected(self, x):
        return (
            proj(x).view(*x.shape[:2], -1, SIZE).transpose(1, 2)
            for proj in (self.q, self.k, self.v)
        )

    def forward(self, x, past):
        q, k, v = self.projected(x)
        ranks = dist.get_world_size()
        how = 1, ranks, max(ranks // self.key_heads, 1), dist.group.WORLD.group_name
        keys = torch.cat([past[0], own_heads(k, *how)], 2)
        values = torch.cat([past[1], own_heads(v, *how)], 2)
        y = self.attend(q, all_heads(keys, *how), all_heads(values, *how))
        return self.o(y.transpose(1, 2).flatten(2)), keys, values


class Decoder(nn.Module):
    def __init__(self, how=attend, key_heads=HEADS):
        super().__init__()
        self.layers = nn.ModuleList(Layer(how, key_heads) for _ in range(2))
        self.head = nn.Linear(WIDTH, 11)

    def forward(self, x, *past):
        kept = []
        for i, layer in enumerate(self.layers):
            y, *new = layer(x, past[2 * i : 2 * i + 2])
            x, kept = x + y, kept + new
        return (self.head(x), *kept)


def sharded(model, x, past, num_ranks=2):
    sharder = Sharder(num_ranks)
    with fake_group(num_ranks), torch.no_grad():
        mesh()
        torch._dynamo.reset()
        torch.compile(model, backend=sharder, fullgraph=True)(x, *past)
    return sharder


def whole(model, x, past):
    """The result of one process with all heads and its own layers."""
    kept = []
    for i, layer in enumerate(model.layers):
        q, k, v = layer.projected(x)
        new = [torch.cat([past[2 * i + j], own], 2) for j, own in enumerate((k, v))]
        y = layer.attend(q, *new)
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
    assert_ranks_equal_one(sharder, model, x, past, parts)


def assert_ranks_equal_one(sharder, model, x, past, parts):
    """`parts` are the contents of the ranks' caches, of which `past` is the whole."""
    inputs = [arguments(sharder, model, x, part, rank) for rank, part in enumerate(parts)]
    found = run_in_lockstep(sharder.gm, inputs)
    with torch.no_grad():
        expected = whole(model, x, past)
    copies = max(len(parts) // model.layers[0].key_heads, 1)
    for rank, (logits, *kept) in enumerate(found):
        torch.testing.assert_close(logits, expected[0], rtol=0, atol=1e-5)
        for own, full in zip(kept, expected[1:], strict=True):
            part = full.chunk(len(parts) // copies, 1)[rank // copies]
            torch.testing.assert_close(own, part, rtol=0, atol=1e-5)


def expanded(x):
    """As transformers' `repeat_kv`."""
    x = x[:, :, None].expand(x.shape[0], x.shape[1], HEADS // 2, *x.shape[2:])
    return x.reshape(x.shape[0], HEADS, *x.shape[3:])


def moved_and_cut(x):
    """Ops that leave the heads as they are."""
    scale = torch.arange(SIZE) / SIZE
    return (x.transpose(1, 2)[:, 1:] * scale).contiguous().transpose(1, 2).float()


GROUPED = {
    "enable_gqa": lambda q, k, v: attend(q, k, v, enable_gqa=True),
    "expand": lambda q, k, v: attend(q, expanded(k), expanded(v)),
    "repeat_interleave": lambda q, k, v: attend(
        q, k.repeat_interleave(HEADS // 2, 1), v.repeat_interleave(HEADS // 2, dim=1)
    ),
    "moved": lambda q, k, v: attend(q, moved_and_cut(k), moved_and_cut(v), enable_gqa=True),
    "matmul": lambda q, k, v: torch.softmax(q @ expanded(k).mT, -1) @ expanded(v),
}


@pytest.mark.parametrize("read", GROUPED)
def test_ranks_share_heads_if_there_are_fewer(read):
    """Four ranks, two key heads: each rank keeps one, and nothing is gathered."""
    torch.manual_seed(0)
    model, x = Decoder(GROUPED[read], key_heads=2), torch.randn(2, 3, WIDTH)
    past = [torch.randn(2, 2, 5, SIZE) for _ in range(4)]
    parts = [[p[:, rank // 2, None] for p in past] for rank in range(4)]
    sharder = sharded(model, x, parts[0], num_ranks=4)
    assert not {own_heads, all_heads} & {node.target for node in sharder.gm.graph.nodes}
    assert_ranks_equal_one(sharder, model, x, past, parts)
    full = 2 * 8 * SIZE * 4  # bytes of one head: batch of 2, 8 tokens, float32
    assert sharder.plan.cache_bytes == 4 * (full - full // 2)


@pytest.mark.parametrize(("heads", "kept"), [(8, 2), (4, 1), (2, 1), (1, 1), (3, 3), (6, 6)])
def test_how_many_heads_a_cache_of_transformers_keeps(heads, kept):
    """Over four ranks; as many as the model has if neither number divides the other."""
    k = torch.randn(2, heads, 3, SIZE)
    with fake_group(4):
        cache = transformers.DynamicCache()
        assert keep_own_heads(cache, mesh().get_group())
        read, _ = cache.update(k, k, 0)
        cache.update(k, k, 0)
    assert read.shape == k.shape
    assert cache.layers[0].keys.shape == (2, kept, 6, SIZE)
    torch.testing.assert_close(cache.layers[0].keys[:, :, :3], k[:, :kept])


SHARED = {
    "cumsum": lambda q, k, v: attend(q, k.cumsum(1), v, enable_gqa=True),
    "flip": lambda q, k, v: attend(q, k.flip(1), v, enable_gqa=True),
    "each by its own": lambda q, k, v: attend(
        q, k * torch.tensor([1.0, 2.0])[:, None, None], v, enable_gqa=True
    ),
}


@pytest.mark.parametrize("read", SHARED)
def test_shared_heads_that_are_read_together_are_gathered(read):
    torch.manual_seed(0)
    model, x = Decoder(SHARED[read], key_heads=2), torch.randn(2, 3, WIDTH)
    sharder = sharded(model, x, [torch.randn(2, 1, 5, SIZE) for _ in range(4)], num_ranks=4)
    assert [node.target for node in sharder.gm.graph.nodes].count(all_heads) == 4
    assert own_heads not in [node.target for node in sharder.gm.graph.nodes]


def arguments(sharder, model, x, past, rank):
    """The arguments of the graph of `rank`, in order."""
    rest = iter([x, *past])
    indices = [index.tensor(rank) for index in sharder.plan.index_inputs]
    given = [
        next(rest)
        if name is None
        else take_local(
            model.get_parameter(name).detach(),
            sharder.plan.placements.get(name, Replicate()),
            rank,
            sharder.num_ranks,
        )
        for name in sharder.order
    ]
    return given + indices


def test_what_needs_all_heads_gathers_them():
    """Keys that are mixed along the heads: only they are gathered; the rest is divided."""
    torch.manual_seed(0)
    model, x = Decoder(lambda q, k, v: attend(q, k.cumsum(1), v)), torch.randn(2, 3, WIDTH)
    sharder = sharded(model, x, [torch.randn(2, HEADS // 2, 5, SIZE) for _ in range(4)])
    assert [node.target for node in sharder.gm.graph.nodes].count(all_heads) == 2
    assert own_heads not in [node.target for node in sharder.gm.graph.nodes]
    assert "layers.0.v.weight" in sharder.plan.placements
    for node in sharder.gm.graph.find_nodes(op="output"):
        for kept in node.args[0][1:]:
            assert list(kept.meta["val"].shape) == [2, HEADS // 2, 8, SIZE]
