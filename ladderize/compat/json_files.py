"""JSON from a file that nobody vouches for: its size is bounded, and no key stands in it twice."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladderize.errors import LadderError

MOST_BYTES = 64 * 2**20


def read_json(path: Path, what: str, cure: str = "", most_bytes: int = MOST_BYTES) -> Any:
    """The data in `path`, which may be compressed by gzip.

    Args:
        what: the file is meant to be, for the error: "manifest".
        most_bytes: more is not read, nor decompressed.

    Raises:
        LadderError: the file cannot be read, is too large, or is no JSON.
    """
    too_large = LadderError(
        f"{path} is no {what}: it has more than {most_bytes >> 20} MiB.", cure=cure
    )
    try:
        with path.open("rb") as plain, gzip.GzipFile(fileobj=plain) as unpacked:
            file: Any = unpacked if plain.read(2) == b"\x1f\x8b" else plain
            plain.seek(0)
            if any(size > most_bytes for size in _sizes(file)):
                raise too_large
            file.seek(0)
            data = file.read()
    except OSError as error:  # also gzip's "not a gzip file"
        raise LadderError(f"{path} cannot be read: {error.strerror or error}", cure=cure) from None
    except (EOFError, zlib.error) as error:
        raise LadderError(f"{path} is no {what}, or is cut short: {error}", cure=cure) from None
    return parse_json(data, path, what, cure)


def _sizes(file: Any) -> Iterator[int]:
    """How much has been read of `file` after each piece, which is let go."""
    size = 0
    while piece := file.read(2**20):
        size += len(piece)
        yield size


def parse_json(data: bytes, where: object, what: str, cure: str = "") -> Any:
    """`data` as JSON.

    Args:
        where: the data comes from, for the error.
        what: the data is meant to be.

    Raises:
        LadderError: it is none, holds a key twice, NaN, or too many lists inside of each other.
    """
    try:
        return json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except RecursionError:
        reason = "it is too deep"
    except ValueError as error:  # also of the encoding, and of numbers with thousands of digits
        reason = str(error)
    raise LadderError(f"{where} is no {what}, or is cut short: {reason}", cure=cure)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} stands in it twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
