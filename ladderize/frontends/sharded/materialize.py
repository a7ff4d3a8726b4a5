"""Read the tensors of a rank-local program: slices of a checkpoint, buffers and caches.

entries + source ── match ── read this rank's parts, one by one ── {name: tensor}
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ladderize import compat
from ladderize.frontends.sharded.checkpoint import TensorSource, match
from ladderize.frontends.sharded.state import StateEntry
from ladderize.sharding.placement import Replicate


def read_entries(
    entries: Sequence[StateEntry],
    source: TensorSource,
    names: Mapping[str, str],
    rank: int,
    num_ranks: int,
    device: torch.device,
    show: bool = False,
) -> dict[str, Tensor]:
    """Read `rank`'s part of each entry in `names` from `source`, one tensor at a time.

    Args:
        entries: entries of the program.
        source: source of the tensors.
        names: entry name -> name in `source`, from `match`.
        rank: rank on the mesh axis.
        num_ranks: size of the mesh axis.
        device: device of the parts.
        show: whether to show a progress bar on stderr.
    """
    by_source = {names[entry.name]: entry for entry in entries if entry.name in names}
    total = sum(entry.local_bytes(num_ranks) for entry in by_source.values())
    parts: dict[str, Tensor] = {}
    with _progress(show) as progress:
        task = progress.add_task("reading weights", total=total)
        for name, tensor in source.tensors(list(by_source)):
            entry = by_source[name]
            parts[entry.name] = entry.read(tensor, rank, num_ranks, device)
            progress.advance(task, entry.local_bytes(num_ranks))
    return parts


def read_slices(
    entries: Sequence[StateEntry], own: Mapping[str, Tensor], source: TensorSource, mesh: DeviceMesh
) -> dict[str, Tensor]:
    """Read this rank's part of every tensor from full tensors. Rank 0 shows a progress bar.

    Args:
        entries: entries of the program.
        own: buffers and constants of the traced model, used if `source` does not have them.
        source: checkpoint.
        mesh: mesh with this rank.
    """
    rank, num_ranks = mesh.get_local_rank(), mesh.size()
    device = compat.current_device(mesh.device_type)
    entries = [entry for entry in entries if entry.kind != "index"]
    names = match(entries, source)
    tensors = read_entries(entries, source, names, rank, num_ranks, device, rank == 0)
    for entry in entries:
        if entry.name not in tensors:
            tensors[entry.name] = entry.read(own[entry.name].detach(), rank, num_ranks, device)
    return tensors


def read_parts(
    entries: Sequence[StateEntry], source: TensorSource, mesh: DeviceMesh
) -> dict[str, Tensor]:
    """Read this rank's tensors from a file that holds only these."""
    parts = local_forms(entries, mesh.size())
    rank, device = mesh.get_local_rank(), compat.current_device(mesh.device_type)
    return read_entries(parts, source, match(parts, source), 0, 1, device, rank == 0)


def local_forms(entries: Sequence[StateEntry], num_ranks: int) -> list[StateEntry]:
    """The entries of one rank's file: all tensors except indices, with local shapes."""
    return [
        dataclasses.replace(
            entry,
            shape=tuple(entry.local_shape(num_ranks)),
            placement=Replicate(),
            is_persistent=True,
            aliases=(),
        )
        for entry in entries
        if entry.kind != "index"
    ]


def _progress(show: bool) -> Progress:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn()]
    console = Console(stderr=True)
    return Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not show
    )
