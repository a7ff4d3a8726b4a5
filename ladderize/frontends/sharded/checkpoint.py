"""Read a rank's slices of a checkpoint, one tensor at a time, after all names and shapes match.

DIR/model.safetensors.index.json     weight_map: name -> file
DIR/model-00001-of-00002.safetensors get_slice(name)[rows, columns] reads only those
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ladderize.compat.json_files import read_json
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.sharded.state import StateEntry

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """Shape and dtype of a tensor, known before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorSource(Protocol):
    """Named tensors that can be read in parts."""

    def forms(self) -> Mapping[str, Form]:
        """The names, shapes and dtypes, without reading values."""

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Each of `names` with an object to index for a part, in the order of reading."""


@dataclass(frozen=True)
class StateDict:
    """Tensors in memory."""

    state: Mapping[str, Tensor]

    def forms(self) -> dict[str, Form]:
        return {name: Form(tuple(t.shape), t.dtype) for name, t in self.state.items()}

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, self.state[name].detach()


@dataclass(frozen=True)
class SafetensorsFiles:
    """Tensors in safetensors files; created by `open_checkpoint`.

    Attributes:
        files: file of each tensor.
        known: shape and dtype of each tensor.
    """

    files: Mapping[str, Path]
    known: Mapping[str, Form] = field(repr=False)

    def forms(self) -> Mapping[str, Form]:
        return self.known

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Read file by file. Each tensor is mapped separately, so earlier ones are released."""
        for name in sorted(names, key=lambda name: (str(self.files[name]), name)):
            with safe_open(self.files[name], framework="pt") as file:
                yield name, file.get_slice(name)


def open_checkpoint(path: str | Path) -> SafetensorsFiles:
    """Open a directory of safetensors files, or one file. Reads only headers.

    Raises:
        LadderError: lists files that are missing or damaged, and names that are missing from their
            file or are in two files.
    """
    path = Path(path)
    if not path.exists():
        raise LadderError(f"There is no checkpoint at {path}.")
    indices = [] if path.is_file() else sorted(path.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        found = [Blocker(str(index)) for index in indices]
        raise LadderError("This checkpoint has several index files:", found, "keep one of them")
    if indices:
        return _open_indexed(path, indices[0])
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise LadderError(
            f"There is no *.safetensors file in {path}.",
            cure="save the model with safe_serialization=True, or pass a state dict",
        )
    blockers: list[Blocker] = []
    homes: dict[str, Path] = {}
    forms: dict[str, Form] = {}
    for file in files:
        for name, form in _read_header(file, blockers).items():
            if name in homes:
                blockers.append(Blocker(f"{name} is in {homes[name].name} and in {file.name}"))
            homes[name], forms[name] = file, form
    _raise_if(blockers, path)
    return SafetensorsFiles(homes, forms)


def _open_indexed(path: Path, index: Path) -> SafetensorsFiles:
    data = read_json(index, "index of safetensors files")
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and file == Path(file).name for file in weight_map.values()
    ):
        raise LadderError(
            f"{index} is not an index of safetensors files: it does not map names to files next "
            "to it."
        )
    blockers: list[Blocker] = []
    known = {name: _read_header(path / name, blockers) for name in sorted(set(weight_map.values()))}
    absent = [n for n, file in weight_map.items() if known[file] and n not in known[file]]
    blockers += [
        Blocker(f"{name} is not in {weight_map[name]}, where the index has it") for name in absent
    ]
    _raise_if(blockers, path)
    homes = {name: path / file for name, file in weight_map.items()}
    return SafetensorsFiles(homes, {name: known[file][name] for name, file in weight_map.items()})


def _read_header(file: Path, blockers: list[Blocker]) -> dict[str, Form]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: Form(tuple(part.get_shape()), _DTYPES[part.get_dtype()])
                for name, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        blockers.append(Blocker(f"{file.name}: {error}"))
    except KeyError as error:
        blockers.append(Blocker(f"{file.name}: elements of type {error} cannot be read"))
    return {}


def _raise_if(blockers: Sequence[Blocker], path: Path) -> None:
    if blockers:
        raise LadderError(f"The checkpoint in {path} cannot be read:", blockers)


# ---- matching


def match(entries: Sequence[StateEntry], source: TensorSource) -> dict[str, str]:
    """For each entry, the one of its names that `source` has.

    A tied tensor may have any of its names. Entries that are not persistent may be missing.

    Raises:
        LadderError: lists tensors that are missing, surplus, of another shape, or of a dtype that
            cannot be converted. No values have been read yet.
    """
    forms = source.forms()
    found: dict[str, str] = {}
    blockers = []
    for entry in entries:
        given = [name for name in entry.names if name in forms]
        if given:
            found[entry.name] = given[0]
            blockers += [b for name in given for b in _misfits(entry, name, forms[name])]
        elif entry.is_persistent:
            shape = list(entry.shape)
            blockers.append(Blocker(f"missing: {' = '.join(entry.names)} {shape}"))
    wanted = {name for entry in entries for name in entry.names}
    blockers += [
        Blocker(f"surplus: {name} {list(form.shape)}")
        for name, form in forms.items()
        if name not in wanted
    ]
    if blockers:
        raise LadderError(
            f"The checkpoint does not match the model in {len(blockers)} tensors:",
            blockers,
            "pass the model class and configuration that the checkpoint was saved with",
        )
    return found


def _misfits(entry: StateEntry, name: str, form: Form) -> Iterator[Blocker]:
    if form.shape != entry.shape:
        wanted = list(entry.shape)
        yield Blocker(f"misshapen: {name} is {list(form.shape)}, the model has {wanted}")
    if form.dtype.is_floating_point != entry.dtype.is_floating_point:
        yield Blocker(f"mistyped: {name} is {form.dtype}, the model has {entry.dtype}")
