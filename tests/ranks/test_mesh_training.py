"""Training an unsharded model over a mesh: whole gradients on every rank, so one step for all."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from helpers.graphs import Residual
from helpers.language_models import language_model
from helpers.ranks import mesh
from helpers.reads import HEAD
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.profiler import profile

import ladderize
from ladderize import LadderError
from ladderize.frontends.mesh.whole_gradients import WholeGradients
from ladderize.sharding.placement import Shard, local_indices
from ladderize.testing import eager_ladder

ONE_LAYER = {"llama": {"num_hidden_layers": 1}, "gpt2": {"n_layer": 1}}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ONE_LAYER["gpt2"] |= NO_DROPOUT


def make(name):
    return language_model(name, **ONE_LAYER[name]).train()


def batch(step):
    ids = torch.randint(1, 60, (2, 6), generator=torch.Generator().manual_seed(step))
    return {"input_ids": ids, "labels": ids}


def backward(model, step, autocast=False):
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        loss = model(**batch(step)).loss
    loss.backward()
    return loss.item()


def adamw_steps(model):
    """Losses and norms of three steps, each of two batches, clipped."""
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for step in range(3):
        losses = [backward(model, 2 * step + i) for i in range(2)]
        norm = clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        found += [*losses, norm.item()]
    return found


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def largest_error(found, wanted):
    assert found.keys() == wanted.keys()
    return max((found[name] - wanted[name]).abs().max().item() for name in wanted)


def after_adamw():
    """Errors of losses, norms and parameters; the norms; and this rank's parameters."""
    ours, whole = make("llama"), make("llama")
    found = adamw_steps(ladderize.compile(ours, mesh=mesh(), lowering="aot_eager"))
    with eager_ladder(whole, HEAD["llama"]):
        wanted = adamw_steps(whole)
    errors = [abs(a - b) for a, b in zip(found, wanted, strict=True)]
    parameters = values(ours)
    errors.append(largest_error(parameters, values(whole)))
    return max(errors), wanted[2::3], {name: p.numpy() for name, p in parameters.items()}


def test_clipped_adamw_steps_equal_one_process(two_ranks):
    (error, norms, first), (_, _, second) = two_ranks.run(after_adamw)
    assert error <= 1e-4
    assert min(norms) > 0.5  # all are clipped
    for name, parameter in first.items():
        assert (parameter == second[name]).all(), name  # to the last bit


def gradients_of(name, checkpointing=None, autocast=False, **options):
    """The largest error of a gradient, of the largest one; and the all-reduces of a step."""
    ours, whole = make(name), make(name)
    if checkpointing is not None:
        ours.gradient_checkpointing_enable(checkpointing)
    ladderize.compile(ours, mesh=mesh(), **options)
    backward(ours, 0, autocast)
    with eager_ladder(whole, HEAD[name]):
        backward(whole, 0, autocast)
    found, wanted = ({n: p.grad.clone() for n, p in m.named_parameters()} for m in (ours, whole))
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    with profile() as seen:
        backward(ours, 0, autocast)
    names = [event.name for event in seen.events()]
    return largest_error(found, wanted) / largest, names.count("_c10d_functional::all_reduce")


def of_fused_weights():
    return gradients_of("gpt2", lowering="eager")


def in_bfloat16():
    return gradients_of("llama", autocast=True, lowering="eager")


def checkpointed(use_reentrant):
    how = {"use_reentrant": use_reentrant}
    again = gradients_of("llama", how, lowering="aot_eager")
    return *again, gradients_of("llama", lowering="aot_eager")[1]


def test_the_gradients_of_fused_weights_are_whole(two_ranks):
    for error, _ in two_ranks.run(of_fused_weights):
        assert error <= 1e-5


@pytest.mark.deep
def test_autocast_over_a_mesh(two_ranks):
    """Within bfloat16's precision."""
    for error, _ in two_ranks.run(in_bfloat16):
        assert error <= 3e-2


@pytest.mark.parametrize("use_reentrant", [False, pytest.param(True, marks=pytest.mark.deep)])
def test_checkpointed_layers_are_computed_again(two_ranks, use_reentrant):
    for error, again, once in two_ranks.run(checkpointed, use_reentrant):
        assert error <= 1e-5
        assert again > once  # branches are reduced again in the backward


@pytest.mark.usefixtures("first_of_two")
def test_different_batches_on_the_ranks_of_a_mesh_are_refused():
    net = ladderize.compile(Residual(2), mesh=mesh(), lowering="eager")
    wrapped = DistributedDataParallel(net)
    with pytest.raises(LadderError, match="different batches") as caught:
        wrapped(torch.ones(2, 8))
    assert "ranks 0, 1" in str(caught.value)


def data_parallel():
    """The largest error of a gradient, averaged over the pairs of ranks that share a model."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    torch.manual_seed(0)
    net = Residual(2)
    whole = copy.deepcopy(net)
    batches = [torch.randn(3, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    ladderize.compile(net, mesh=grid["model"], lowering="eager")
    run = DistributedDataParallel(net, process_group=grid["data"].get_group())
    run(batches[grid["data"].get_local_rank()]).square().mean().backward()
    (sum(whole.ladder(x).square().mean() for x in batches) / 2).backward()
    return largest_error(*({n: p.grad for n, p in m.named_parameters()} for m in (net, whole)))


@pytest.mark.deep
def test_data_parallel_over_another_axis(four_ranks):
    assert max(four_ranks.run(data_parallel)) <= 1e-5


PLACEMENTS = [Shard(0, (4,)), Shard(1, (4, 2)), Shard(0, (4, 2), whole=(1,))]


def gathered():
    """Gradients of several kinds, gathered from the parts that each rank has."""
    whole = [torch.arange(24.0).reshape(4, 6), torch.randn(3, 6), torch.randn(6).double()]
    known = [torch.full_like(gradient, torch.nan) for gradient in whole]
    for gradient, full, placement in zip(known, whole, PLACEMENTS, strict=True):
        for entries in local_indices(placement, dist.get_rank(), 2):
            at = (slice(None),) * placement.dim + (slice(entries.start, entries.stop),)
            gradient[at] = full[at]
    found = WholeGradients([*PLACEMENTS, Shard(0, (2,))], mesh().get_group()).gather([*known, None])
    assert found.pop() is None
    return all(map(torch.equal, found, whole))


def test_parts_are_gathered_however_they_lie(two_ranks):
    assert two_ranks.run(gathered) == [True, True]
