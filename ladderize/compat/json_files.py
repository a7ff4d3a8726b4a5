"""JSON from an untrusted file: its size is bounded, and duplicate keys are errors."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladderize.errors import LadderError

MOST_BYTES = 64 * 2**20


def read_json(path: Path, what: str, cure: str = "", most_bytes: int = MOST_BYTES) -> Any:
    """The data in `path`, which may be compressed with gzip.

    Args:
        what: name of the expected content in errors: "manifest".
        most_bytes: maximum bytes to read, after decompression.

    Raises:
        LadderError: the file cannot be read, is too large, or is not JSON.
    """
    too_large = LadderError(
        f"{path} is not a valid {what}: it has more than {most_bytes >> 20} MiB.", cure=cure
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
        raise LadderError(
            f"{path} is not a valid {what}, or is truncated: {error}", cure=cure
        ) from None
    return parse_json(data, path, what, cure)


def _sizes(file: Any) -> Iterator[int]:
    """The bytes of `file` read so far, after each piece. The pieces are dropped."""
    size = 0
    while piece := file.read(2**20):
        size += len(piece)
        yield size


def parse_json(data: bytes, where: object, what: str, cure: str = "") -> Any:
    """Parse `data` as JSON.

    Args:
        where: source of the data, for errors.
        what: name of the expected content in errors.

    Raises:
        LadderError: `data` is not JSON, is nested too deeply, or holds NaN or a duplicate key.
    """
    try:
        return json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # also for a wrong encoding and numbers with thousands of digits
        reason = str(error)
    raise LadderError(f"{where} is not a valid {what}, or is truncated: {reason}", cure=cure)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
