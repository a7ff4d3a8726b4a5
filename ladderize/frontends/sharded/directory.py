"""A directory of files that belong together: it appears whole, and its manifest knows each by hash.

DIR/manifest.json      format, what the writer has to say, size and SHA-256 of every other file
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladderize.compat.json_files import read_json
from ladderize.errors import Blocker, LadderError

if TYPE_CHECKING:
    from ladderize.frontends.sharded.manifest import FileRecord

FORMAT = "ladderize-shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_AGAIN = "copy or write the directory again"


# ---- writing


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
def whole_directory(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` when its block ends well and is removed when it does not."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    old = folder.with_name(f"{folder.name}-old")
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp and safetensors make private ones
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
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


def write_manifest(folder: Path, said: Mapping[str, Any]) -> None:
    """Over all files that are in `folder` now; `said` is what `read_manifest` returns with them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **said,
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": _hash(path),
            }
            for path in files
        },
    }
    (folder / MANIFEST).write_text(json.dumps(data | {"sha256": _hash_of(data)}, indent=1))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


# ---- reading


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the writer had to say (`manifest.py` says of which form), with `files`.

    Raises:
        LadderError: there is none, it was changed or cut short, or is of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise LadderError(
            f"There is no {MANIFEST} in {folder}.", cure="ladderize rewrite … --tp N writes one"
        )
    data = read_json(path, "manifest", _AGAIN)
    if not isinstance(data, dict) or not {"format", "format_version", "sha256"} <= data.keys():
        raise LadderError(f"{path} is no manifest of {FORMAT}.", cure=_AGAIN)
    given, format_, version = (data.pop(key) for key in ("sha256", "format", "format_version"))
    if (format_, version) != (FORMAT, FORMAT_VERSION):
        found = f"{str(format_)[:40]} {str(version)[:40]}"
        raise LadderError(f"{path} is of format {found}, wanted is {FORMAT} {FORMAT_VERSION}.")
    if given != _hash_of({"format": format_, "format_version": version, **data}):
        raise LadderError(f"{path} was changed: its hash is another one.", cure=_AGAIN)
    return data


def check_files(folder: Path, known: Mapping[str, "FileRecord"], names: Sequence[str]) -> None:
    """Raise `LadderError` unless the files `names` are those that the manifest knows."""
    blockers = []
    for name in names:
        path, wanted = folder / name, known.get(name)
        if wanted is None:
            blockers.append(Blocker(f"{name} is not in the manifest"))
        elif not path.is_file():
            blockers.append(Blocker(f"{name} is missing"))
        elif path.stat().st_size != wanted.bytes:
            size = f"{path.stat().st_size} bytes instead of {wanted.bytes}"
            blockers.append(Blocker(f"{name} has {size}"))
        elif _hash(path) != wanted.sha256:
            blockers.append(Blocker(f"{name} was changed: its hash is another one"))
    if blockers:
        raise LadderError(
            f"The files in {folder} are not those that were written:", blockers, _AGAIN
        )
