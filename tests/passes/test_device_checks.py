"""A model, a mesh and a group on different devices; CUDA tensors are fake."""

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._inductor import config as inductor_config
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, symbolic_trace

from ladderize import LadderConfig, LadderError, LadderWarning
from ladderize.passes.device_checks import (
    check_host_transfers,
    is_captured,
    refuse_other_devices,
    refuse_unserved_collectives,
    refuse_unserved_mesh,
)


@pytest.fixture
def group_of_cpu() -> Iterator[dist.ProcessGroup]:
    yield from group_of("cpu:gloo")


@pytest.fixture
def group_for_all() -> Iterator[dist.ProcessGroup]:
    yield from group_of("gloo")


def group_of(backend: str) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


class Sum(nn.Module):
    def __init__(self, group: str) -> None:
        super().__init__()
        self.group = group

    def forward(self, x, weight, scale):
        reduced = torch.ops._c10d_functional.all_reduce(x @ weight, "sum", self.group)
        return scale * torch.ops._c10d_functional.wait_tensor(reduced)


def graph_on(x: str, weight: str, group: str = "") -> GraphModule:
    gm = symbolic_trace(Sum(group))
    values = {"x": (x, (2, 4)), "weight": (weight, (4, 4)), "scale": ("cpu", ())}
    with FakeTensorMode():
        for node in gm.graph.nodes:
            device, shape = values.get(node.target, (x, (2, 4)))
            node.meta["val"] = torch.empty(shape, device=device)
    return gm


def weights(gm: GraphModule) -> dict:
    return {node: f"layer.{node.target}" for node in gm.graph.find_nodes(op="placeholder")[1:]}


def test_parameters_that_are_not_where_the_mesh_is_are_named() -> None:
    gm = graph_on("cpu", "cuda:0")
    with pytest.raises(LadderError, match="communicate on cpu") as caught:
        refuse_other_devices(weights(gm), "cpu")
    (blocker,) = caught.value.blockers
    assert blocker.what == "on cuda:0: layer.weight"  # not the scale, a number
    refuse_other_devices(weights(gm), "cuda")
    refuse_other_devices(weights(graph_on("cpu", "meta")), "cpu")


def test_a_mesh_that_its_group_cannot_serve(group_of_cpu: dist.ProcessGroup) -> None:
    refuse_unserved_mesh(group_of_cpu.group_name, "cpu")
    with pytest.raises(LadderError, match="mesh is on cuda, and its group sends from cpu only"):
        refuse_unserved_mesh(group_of_cpu.group_name, "cuda")


def test_gloo_on_cuda_is_warned_of_and_no_cuda_graph_captures_it(
    group_for_all: dist.ProcessGroup,
) -> None:
    name = group_for_all.group_name
    on_cuda, on_cpu = graph_on("cuda:0", "cuda:0", name), graph_on("cpu", "cpu", name)
    for gm, mesh_group in ((on_cuda, ""), (on_cpu, name)):
        with pytest.warns(LadderWarning, match="Stale reads hide little of gloo"):
            check_host_transfers(gm, mesh_group, is_captured=False)
        with pytest.raises(LadderError, match="No CUDA graph captures gloo"):
            check_host_transfers(gm, mesh_group, is_captured=True)
    with warnings.catch_warnings(action="error"):
        check_host_transfers(on_cpu, "", is_captured=True)


def test_cuda_graphs_are_asked_for_in_three_places() -> None:
    name = "triton.cudagraphs"
    assert is_captured(LadderConfig(mode="reduce-overhead"))
    assert is_captured(LadderConfig(lowering_options={name: True}))
    assert not is_captured(LadderConfig())
    with inductor_config.patch({name: True}):
        assert is_captured(LadderConfig())
        assert not is_captured(LadderConfig(lowering="aot_eager"))
        assert not is_captured(LadderConfig(lowering_options={name: False}))


def test_a_collective_that_its_group_cannot_serve(group_of_cpu: dist.ProcessGroup) -> None:
    name = group_of_cpu.group_name
    refuse_unserved_collectives(graph_on("cpu", "cpu", name))
    gm = graph_on("cuda:0", "cuda:0", name)
    with pytest.raises(LadderError, match="no backend for") as caught:
        refuse_unserved_collectives(gm)
    assert [blocker.what for blocker in caught.value.blockers] == ["all_reduce on cuda"]
