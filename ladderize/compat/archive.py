"""Read a `.pt2` file without executing anything in it.

archive ── complete? ── only graphs and tensors? ── only known ops and sizes? ── torch.export.load

`torch.export.load` alone unpickles objects, evaluates dynamic sizes as Python and looks up any
torch function by name (seen in 2.11 to 2.15).
"""

import ast
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ladderize import compat  # registers the ops of sharded programs
from ladderize.compat.json_files import parse_json
from ladderize.compat.size_grammar import is_size
from ladderize.errors import Blocker, LadderError

NOTE = "ladderize.json"
"""The extra file in an archive that holds the options of `ladderize rewrite`."""
_NO_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    NotImplementedError,
)
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_OBJECTS = re.compile(r"/(custom_obj|opaque_obj)_[^/]*$|\.(so|cpp|py|cubin)$")
_OUTPUTS = re.compile(r"transformers\.[\w.]+")
_OPS = re.compile(r"torch\.ops\.[\w.]+|_operator\.\w+|math\.\w+|torch\._?sym_\w+|torch\.sym_\w+")


def read_program(path: str | Path) -> ExportedProgram:
    """Read the exported program in a `.pt2` file.

    Raises:
        LadderError: the file does not exist, is damaged, has another format, holds Python objects
            or compiled code, or cannot be read by this version of torch.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise LadderError(f"{path} {what}.", cure="pass a file written by torch.export.save")
    try:
        with zipfile.ZipFile(path) as archive:
            blockers = list(_strange(archive))
    except _NO_ARCHIVE as error:  # a LadderError of its JSON is a ValueError
        raise LadderError(
            f"{path} is not a .pt2 archive, or is truncated: {error}",
            cure="write it again with torch.export.save",
        ) from None
    if blockers:
        raise LadderError(f"{path} is refused because of its contents:", blockers)
    try:
        with _no_code():
            program = compat.load_archive(path)
    except Exception as error:
        raise LadderError(
            f"torch {torch.__version__} cannot read {path}:",
            [
                Blocker(
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                )
            ],
            "import the modules that define the classes of the program's inputs and outputs; if "
            "that does not help, export the model again with this version of torch",
        ) from error
    assert isinstance(program, ExportedProgram)
    return program


def read_note(path: str | Path) -> dict[str, Any] | None:
    """The options that `ladderize rewrite` stored in a `.pt2` file; None if it stored none.

    Raises:
        LadderError: the note is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"extra/{NOTE}")]
            data = archive.read(names[0]) if names else None
        return None if data is None else parse_options(parse_json(data, path, "note")["options"])
    except (*_NO_ARCHIVE, AttributeError) as error:
        raise LadderError(f"{path} has a damaged note of its options: {error!r}") from None


def parse_options(noted: Mapping[str, str]) -> dict[str, Any]:
    """Options parsed from text."""
    return {name: _parse(text) for name, text in noted.items()}


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _strange(archive: zipfile.ZipFile) -> Iterator[Blocker]:
    """Everything in an archive other than a graph of known ops and plain tensors."""
    packed = [info.filename for info in archive.infolist() if info.compress_type]
    if packed:
        yield Blocker(f"{packed[0]} is compressed; torch.export.save does not compress")
        return
    damaged = archive.testzip()
    if damaged:
        yield Blocker(f"{damaged} is damaged: its checksum is wrong")
        return
    names = archive.namelist()
    for name in names:
        if _OBJECTS.search(name):
            yield Blocker(f"{name} holds an object or code, not a tensor")
    graphs = [name for name in names if re.search(r"(^|/)models/[^/]+\.json$", name)]
    if len(graphs) != 1:
        yield Blocker(f"it holds {len(graphs)} exported programs, not one; is it truncated?")
    for name in graphs:
        graph = parse_json(archive.read(name), name, "graph")
        yield from _strange_graph(graph)
        _import_outputs(graph)


def _strange_graph(data: Any) -> Iterator[Blocker]:
    """Calls and expressions of a serialized graph other than ops and size arithmetic."""
    for found in _objects_in(data):
        target, size = found.get("target"), found.get("expr_str")
        if isinstance(target, str) and "inputs" in found and not _OPS.fullmatch(target):
            yield Blocker(f"it calls {target}, which is not an op")
        if isinstance(size, str) and not is_size(size):
            yield Blocker(f"a size is {size[:60]!r}")


def _import_outputs(data: Any) -> None:
    """Import the output classes that a program names, so that transformers registers them."""
    modules = {
        name.rpartition(".")[0]
        for found in _objects_in(data)
        for spec in (found.get("in_spec"), found.get("out_spec"))
        if isinstance(spec, str)
        for name in _OUTPUTS.findall(spec)
    }
    for module in modules:
        with suppress(ImportError):
            import_module(module)


def _objects_in(data: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON document, at any depth."""
    stack = [data]
    while stack:
        found = stack.pop()
        if isinstance(found, list):
            stack += found
        elif isinstance(found, dict):
            stack += found.values()
            yield found


@contextmanager
def _no_code() -> Iterator[None]:
    """Inside this context `torch.load` creates only tensors, whatever its caller asks for."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
