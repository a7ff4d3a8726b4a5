"""What is not where the ranks communicate: found before anything is sharded or lowered.

    mesh on cuda, 290 parameters on cuda:0, 1 on cpu     refused, by name
    a group of "cpu:gloo", a sum of cuda:0               refused: nothing of it sends from there
    a group of "gloo", a sum of cuda:0                   warned of; with CUDA graphs refused

Inputs on another device than the parameters never come here: Dynamo refuses them as it traces.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, LadderWarning
from ladderize.graph import ops
from ladderize.graph.collectives import collective_of, group_name_of

_SHOWN = 3
_CURE = 'init_process_group("nccl") for CUDA, or "cpu:gloo,cuda:nccl" for both'


def refuse_other_devices(names: Mapping[Node, str], device_type: str) -> None:
    """Raise unless all parameters and buffers are where the mesh is. Meta tensors are nowhere.

    Args:
        names: the inputs that hold them.
        device_type: of the mesh.

    Raises:
        LadderError: naming the first of each device.
    """
    elsewhere: dict[str, list[str]] = defaultdict(list)
    for node, name in names.items():
        value = ops.value(node)
        if not isinstance(value, torch.Tensor) or not value.dim():  # a number may stay on the CPU
            continue
        if value.device.type not in (device_type, "meta"):
            elsewhere[str(value.device)].append(name)
    if elsewhere:
        raise LadderError(
            f"The ranks communicate on {device_type}, and not all of the model is there:",
            [Blocker(f"on {device}: {_list(found)}") for device, found in elsewhere.items()],
            f'model.to("{device_type}"), or a mesh of where the model is',
        )


def refuse_unserved_collectives(gm: GraphModule) -> None:
    """Raise for collectives of `gm` on a device that their group has no backend for.

    Raises:
        LadderError: naming the line of each.
    """
    blockers = []
    for node in gm.graph.nodes:
        group = compat.find_process_group(group_name_of(node)) if collective_of(node) else None
        if group is not None:
            devices = {tensor.device.type for tensor in ops.tensors(node)} - {"meta"}
            missing = devices - compat.device_types(group)
            blockers += [Blocker.at(node, f"{ops.op_name(node)} on {each}") for each in missing]
    if blockers:
        raise LadderError(
            "These collectives are on a device that their group has no backend for:",
            blockers,
            _CURE,
        )


def refuse_unserved_mesh(group_name: str, device_type: str) -> None:
    """Raise if nothing sends from where the mesh says that its ranks are.

    Raises:
        LadderError: with the devices that the group can send from.
    """
    group = compat.find_process_group(group_name)
    if group is not None and device_type not in (known := compat.device_types(group)):
        devices = ", ".join(sorted(known))
        raise LadderError(
            f"The mesh is on {device_type}, and its group sends from {devices} only.",
            cure=_CURE,
        )


def refuse_data_parallel(group_name: str) -> None:
    """Raise if ranks of a mesh, which compute one batch together, are given different ones.

    Raises:
        LadderError: with the ranks.
    """
    mesh, other = compat.find_process_group(group_name), compat.data_parallel_group()
    if mesh is None or other is None:
        return
    both = set(dist.get_process_group_ranks(mesh)) & set(dist.get_process_group_ranks(other))
    if len(both) > 1:
        raise LadderError(
            "DistributedDataParallel gives ranks of one mesh different batches:",
            [Blocker(f"ranks {', '.join(map(str, sorted(both)))}")],
            "do not wrap the model (nor leave it to a Trainer of several processes): over a mesh "
            "each rank has whole gradients; or give DDP the group of another axis of the ranks",
        )


def is_captured(config: LadderConfig) -> bool:
    """Whether Inductor will capture CUDA graphs, by an option, a mode or its own configuration."""
    settings = compat.inductor_settings(config.mode, config.lowering_options)
    captures = bool(compat.inductor_setting(settings, "triton.cudagraphs"))
    return config.lowering == "inductor" and captures


def check_host_transfers(gm: GraphModule, mesh_group: str, is_captured: bool) -> None:
    """Warn of collectives on CUDA that go through the memory of the host: gloo's.

    Args:
        gm: what communicates by itself is found in it.
        mesh_group: the name of the group of a mesh on CUDA, "" for none.
        is_captured: whether CUDA graphs will capture the collectives.

    Raises:
        LadderError: they cannot, for the host takes part in each.
    """
    names = {mesh_group} - {""}
    for node in gm.graph.nodes:
        if collective_of(node) and any(t.device.type == "cuda" for t in ops.tensors(node)):
            names.add(group_name_of(node))
    groups = map(compat.find_process_group, sorted(names))
    if not any(group and compat.backend_name(group, "cuda") == "gloo" for group in groups):
        return
    if is_captured:
        raise LadderError(
            "No CUDA graph captures gloo's collectives: they go through the memory of the host.",
            cure=f"{_CURE}; or leave mode= out",
        )
    warnings.warn(
        LadderWarning(
            "Stale reads hide little of gloo's collectives on CUDA, which go through the memory of "
            "the host."
        ),
        stacklevel=2,
    )


def _list(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
