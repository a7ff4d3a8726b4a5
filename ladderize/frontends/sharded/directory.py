"""Directories that are written atomically, with a manifest of all files and their hashes.

DIR/manifest.json      format, data of the writer, size and SHA-256 of every other file
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ladderize.compat.json_files import read_json
from ladderize.errors import Blocker, LadderError

if TYPE_CHECKING:
    from ladderize.frontends.sharded.manifest import FileRecord

FORMAT = "ladderize-shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_OLD = "-old"
_AGAIN = "copy or write the directory again"


# ---- writing


def refuse_existing(out: Path, force: bool = False) -> None:
    """Raise unless `out` can be written: it does not exist, or is a file or shards and `force`."""
    if out.is_dir() and force and not (out / MANIFEST).is_file():
        raise LadderError(
            f"{out} is a directory that ladderize did not write: it is not overwritten.",
            cure="name another place",
        )
    if out.exists() and not force:
        raise LadderError(f"{out} exists already.", cure="overwrite it with --force (force=True)")
    if not out.absolute().parent.is_dir():
        raise LadderError(f"{out.absolute().parent} is not a directory.")


@contextmanager
def sole_writer(out: Path, num_bytes: int) -> Iterator[Path]:
    """A temporary folder next to `out`, removed when the block ends.

    Files left by a killed writer of `out` are removed first.

    Args:
        out: path that will be written.
        num_bytes: approximate number of bytes to write.

    Raises:
        LadderError: another process is writing `out`, the disk is full, or the folder cannot be
            written.
    """
    parent, prefix = out.absolute().parent, f".{out.name}.ladderize-"
    try:
        with _locked(parent / f".{out.name}.lock", out):
            _clear(parent, prefix, out)
            free = shutil.disk_usage(parent).free
            if free < num_bytes:
                raise LadderError(
                    f"{out} cannot be written: it takes {num_bytes >> 20} MiB, and "
                    f"{free >> 20} MiB are free.",
                    cure="free some space, or choose a path on another disk",
                )
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise LadderError(f"{out} cannot be written: {why}.") from error


@contextmanager
def _locked(lock: Path, out: Path) -> Iterator[None]:
    """Lock `out` for one writer. The lock of a killed process is released."""
    while True:
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LadderError(
                    f"{out} is being written by another process.", cure="wait for it"
                ) from None
            if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(held.fileno())):
                continue  # the last holder has just removed it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _clear(parent: Path, prefix: str, out: Path) -> None:
    for left in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        if left.name.endswith(_OLD) and not out.exists():
            left.rename(out)  # killed before the new one took its place
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


@contextmanager
def whole_directory(out: Path, num_bytes: int) -> Iterator[Path]:
    """A directory that becomes `out` if the block succeeds, and is removed otherwise.

    Raises:
        LadderError: as for `sole_writer`.
    """
    with sole_writer(out, num_bytes) as place:
        folder = place / out.name
        folder.mkdir()
        yield folder
        folder.chmod(0o755)  # safetensors makes private files
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        old = place.with_name(f"{place.name}{_OLD}")
        if out.exists():
            out.rename(old)
        try:
            folder.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)


def write_manifest(folder: Path, said: Mapping[str, Any]) -> None:
    """Write the manifest of all files in `folder`; `read_manifest` returns them with `said`."""
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
    """The data of the writer (in the form of `manifest.py`), with `files`.

    Raises:
        LadderError: the manifest is missing, changed or truncated, or has another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise LadderError(
            f"There is no {MANIFEST} in {folder}.", cure="ladderize rewrite … --tp N writes one"
        )
    data = read_json(path, "manifest", _AGAIN)
    if not isinstance(data, dict) or not {"format", "format_version", "sha256"} <= data.keys():
        raise LadderError(f"{path} is not a manifest of {FORMAT}.", cure=_AGAIN)
    given, format_, version = (data.pop(key) for key in ("sha256", "format", "format_version"))
    if (format_, version) != (FORMAT, FORMAT_VERSION):
        found = f"{str(format_)[:40]} {str(version)[:40]}"
        raise LadderError(f"{path} has format {found}, expected {FORMAT} {FORMAT_VERSION}.")
    if given != _hash_of({"format": format_, "format_version": version, **data}):
        raise LadderError(f"{path} was changed: its hash differs.", cure=_AGAIN)
    return data


def check_files(folder: Path, known: Mapping[str, "FileRecord"], names: Sequence[str]) -> None:
    """Raise `LadderError` unless the files `names` match the manifest."""
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
            blockers.append(Blocker(f"{name} was changed: its hash differs"))
    if blockers:
        raise LadderError(
            f"The files in {folder} differ from those that were written:", blockers, _AGAIN
        )
