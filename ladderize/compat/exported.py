"""Exported programs: their inputs and their files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.fx import Node


def reorder_kwargs(kwargs: dict[str, Any], spec: Any) -> dict[str, Any]:
    """`kwargs` in the order of the traced signature; ValueError if the names differ."""
    from torch.export._tree_utils import reorder_kwargs

    return reorder_kwargs(kwargs, spec)


def load_archive(path: Path) -> Any:
    """The exported program in a `.pt2` file with one program.

    `torch.export.load` writes the reason for a failure only to its log.
    """
    from torch.export.pt2_archive._package import load_pt2

    (program,) = load_pt2(path).exported_programs.values()
    return program


def find_wrong_input(inputs: Sequence[Node], values: Sequence[Any], ranges: Any) -> str:
    """The mismatch of `values`, pairs of key path and value, with traced `inputs`; "" if none."""
    from torch._export.utils import _check_input_constraints_for_graph

    try:
        _check_input_constraints_for_graph(list(inputs), values, ranges)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""
