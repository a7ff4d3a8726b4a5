"""A ladder under accelerate, on two ranks: DDP, and FSDP2 as far as it works on CPU."""

import os

import accelerate
import pytest
import torch
import torch.distributed as dist
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from helpers.graphs import Residual
from helpers.language_models import language_model
from helpers.reads import HEAD
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ladderize
from ladderize.testing import eager_ladder

STEPS, RATE = 3, 0.1
TEXTS = torch.arange(96).reshape(-1, 8) * 7 % 60
"""In each step the first rank takes the first two, the second one the two after them."""


def batch(step, rank):
    return TEXTS[4 * step + 2 * rank :][:2]


def losses_of(model, backward=torch.Tensor.backward):
    """Of each step on this rank."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=RATE), []
    for step in range(STEPS):
        ids = batch(step, dist.get_rank())
        loss = model(input_ids=ids, labels=ids).loss
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def reference(ladder):
    """Losses on this rank of one process that sees the batches of both."""
    model, losses = language_model("llama").train(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    reads = HEAD["llama"] if ladder else []
    with eager_ladder(model, reads, staleness=int(ladder)):
        for step in range(STEPS):
            both = [
                model(input_ids=ids, labels=ids).loss for ids in (batch(step, 0), batch(step, 1))
            ]
            (sum(both) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(both[dist.get_rank()].item())
    return losses


def accelerator():
    """As under `accelerate launch --cpu`."""
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, ACCELERATE_USE_CPU="1")
    return accelerate.Accelerator(cpu=True)


def by_ddp(order):
    model, accelerated = language_model("llama").train(), accelerator()
    if order == "before":
        model = accelerated.prepare(ladderize.compile(model, lowering="aot_eager"))
    else:
        model = ladderize.compile(accelerated.prepare(model), lowering="aot_eager")
    assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
    return losses_of(model, accelerated.backward), reference(True), reference(False)


@pytest.mark.parametrize("order", ["after", pytest.param("before", marks=pytest.mark.deep)])
def test_a_ladder_that_accelerate_prepares(two_ranks, order):
    for found, ladder, standard in two_ranks.run(by_ddp, order):
        assert found == pytest.approx(ladder, abs=1e-5)
        assert found != pytest.approx(standard, abs=1e-3)


def by_fsdp2():
    model = language_model("llama").train()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    ladderize.compile(model, lowering="aot_eager")
    return losses_of(model), reference(True)


def test_a_ladder_that_is_fully_sharded_as_a_whole(two_ranks):
    for found, ladder in two_ranks.run(by_fsdp2):
        assert found == pytest.approx(ladder, abs=1e-5)


def by_fsdp2_of_accelerate():
    """accelerate takes FSDP on accelerators alone, so this calls what it would."""
    accelerated, model = accelerator(), language_model("llama").train()
    accelerated.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="no_wrap", cpu_ram_efficient_loading=False
    )
    # Dynamo was reset, which ends ladderize's watch of its errors until the next compilation.
    ladderize.compile(Residual(), lowering="eager")(torch.randn(3, 8))
    ladderize.compile(fsdp2_prepare_model(accelerated, model), lowering="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        losses_of(model)
    return caught.value.__notes__


def test_fsdp2_as_accelerate_does_it_is_refused(two_ranks):
    """It shards the embedding and the head apart, whatever its policy of wrapping."""
    for (note,) in two_ranks.run(by_fsdp2_of_accelerate):
        assert "ladderize: fully_shard on a part of the model" in note
        assert "call fully_shard on the whole model only" in note
