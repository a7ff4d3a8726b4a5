"""A rank's part of a parameter follows the parameter, however it is written."""

import gc
import weakref

import numpy
import pytest
import torch
from torch import nn

import ladderize
from ladderize.frontends.mesh.local_parts import PARTS, Place
from ladderize.sharding.placement import Shard, take_local

ROWS = Shard(0, (8,))
COLUMNS = Shard(1, (6,))
FUSED = Shard(0, (4, 2, 2), whole=(1,))


def place(placement):
    return Place(placement, "group", 1, 2, is_view=placement.is_one_stretch)


def make():
    torch.manual_seed(0)
    return nn.Linear(6, 8, bias=False).requires_grad_(False)


def with_other_memory(weight):
    weight.data = weight.data * 0.5


def there_and_back(net):
    """The old memory is free when the last is asked for: it may come to lie at the same address."""
    net.to(torch.float64)
    net.to(torch.float32)
    net.weight.mul_(2)


NOTICED = {
    "in place": lambda net: net.weight.mul_(0.5),
    "through detach()": lambda net: net.weight.detach().mul_(0.5),
    "other memory": lambda net: with_other_memory(net.weight),
    "a cast": lambda net: net.to(torch.bfloat16),
    "casts there and back": there_and_back,
    "load_state_dict": lambda net: net.load_state_dict({"weight": torch.ones(8, 6)}),
    "another parameter": lambda net: net.load_state_dict({"weight": torch.ones(8, 6)}, assign=True),
    "an optimizer": lambda net: step(net),
    "a swap with averaged weights": lambda net: swap(net),
}
WITHOUT_A_TRACE = {
    "copied through .data": lambda net: net.weight.data.copy_(torch.ones(8, 6)),
    "scaled through .data": lambda net: net.weight.data.mul_(0.5),
}


def step(net):
    net.requires_grad_()
    net.weight.grad = torch.ones(8, 6)
    torch.optim.SGD(net.parameters(), lr=1.0).step()


def swap(net):
    """The memory of the averaged weights takes the place of the trained ones."""
    average = torch.full((8, 6), 3.0)
    net.weight.data, average = average, net.weight.data


def is_up_to_date(net, placement):
    part = PARTS.get(net.weight, place(placement)).local
    return torch.equal(part, take_local(net.weight, placement, 1, 2))


def check_that_it_reaches_the_part(write, placement):
    net = make()
    before = PARTS.get(net.weight, place(placement)).local.clone()
    write(net)
    assert is_up_to_date(net, placement)
    assert not torch.equal(PARTS.get(net.weight, place(placement)).local, before)


@pytest.mark.parametrize("placement", [ROWS, COLUMNS, FUSED], ids=["rows", "columns", "fused"])
@pytest.mark.parametrize("way", NOTICED)
def test_a_write_reaches_the_part(way, placement):
    check_that_it_reaches_the_part(NOTICED[way], placement)


@pytest.mark.parametrize("placement", [ROWS, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize("way", WITHOUT_A_TRACE)
def test_a_write_without_a_trace_reaches_a_view(way, placement):
    check_that_it_reaches_the_part(WITHOUT_A_TRACE[way], placement)


@pytest.mark.parametrize("way", WITHOUT_A_TRACE)
def test_a_fused_weight_is_cut_anew_by_refresh(way):
    net = make()
    PARTS.get(net.weight, place(FUSED))
    WITHOUT_A_TRACE[way](net)
    ladderize.refresh(net)
    assert is_up_to_date(net, FUSED)


def test_other_memory_at_the_same_address_is_noticed():
    """As after casts there and back; the address alone would not tell."""
    net, memory = make(), numpy.ones((8, 6), dtype=numpy.float32)
    net.weight.data = torch.from_numpy(memory)
    PARTS.get(net.weight, place(FUSED))
    address, version = net.weight.data_ptr(), net.weight._version
    memory[:] = 2
    net.weight.data = torch.from_numpy(memory)
    assert (net.weight.data_ptr(), net.weight._version) == (address, version)
    assert is_up_to_date(net, FUSED)


def test_parts_that_are_views_are_no_memory_and_keep_no_parameter_alive():
    net = make()
    weight, part = weakref.ref(net.weight), PARTS.get(net.weight, place(COLUMNS)).local
    assert part.untyped_storage().data_ptr() == net.weight.untyped_storage().data_ptr()
    assert part.stride() == net.weight.stride()
    del part, net
    gc.collect()
    assert weight() is None


def test_a_copy_keeps_no_memory_alive():
    net = make()
    memory = weakref.ref(net.weight.data.untyped_storage())
    PARTS.get(net.weight, place(FUSED))
    with_other_memory(net.weight)
    gc.collect()
    assert memory() is None
