"""Check the devices of parameters and collectives before sharding and lowering.

    mesh on cuda, 290 parameters on cuda:0, 1 on cpu     refused, by name
    a group of "cpu:gloo", a sum on cuda:0               refused: the group has no CUDA backend
    a group of "gloo", a sum on cuda:0                   warning; refused with CUDA graphs

Dynamo itself refuses inputs on another device than the parameters.
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
    """Raise unless all parameters and buffers are on the mesh's device type, or on meta.

    Args:
        names: graph inputs of parameters and buffers, with their names.
        device_type: device type of the mesh.

    Raises:
        LadderError: lists the first names on each other device.
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
            f"The ranks communicate on {device_type}, but part of the model is on another device:",
            [Blocker(f"on {device}: {_list(found)}") for device, found in elsewhere.items()],
            f'call model.to("{device_type}"), or use a mesh on the device of the model',
        )


def refuse_unserved_collectives(gm: GraphModule) -> None:
    """Raise for collectives of `gm` on a device that their group has no backend for.

    Raises:
        LadderError: lists each collective with its source line.
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
    """Raise if the mesh's group has no backend for the mesh's device type.

    Raises:
        LadderError: lists the device types of the group's backends.
    """
    group = compat.find_process_group(group_name)
    if group is not None and device_type not in (known := compat.device_types(group)):
        devices = ", ".join(sorted(known))
        raise LadderError(
            f"The mesh is on {device_type}, but its group only has backends for {devices}.",
            cure=_CURE,
        )


def refuse_data_parallel(group_name: str) -> None:
    """Raise if DistributedDataParallel gives different batches to ranks of one mesh.

    Raises:
        LadderError: lists the ranks.
    """
    mesh, other = compat.find_process_group(group_name), compat.data_parallel_group()
    if mesh is None or other is None:
        return
    both = set(dist.get_process_group_ranks(mesh)) & set(dist.get_process_group_ranks(other))
    if len(both) > 1:
        raise LadderError(
            "DistributedDataParallel gives ranks of one mesh different batches:",
            [Blocker(f"ranks {', '.join(map(str, sorted(both)))}")],
            "do not wrap the model in DDP (a Trainer with several processes does): each rank of a "
            "mesh already has full gradients; or give DDP the group of another mesh axis",
        )


def is_captured(config: LadderConfig) -> bool:
    """Whether Inductor will capture CUDA graphs because of an option, a mode or its config."""
    settings = compat.inductor_settings(config.mode, config.lowering_options)
    captures = bool(compat.inductor_setting(settings, "triton.cudagraphs"))
    return config.lowering == "inductor" and captures


def check_host_transfers(gm: GraphModule, mesh_group: str, is_captured: bool) -> None:
    """Warn of gloo collectives on CUDA, which go through host memory.

    Args:
        gm: graph that may have its own collectives.
        mesh_group: name of the group of a CUDA mesh; "" for none.
        is_captured: whether CUDA graphs will capture the collectives.

    Raises:
        LadderError: CUDA graphs would capture a gloo collective, in which the host takes part.
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
            "CUDA graphs cannot capture gloo's collectives, which go through host memory.",
            cure=f"{_CURE}; or leave out mode=",
        )
    warnings.warn(
        LadderWarning(
            "Stale reads hide little of gloo's collectives on CUDA, which go through host memory."
        ),
        stacklevel=2,
    )


def _list(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
