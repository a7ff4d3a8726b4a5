"""Write a file atomically, and replace no other by accident."""

import os
from pathlib import Path

from ladderize.errors import LadderError


def refuse_file(path: Path, force: bool) -> None:
    """Raise `LadderError` where no file can be written to `path`, or none should be."""
    if path.is_dir():
        raise LadderError(f"{path} is a directory.", cure="name a file")
    if path.exists() and not force:
        raise LadderError(f"{path} exists already.", cure="name another file, or force it")
    if not path.absolute().parent.is_dir():
        raise LadderError(f"{path.absolute().parent} is no directory.", cure="make it first")


def write_file(path: Path, data: bytes | str, force: bool = False) -> None:
    """Write `data` beside `path`, then rename it: a reader sees the old file or the whole new one.

    Raises:
        LadderError: `path` exists and `force` is not set, or its folder is not there.
    """
    refuse_file(path, force)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
