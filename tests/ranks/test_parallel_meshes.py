"""Sharded models on 2 x 2 ranks, with FSDP2 and DDP, and resharded to other numbers of ranks."""

from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers.parallel_nets import eager_ladder, gradient_errors, make_net, shard
from helpers.parallel_steps import adamw, compiled, loss_of, make_batch, train
from helpers.ranks import Ranks
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

EXACT = 1e-9  # the nets are float64


# -- data parallelism


@cache
def square():
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))


def fsdp_inside(net, axis):
    return compiled(fully_shard(net, mesh=axis))


def fsdp_around(net, axis):
    return fully_shard(compiled(net), mesh=axis)


def fsdp_in_place(net, axis):
    net.compile(backend="ladderize", fullgraph=True, options={"lowering": "aot_eager"})
    return fully_shard(net, mesh=axis)


def ddp_around(net, axis):
    return DistributedDataParallel(compiled(net), process_group=axis.get_group())


def data_parallel(way, wrap):
    """The largest error of the gradients of the whole batch, and how far the standard's are."""
    axes, (net, whole, standard) = square(), (make_net(layers=1).double() for _ in range(3))
    net = shard(way, net, axes["tp"])
    run = wrap(net, axes["dp"])
    ids, targets = make_batch(batch=4)
    mine = slice(2 * axes["dp"].get_local_rank(), 2 * axes["dp"].get_local_rank() + 2)
    loss_of(run, (ids[mine], targets[mine])).backward()
    loss_of(partial(eager_ladder, whole), (ids, targets)).backward()
    loss_of(standard, (ids, targets)).backward()
    return tuple(
        max(gradient_errors(net, expected, axes["tp"]).values()) for expected in (whole, standard)
    )


FSDP = [("dtensor", wrap) for wrap in (fsdp_inside, fsdp_around, fsdp_in_place)]
EVERY_RUN = [("dtensor", fsdp_inside), ("megatron", ddp_around)]
DDP = [(way, ddp_around) for way in ("functions", "megatron", "ladderize")]


@pytest.mark.parametrize(
    ("way", "wrap"),
    [
        pytest.param(*case, marks=[] if case in EVERY_RUN else [pytest.mark.deep])
        for case in [*FSDP, ("sequence", fsdp_inside), *DDP]
    ],
)
def test_data_parallel_ranks_average_the_ladders_gradients(four_ranks, way, wrap):
    for error, standard in four_ranks.run(data_parallel, way, wrap):
        assert error <= EXACT
        assert standard > 1e-3


# -- checkpoints that other numbers of ranks continue


def net_and_optimizer(way):
    net = make_net().double()
    if way != "plain":
        net = shard(way, net, init_device_mesh("cpu", (dist.get_world_size(),)))
    return net, adamw(net)


def step(run, optimizer, index):
    optimizer.zero_grad()
    loss_of(run, make_batch(index)).backward()
    optimizer.step()


def full_parameters(net):
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).numpy()
        for name, p in parameters.items()
    }


def saved(way, folder):
    """Two steps, written to `folder`; then a third. The parameters after it."""
    net, optimizer = net_and_optimizer(way)
    run = compiled(net)
    for index in range(2):
        step(run, optimizer, index)
    model_state, optimizer_state = get_state_dict(net, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
    step(run, optimizer, 2)
    return full_parameters(net)


def resumed(way, folder):
    """The parameters after the third step, the first two being read from `folder`."""
    net, optimizer = net_and_optimizer(way)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1)  # all of them must come from the folder
    model_state, optimizer_state = get_state_dict(net, optimizer)
    dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
    set_state_dict(net, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    step(compiled(net), optimizer, 2)
    return full_parameters(net)


@pytest.fixture(scope="module")
def one_rank():
    with Ranks(1) as ranks:
        yield ranks


@pytest.mark.deep
def test_checkpoints_move_between_numbers_of_ranks(one_rank, two_ranks, four_ranks, tmp_path):
    folder = str(tmp_path)
    whole, standard = make_net().double(), make_net().double()
    train(whole, partial(eager_ladder, whole), 3)
    train(standard, standard, 3)

    def error(found, wanted):
        wanted = full_parameters(wanted)
        return max(abs(found[name] - wanted[name]).max() for name in wanted)

    ran = [
        *two_ranks.run(saved, "dtensor", folder),
        *one_rank.run(resumed, "plain", folder),
        *one_rank.run(resumed, "dtensor", folder),
        *two_ranks.run(resumed, "sequence", folder),
        *four_ranks.run(resumed, "dtensor", folder),
    ]
    for found in ran:
        assert error(found, whole) <= EXACT
        assert error(found, standard) > 1e-3
