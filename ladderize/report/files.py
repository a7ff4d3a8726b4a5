"""Write files atomically, without replacing others by accident."""

import os
from pathlib import Path

from ladderize.errors import LadderError


def refuse_file(path: Path, force: bool) -> None:
    """Raise `LadderError` if a file cannot, or should not, be written to `path`."""
    if path.is_dir():
        raise LadderError(f"{path} is a directory.", cure="name a file")
    if path.exists() and not force:
        raise LadderError(
            f"{path} exists already.",
            cure="name another file, or overwrite it with --force (force=True)",
        )
    if not path.absolute().parent.is_dir():
        raise LadderError(f"{path.absolute().parent} is not a directory.", cure="create it first")


def write_file(path: Path, data: bytes | str, force: bool = False) -> None:
    """Write `data` next to `path`, then rename: readers see the old or the whole new file.

    Raises:
        LadderError: `path` exists and `force` is not set, or its folder does not exist.
    """
    refuse_file(path, force)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
