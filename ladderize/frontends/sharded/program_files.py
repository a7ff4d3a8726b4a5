"""A sharded program on disk: one graph for all ranks, one file of tensors per rank, a manifest.

DIR/graph.pt2                         rank-local graph, no weights
DIR/rank-00000-of-00002.safetensors   tensors of rank 0
DIR/engines/0f3c….plan                with lowering="tensorrt": an engine, the same for all ranks
DIR/manifest.json                     versions, options, plan, entries, hashes
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ladderize.compat.archive import NOTE, parse_options, read_program
from ladderize.config.ahead_of_time import aot_config
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.sharded.checkpoint import StateDict, TensorSource, match, open_checkpoint
from ladderize.frontends.sharded.directory import (
    MANIFEST,
    check_files,
    read_manifest,
    refuse_existing,
    sole_writer,
    whole_directory,
    write_manifest,
)
from ladderize.frontends.sharded.engine_files import ENGINES, build_engines, engines_of
from ladderize.frontends.sharded.localize import LocalProgram, localize
from ladderize.frontends.sharded.manifest import EntryRecord, FileRecord, parse_manifest
from ladderize.frontends.sharded.materialize import local_forms, read_entries, read_parts
from ladderize.frontends.sharded.module import ShardedModule
from ladderize.frontends.sharded.parallelize import Prepared, together
from ladderize.frontends.sharded.state import StateEntry
from ladderize.report.publish import changed_options

GRAPH = "graph.pt2"


def rank_file(rank: int, num_ranks: int) -> str:
    return f"rank-{rank:05d}-of-{num_ranks:05d}.safetensors"


# ---- writing


def write_shards(
    program: ExportedProgram,
    out: str | Path,
    num_ranks: int,
    config: LadderConfig | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> LocalProgram:
    """Convert and shard `program`, and write it to the directory `out` for `load`.

    With `lowering="tensorrt"`, the engines are written too. In addition to the tensors of the
    program, only one rank's tensors are in memory at a time. `out` is written atomically.

    Raises:
        LadderError: `out` exists and `force` is False, or the program cannot be converted as asked.
    """
    out = Path(out)
    refuse_existing(out, force)
    config = config or LadderConfig()
    local = localize(program, num_ranks, config)
    source = StateDict({**program.state_dict, **program.constants})
    entries = [entry for entry in local.entries if entry.kind != "index"]
    names = {entry.name: entry.name for entry in entries}
    task = None if progress is None else progress.add_task("writing ranks", total=num_ranks)
    num_bytes = num_ranks * local.bytes_per_rank
    with whole_directory(out, num_bytes) as folder:
        _save_graph(local.program, folder / GRAPH)
        if config.lowering == "tensorrt":
            # Build from the file that `load` will read, so that it finds the same engines.
            report = build_engines(
                read_program(folder / GRAPH), folder / ENGINES, config.lowering_options
            )
            local = dataclasses.replace(local, engines=tuple(report.describe()))
        for rank in range(num_ranks):
            parts = read_entries(entries, source, names, rank, num_ranks, torch.device("cpu"))
            save_file(parts, folder / rank_file(rank, num_ranks), {"format": "pt"})
            if progress is not None and task is not None:
                progress.advance(task)
        write_manifest(folder, _said(local, config))
    return local


def write_program(
    program: ExportedProgram, out: str | Path, config: LadderConfig, force: bool = False
) -> None:
    """Write a program atomically with `torch.export.save`, with a note of the options.

    Raises:
        LadderError: `out` exists and `force` is False.
    """
    out = Path(out)
    refuse_existing(out, force)
    note = {"versions": _versions(), "options": dict(changed_options(config))}
    tensors = (*program.state_dict.values(), *program.constants.values())
    num_bytes = sum(value.nbytes for value in tensors if isinstance(value, Tensor))
    with sole_writer(out, num_bytes) as folder:
        path = folder / "program.pt2"
        torch.export.save(program, path, extra_files={NOTE: json.dumps(note)})
        path.replace(out)


def _save_graph(program: ExportedProgram, path: Path) -> None:
    with warnings.catch_warnings():
        # The weights are expanded from a single element.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, path)


def _said(local: LocalProgram, config: LadderConfig) -> dict[str, Any]:
    plain = dataclasses.replace(config, lowering="inductor", lowering_options={})
    return {
        "versions": _versions(),
        "options": dict(changed_options(plain)),
        "engines": dict(config.lowering_options) if config.lowering == "tensorrt" else None,
        "num_ranks": local.num_ranks,
        "plan": {"lines": list(local.lines)},
        "entries": [EntryRecord.of(entry).model_dump(exclude_none=True) for entry in local.entries],
    }


def _versions() -> dict[str, str]:
    return {"ladderize": version("ladderize"), "torch": str(torch.__version__)}


# ---- reading


def load(directory: str | Path, mesh: DeviceMesh | tuple[str, DeviceMesh]) -> ShardedModule:
    """Load this rank's module from a directory that `ladderize rewrite … --tp N` wrote.

    >>> shard = ladderize.load("llama-tp8", init_device_mesh("cuda", (8,)))

    Every rank of the mesh must call this. A rank reads the graph and its own tensors after checking
    their hashes; nothing in the directory is executed or unpickled. If engines were written
    (`--lowering tensorrt`), they run the compute.

    Raises:
        LadderError: files are missing, changed or truncated, the directory was written for another
            number of ranks or by a later ladderize, torch cannot read it, or another version of
            TensorRT built the engines. Raised on all ranks.
    """
    config = aot_config(mesh=mesh)
    ranks = config.device_mesh
    assert ranks is not None
    return together(ranks, lambda: _prepare(Path(directory), ranks))


def _prepare(folder: Path, mesh: DeviceMesh) -> Prepared:
    rank, num_ranks = mesh.get_local_rank(), mesh.size()
    shards = open_shards(folder)
    local = shards.local
    if local.num_ranks != num_ranks:
        raise LadderError(
            f"{folder} was written for {local.num_ranks} ranks, the mesh has {num_ranks}.",
            cure=f"ladderize rewrite … --tp {num_ranks}",
        )
    source = shards.source(rank)

    def read() -> dict[str, Tensor]:
        return read_parts(local.entries, source, mesh)

    if shards.engines is None:
        return Prepared(local, read)
    program, lower = engines_of(local.program, shards.plans, shards.engines)
    return Prepared(dataclasses.replace(local, program=program), read, lower)


@dataclass(frozen=True)
class Shards:
    """A directory written by `write_shards`, with its graph read and checked.

    Attributes:
        folder: path of the directory.
        local: program of every rank.
        options: options of the rewrite that differ from the defaults.
        engines: options of TensorRT; None without engines.
        files: sizes and hashes of files, by name.
    """

    folder: Path
    local: LocalProgram
    options: Mapping[str, Any]
    engines: Mapping[str, Any] | None
    files: Mapping[str, FileRecord]

    @property
    def plans(self) -> Path:
        """The folder of its engines."""
        return self.folder / ENGINES

    def source(self, rank: int) -> TensorSource:
        """The source of `rank`'s tensors, after checking file, names, shapes and dtypes."""
        source = self._file(rank)
        match(local_forms(self.local.entries, self.local.num_ranks), source)
        return source

    def held(self, rank: int) -> dict[str, Tensor]:
        """The tensors in `rank`'s file, even if the graph does not need them."""
        source = self._file(rank)
        return {name: part[...] for name, part in source.tensors(list(source.forms()))}

    def _file(self, rank: int) -> TensorSource:
        name = rank_file(rank, self.local.num_ranks)
        check_files(self.folder, self.files, [name])
        return open_checkpoint(self.folder / name)


def open_shards(folder: Path) -> Shards:
    """Read a directory written by `write_shards`, except its tensors.

    Raises:
        LadderError: files are missing, changed or truncated, or have another format.
    """
    manifest = parse_manifest(read_manifest(folder), folder / MANIFEST)
    plans = [name for name in manifest.files if name.startswith(f"{ENGINES}/")]
    check_files(folder, manifest.files, [GRAPH, *plans])
    program = read_program(folder / GRAPH)
    entries = tuple(record.entry() for record in manifest.entries)
    _check_entries(program, entries, manifest.num_ranks, folder)
    local = LocalProgram(
        program=program,
        entries=entries,
        num_ranks=manifest.num_ranks,
        lines=tuple(manifest.plan.lines),
    )
    options = parse_options(manifest.options)
    LadderConfig.from_options(options)  # check the options
    return Shards(folder, local, options, manifest.engines, manifest.files)


def _check_entries(
    program: ExportedProgram, entries: Sequence[StateEntry], num_ranks: int, folder: Path
) -> None:
    """Raise `LadderError` unless the entries match the inputs of the graph."""
    known = {name: entry for entry in entries for name in entry.names}
    values = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    read = {
        str(spec.target): values[spec.arg.name]
        for spec in program.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT
    }
    blockers = [Blocker(f"{name} is only in the graph") for name in read.keys() - known.keys()]
    blockers += [Blocker(f"{name} is only in {MANIFEST}") for name in known.keys() - read.keys()]
    for name in read.keys() & known.keys():
        found, entry = read[name], known[name]
        wanted = (entry.local_shape(num_ranks), entry.dtype)
        if (list(found.shape), found.dtype) != wanted:
            what = f"the graph reads {found.dtype} {list(found.shape)}"
            blockers.append(Blocker(f"{name}: {what}, {MANIFEST} has {wanted[1]} {wanted[0]}"))
    if blockers:
        raise LadderError(
            f"{GRAPH} and {MANIFEST} in {folder} do not match:",
            sorted(blockers, key=str),
            "write the directory again",
        )
