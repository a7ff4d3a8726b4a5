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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh
from torch.export import ExportedProgram

from ladderize.aot.archive import read_program
from ladderize.aot.checkpoint import StateDict, match, open_checkpoint
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
) -> LocalProgram:
    """Ladder and shard `program`, and write what `load` reads into the new directory `out`.

    One rank's tensors are in memory at a time, besides those of the program. `out` appears when
    everything is written, or not at all.

    Raises:
        LadderError: `out` exists, or the program cannot be converted as asked.
    """
    out = Path(out)
    refuse_existing(out)
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


def write_program(program: ExportedProgram, out: str | Path) -> None:
    """`torch.export.save` to a new file, which appears whole or not at all.

    Raises:
        LadderError: `out` exists.
    """
    out = Path(out)
    refuse_existing(out)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as folder:
        torch.export.save(program, Path(folder) / "program.pt2")
        (Path(folder) / "program.pt2").rename(out)


def _save_graph(program: ExportedProgram, path: Path) -> None:
    with warnings.catch_warnings():
        # The placeholders of the weights have one element that stands for all.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, path)


def refuse_existing(out: Path) -> None:
    if out.exists():
        raise LadderError(f"{out} exists already.", cure="remove it, or name another place")
    if not out.absolute().parent.is_dir():
        raise LadderError(f"{out.absolute().parent} is no directory.")


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` when its block ends well and is removed when it does not."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp and safetensors make private ones
        for path in folder.iterdir():
            path.chmod(0o644)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _manifest(local: LocalProgram, config: LadderConfig, folder: Path) -> str:
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": {"ladderize": version("ladderize"), "torch": torch.__version__},
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
    manifest = _read_manifest(folder)
    if manifest["num_ranks"] != num_ranks:
        raise LadderError(
            f"{folder} was written for {manifest['num_ranks']} ranks, the mesh has {num_ranks}.",
            cure=f"ladderize rewrite … --tp {num_ranks}",
        )
    own_file = rank_file(rank, num_ranks)
    _check_files(folder, manifest["files"], [GRAPH, own_file])
    entries = tuple(map(Entry.from_json, manifest["entries"]))
    local = LocalProgram(
        program=read_program(folder / GRAPH),
        entries=entries,
        num_ranks=num_ranks,
        digest=manifest["plan"]["digest"],
        lines=tuple(manifest["plan"]["lines"]),
    )
    source = open_checkpoint(folder / own_file)
    match(local_forms(entries, num_ranks), source)
    return local, lambda: read_parts(entries, source, mesh)


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
