"""KV caches that the module owns: of local size, written in place, the values of one process."""

from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.export import Dim, export

import ladderize
from ladderize.testing import eager_ladder

LENGTH = 16
HEAD = 4
READS = ["layers.*.norm", "layers.*.mlp_norm"]


class Layer(nn.Module):
    """Attention over a cache, and an MLP; `spelling` says how the cache is written."""

    def __init__(self, heads: int, kv: int, spelling: str) -> None:
        super().__init__()
        width = heads * HEAD
        self.heads, self.kv, self.spelling = heads, kv, spelling
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, kv * HEAD) for _ in range(2))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, kv, LENGTH, HEAD), persistent=False)

    def write(self, cache: torch.Tensor, positions: torch.Tensor, new: torch.Tensor) -> None:
        if self.spelling == "index_copy_":
            cache.index_copy_(2, positions, new)
        else:
            cache[:, :, positions] = new

    def attend(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            each(x).view(batch, length, count, HEAD).transpose(1, 2)
            for each, count in ((self.q, self.heads), (self.k, self.kv), (self.v, self.kv))
        )
        self.write(self.keys, positions, k)
        self.write(self.values, positions, v)
        mask = torch.arange(LENGTH) <= positions[:, None]
        mixed = nn.functional.scaled_dot_product_attention(
            q, self.keys, self.values, attn_mask=mask, enable_gqa=True
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm(x), positions)
        return x + self.down(torch.relu(self.up(self.mlp_norm(x))))


class Decoder(nn.Module):
    def __init__(self, heads: int = 4, kv: int = 2, spelling: str = "index_copy_") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, heads * HEAD)
        self.layers = nn.ModuleList(Layer(heads, kv, spelling) for _ in range(2))
        self.head = nn.Linear(heads * HEAD, 64)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, positions)
        return self.head(x)


@cache
def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


EXAMPLE = (torch.arange(3)[None], torch.arange(3))
DIMS = ({1: Dim("new", max=LENGTH)}, {0: Dim("new", max=LENGTH)})


def decoded(model):
    """The logits of a prefill of six tokens and of three steps after it."""
    ids = torch.arange(9)[None] * 7 % 64
    with torch.no_grad():
        logits = [model(ids[:, :6], torch.arange(6))]
        logits += [model(ids[:, i : i + 1], torch.tensor([i])) for i in (6, 7, 8)]
    return torch.cat(logits, 1)


def served(options, compiled=False):
    shard = ladderize.parallelize(Decoder(**options), mesh(), EXAMPLE, dynamic_shapes=DIMS)
    model = Decoder(**options)
    run = torch.compile(shard, backend="ladderize", fullgraph=True) if compiled else shard
    with eager_ladder(model, READS):
        expected = decoded(model)
    error = (decoded(run) - expected).abs().max().item()
    standard = (decoded(Decoder(**options)) - expected).abs().max().item()
    own = shard.get_buffer("layers.0.keys")
    part = model.layers[0].keys.chunk(dist.get_world_size(), 1)
    is_part = own.shape[1] * dist.get_world_size() == options["kv"]
    kept = part[dist.get_rank()] if is_part else model.layers[0].keys
    return error, standard, list(own.shape), (own - kept).abs().max().item()


@pytest.mark.parametrize("spelling", ["index_copy_", "cache[:, :, positions] ="])
@pytest.mark.parametrize("kv", [4, 2])
def test_each_rank_keeps_the_keys_of_its_heads(two_ranks, kv, spelling):
    for error, standard, shape, cached in two_ranks.run(served, {"kv": kv, "spelling": spelling}):
        assert error <= 1e-5
        assert standard > 1e-3
        assert shape == [1, kv // 2, LENGTH, HEAD]
        assert cached <= 1e-6


def test_fewer_key_heads_than_ranks_are_kept_whole(four_ranks):
    for error, _, shape, cached in four_ranks.run(served, {"kv": 2}):
        assert error <= 1e-5
        assert shape == [1, 2, LENGTH, HEAD]
        assert cached <= 1e-6


def test_compiled(two_ranks):
    for error, _, shape, cached in two_ranks.run(served, {"kv": 2}, True):
        assert error <= 1e-5
        assert shape == [1, 1, LENGTH, HEAD]
        assert cached <= 1e-6


def saved(folder):
    shard = ladderize.load(folder, mesh())
    model = Decoder()
    with eager_ladder(model, READS):
        return (decoded(shard) - decoded(model)).abs().max().item()


def test_caches_in_files(two_ranks, tmp_path):
    from ladderize.aot.files import write_shards

    program = export(Decoder(), EXAMPLE, dynamic_shapes=DIMS)
    write_shards(program, tmp_path / "shards", 2)
    assert max(two_ranks.run(saved, tmp_path / "shards")) <= 1e-5
