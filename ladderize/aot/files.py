"""A sharded program on disk: one graph for all ranks, one file of tensors a rank, a manifest.

DIR/graph.pt2                         rank-local graph, no weights
DIR/rank-00000-of-00002.safetensors   what rank 0 holds
DIR/manifest.json                     versions, options, plan, entries, hashes
"""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from ladderize.aot.archive import NOTE, parse_options, read_program
from ladderize.aot.checkpoint import Source, StateDict, match, open_checkpoint
from ladderize.aot.localize import LocalProgram, localize
from ladderize.aot.materialize import local_forms, read_entries, read_parts
from ladderize.aot.module import ShardedModule
from ladderize.aot.parallelize import Prepared, aot_config, together
from ladderize.aot.state import Entry
from ladderize.config import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.report.publish import changed_options

FORMAT = "ladderize-shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
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
    """Ladder and shard `program`, and write what `load` reads into the new directory `out`.

    One rank's tensors are in memory at a time, besides those of the program. `out` appears when
    everything is written, or not at all.

    Raises:
        LadderError: `out` exists and `force` is not given, or the program cannot be converted as
            asked.
    """
    out = Path(out)
    refuse_existing(out, force)
    config = config or LadderConfig()
    local = localize(program, num_ranks, config)
    source = StateDict({**program.state_dict, **program.constants})
    entries = [entry for entry in local.entries if entry.kind != "index"]
    names = {entry.name: entry.name for entry in entries}
    task = None if progress is None else progress.add_task("writing ranks", total=num_ranks)
    with _new_directory(out) as folder:
        _save_graph(local.program, folder / GRAPH)
        for rank in range(num_ranks):
            parts = read_entries(entries, source, names, rank, num_ranks, torch.device("cpu"))
            save_file(parts, folder / rank_file(rank, num_ranks), {"format": "pt"})
            if progress is not None and task is not None:
                progress.advance(task)
        (folder / MANIFEST).write_text(_manifest(local, config, folder))
    return local


def write_program(
    program: ExportedProgram, out: str | Path, config: LadderConfig, force: bool = False
) -> None:
    """`torch.export.save` to a file that appears whole or not at all, with a note of the options.

    Raises:
        LadderError: `out` exists and `force` is not given.
    """
    out = Path(out)
    refuse_existing(out, force)
    note = {"versions": _versions(), "options": dict(changed_options(config))}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as folder:
        path = Path(folder) / "program.pt2"
        torch.export.save(program, path, extra_files={NOTE: json.dumps(note)})
        path.replace(out)


def _save_graph(program: ExportedProgram, path: Path) -> None:
    with warnings.catch_warnings():
        # The placeholders of the weights have one element that stands for all.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, path)


def refuse_existing(out: Path, force: bool = False) -> None:
    """Raise unless `out` can be written: it is not there, or is a file or shards and `force`."""
    if out.is_dir() and force and not (out / MANIFEST).is_file():
        raise LadderError(
            f"{out} is a directory that ladderize did not write: it is not overwritten.",
            cure="name another place",
        )
    if out.exists() and not force:
        raise LadderError(f"{out} exists already.", cure="overwrite it with --force (force=True)")
    if not out.absolute().parent.is_dir():
        raise LadderError(f"{out.absolute().parent} is no directory.")


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` when its block ends well and is removed when it does not."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    old = folder.with_name(f"{folder.name}-old")
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp and safetensors make private ones
        for path in folder.iterdir():
            path.chmod(0o644)
        if out.exists():
            out.rename(old)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)


def _manifest(local: LocalProgram, config: LadderConfig, folder: Path) -> str:
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": _versions(),
        "options": dict(changed_options(config)),
        "num_ranks": local.num_ranks,
        "plan": {"digest": local.digest, "lines": list(local.lines)},
        "entries": [entry.to_json() for entry in local.entries],
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _hash(path)}
            for path in sorted(folder.iterdir())
        },
    }
    return json.dumps(data | {"sha256": _hash_of(data)}, indent=1)


def _versions() -> dict[str, str]:
    return {"ladderize": version("ladderize"), "torch": str(torch.__version__)}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


# ---- reading


def load(directory: str | Path, mesh: DeviceMesh | tuple[str, DeviceMesh]) -> ShardedModule:
    """This rank's module from a directory that `ladderize rewrite … --tp N` wrote.

    >>> shard = ladderize.load("llama-tp8", init_device_mesh("cuda", (8,)))

    Every rank of the mesh calls it. A rank reads the graph and its own tensors, after their hashes
    were checked; nothing in the directory is executed or unpickled.

    Raises:
        LadderError: on every rank: files are missing, changed or cut short, the directory was
            written for another number of ranks or by a later ladderize, or torch cannot read it.
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
    match(local_forms(local.entries, num_ranks), source)
    return local, lambda: read_parts(local.entries, source, mesh)


@dataclass(frozen=True)
class Shards:
    """A directory that `write_shards` wrote, its graph read and checked.

    Attributes:
        folder: where it is.
        local: the program of every rank.
        options: those of the rewrite that differ from the defaults.
        files: sizes and hashes by name.
    """

    folder: Path
    local: LocalProgram
    options: Mapping[str, Any]
    files: Mapping[str, Any]

    def source(self, rank: int) -> Source:
        """`rank`'s tensors, not read yet; their file is checked."""
        name = rank_file(rank, self.local.num_ranks)
        _check_files(self.folder, self.files, [name])
        return open_checkpoint(self.folder / name)

    def tensors(self, rank: int) -> dict[str, Tensor]:
        """What `rank` holds, by every name it is known by."""
        source = self.source(rank)
        parts = {name: part[...] for name, part in source.tensors(list(source.forms()))}
        found = {}
        for entry in self.local.entries:
            part = torch.tensor(entry.rows[rank]) if entry.rows else parts[entry.name]
            found.update(dict.fromkeys(entry.names, part))
        return found


def open_shards(folder: Path) -> Shards:
    """What is in a directory that `write_shards` wrote, but for the tensors.

    Raises:
        LadderError: files are missing, changed or cut short, or of another format.
    """
    manifest = _read_manifest(folder)
    _check_files(folder, manifest["files"], [GRAPH])
    local = LocalProgram(
        program=read_program(folder / GRAPH),
        entries=tuple(map(Entry.from_json, manifest["entries"])),
        num_ranks=manifest["num_ranks"],
        digest=manifest["plan"]["digest"],
        lines=tuple(manifest["plan"]["lines"]),
    )
    return Shards(folder, local, parse_options(manifest["options"]), manifest["files"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise LadderError(
            f"There is no {MANIFEST} in {folder}.", cure="ladderize rewrite … --tp N writes one"
        )
    try:
        data = json.loads(path.read_text())
        given = data.pop("sha256")
        is_ours = data["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LadderError(f"{path} is no manifest, or is cut short: {error!r}") from None
    if not is_ours or data["format_version"] != FORMAT_VERSION:
        found = f"{data['format']} {data['format_version']}"
        raise LadderError(f"{path} is of format {found}, wanted is {FORMAT} {FORMAT_VERSION}.")
    if given != _hash_of(data):
        raise LadderError(f"{path} was changed: its hash is another one.", cure=_AGAIN)
    return dict(data)


def _check_files(folder: Path, known: Mapping[str, Any], names: Sequence[str]) -> None:
    blockers = []
    for name in names:
        path = folder / name
        if not path.is_file():
            blockers.append(Blocker(f"{name} is missing"))
        elif path.stat().st_size != known[name]["bytes"]:
            size = f"{path.stat().st_size} bytes instead of {known[name]['bytes']}"
            blockers.append(Blocker(f"{name} has {size}"))
        elif _hash(path) != known[name]["sha256"]:
            blockers.append(Blocker(f"{name} was changed: its hash is another one"))
    if blockers:
        raise LadderError(
            f"The files in {folder} are not those that were written:", blockers, _AGAIN
        )


_AGAIN = "copy or write the directory again"
