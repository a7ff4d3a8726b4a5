"""KV caches that the module owns: local size, in-place writes, values of one process."""

import pytest
import torch
import torch.distributed as dist
from helpers.cached_decoder import EXAMPLE, HEAD, LENGTH, READS, Decoder
from helpers.ranks import mesh
from torch.export import Dim, export

import ladderize
from ladderize.testing import eager_ladder

DIMS = ({1: Dim("new", max=LENGTH)}, {0: Dim("new", max=LENGTH)})


def decoded(model):
    """The logits of a prefill of six tokens and of three steps after it."""
    ids = torch.arange(9)[None] * 7 % 64
    with torch.no_grad():
        logits = [model(ids[:, :6], torch.arange(6))]
        logits += [model(ids[:, i : i + 1], torch.tensor([i])) for i in (6, 7, 8)]
    return torch.cat(logits, 1)


def shard_of(**options):
    return ladderize.parallelize(Decoder(**options), mesh(), EXAMPLE, dynamic_shapes=DIMS)


def served(options):
    shard, model = shard_of(**options), Decoder(**options)
    with eager_ladder(model, READS):
        expected = decoded(model)
    error = (decoded(shard) - expected).abs().max().item()
    standard = (decoded(Decoder(**options)) - expected).abs().max().item()
    own = shard.get_buffer("layers.0.keys")
    part = model.layers[0].keys.chunk(dist.get_world_size(), 1)
    is_part = own.shape[1] * dist.get_world_size() == options["kv"]
    kept = part[dist.get_rank()] if is_part else model.layers[0].keys
    return error, standard, list(own.shape), (own - kept).abs().max().item()


SPELLINGS = ["index_copy_", "cache[:, :, positions] ="]
EVERY_RUN = (4, SPELLINGS[1])  # and the other spelling with one key head, and from files


@pytest.mark.parametrize(
    ("kv", "spelling"),
    [
        pytest.param(kv, spelling, marks=[] if (kv, spelling) == EVERY_RUN else [pytest.mark.deep])
        for kv in (2, 4)
        for spelling in SPELLINGS
    ],
)
def test_each_rank_keeps_the_keys_of_its_heads(two_ranks, kv, spelling):
    for error, standard, shape, cached in two_ranks.run(served, {"kv": kv, "spelling": spelling}):
        assert error <= 1e-5
        assert standard > 1e-3
        assert shape == [1, kv // 2, LENGTH, HEAD]
        assert cached <= 1e-6


def test_fewer_key_heads_than_ranks_are_kept_whole(two_ranks):
    check_whole(two_ranks.run(served, {"kv": 1}), 1)


@pytest.mark.deep
def test_fewer_key_heads_than_four_ranks(four_ranks):
    check_whole(four_ranks.run(served, {"kv": 2}), 2)


def check_whole(outcomes, kv):
    for error, _, shape, cached in outcomes:
        assert error <= 1e-5
        assert shape == [1, kv, LENGTH, HEAD]
        assert cached <= 1e-6


@pytest.mark.deep
@pytest.mark.usefixtures("first_of_two")
def test_compiled():
    """By Inductor: as in eager mode, the caches too."""
    shard = shard_of()
    keys = shard.get_buffer("layers.0.keys")
    expected, cached = decoded(shard), keys.clone()
    for buffer in shard.buffers():
        buffer.zero_()
    run = torch.compile(shard, backend="ladderize", fullgraph=True)
    assert (decoded(run) - expected).abs().max() <= 1e-5
    assert list(keys.shape) == [1, 1, LENGTH, HEAD]
    assert keys.abs().max() > 0
    assert (keys - cached).abs().max() <= 1e-6


def saved(folder):
    shard = ladderize.load(folder, mesh())
    model = Decoder()
    with eager_ladder(model, READS):
        error = (decoded(shard) - decoded(model)).abs().max().item()
    return error, list(shard.get_buffer("layers.0.keys").shape)


def test_caches_in_files(two_ranks, tmp_path):
    from ladderize.frontends.sharded.program_files import write_shards

    program = export(Decoder(), EXAMPLE, dynamic_shapes=DIMS)
    write_shards(program, tmp_path / "shards", 2)
    for error, shape in two_ranks.run(saved, tmp_path / "shards"):
        assert error <= 1e-5
        assert shape == [1, 1, LENGTH, HEAD]
