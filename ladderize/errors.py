"""`LadderError`: everything that is wrong, where it was found, and what to do about it."""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node  # the command line reports errors without loading torch

_spec = find_spec("torch")
assert _spec is not None and _spec.origin is not None
_TORCH = f"{Path(_spec.origin).parent}{os.sep}"  # with the separator: torchtitan is not torch
_STANDARD_LIBRARY = f"{Path(os.__file__).parent}{os.sep}"


@dataclass(frozen=True)
class Blocker:
    """One reason why a graph cannot be converted as asked."""

    what: str
    where: str = ""

    @classmethod
    def at(cls, node: "Node", what: str) -> "Blocker":
        """A blocker located by the module path and source line that produced `node`."""
        return cls(what, describe_origin(node))

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what


def _listed(summary: str, blockers: Iterable[Blocker]) -> str:
    """`summary`, then one line for each blocker."""
    return "\n".join([summary, *(f"  - {blocker}" for blocker in blockers)])


class LadderError(ValueError):
    """The request cannot be carried out. The message lists every blocker, not only the first.

    Attributes:
        blockers: the problems found, each with its location.
    """

    def __init__(self, summary: str, blockers: Iterable[Blocker] = (), cure: str = "") -> None:
        self.summary = summary
        self.blockers = tuple(dict.fromkeys(blockers))
        self.cure = cure
        text = _listed(summary, self.blockers)
        super().__init__(f"{text}\nWhat to do: {cure}" if cure else text)

    def with_blockers(self, more: Iterable[Blocker]) -> "LadderError":
        """The same error with further reasons."""
        return type(self)(self.summary, (*self.blockers, *more), self.cure)

    def __reduce__(self) -> tuple[type["LadderError"], tuple[Any, ...]]:
        """Pickle the parts, so that ranks can send the error to their parent process."""
        return type(self), (self.summary, self.blockers, self.cure)


class LadderWarning(UserWarning):
    """The compiled graph is less than what was asked for.

    It is the standard graph instead of the ladder, a model that is a ladder already, or a sharded
    graph in which some branches or parameters are kept whole. The message lists every place.
    """

    def __init__(self, summary: str, blockers: Iterable[Blocker] = ()) -> None:
        super().__init__(_listed(summary, blockers))


class ReportedWarning(LadderWarning):
    """A warning that the report also contains; a caller that prints the report can drop it."""


_INSTALLED = re.compile(r"(?:^|(?<= at ))/[^()\n]*?/site-packages/")
_WRAPPER = re.compile(r"\._checkpoint_wrapped_module")
"""The module that activation checkpointing inserts; parameter names do not contain it."""


def module_path(node: "Node", stack_key: str = "nn_module_stack") -> str:
    """The path of the innermost module that ran `node` (`model.layers.3.mlp`), "" if unknown.

    In a backward graph, `stack_key="fwd_nn_module_stack"` gives the module of the forward op.
    """
    stack = node.meta.get(stack_key)
    if not stack:
        return ""
    name = _WRAPPER.sub("", str(next(reversed(stack.values()))[0]))
    return name.removeprefix("L['self']").removeprefix(".")


def source_line(node: "Node") -> str:
    """The user's source line that produced `node`, as `file:line`; "" if the trace kept none.

    This is the innermost frame outside torch and the standard library: Dynamo traces Python's
    own `sum` through `operator.py`.
    """
    frames = [
        line.strip()
        for line in (node.meta.get("stack_trace") or "").splitlines()
        if line.strip().startswith('File "')
    ]
    if not frames:
        return ""
    places = [frame.removeprefix('File "').split('", line ')[:2] for frame in frames]
    path, line = next((p for p in reversed(places) if not _is_library(p[0])), places[-1])
    return f"{path}:{line.split(',')[0]}"


def _is_library(path: str) -> bool:
    is_standard = path.startswith(_STANDARD_LIBRARY) and "-packages" not in path
    return is_standard or path.startswith(_TORCH)


def short_paths(text: str) -> str:
    """`text` with the paths of installed packages starting at the package name."""
    return _INSTALLED.sub("", text)


def describe_origin(node: "Node") -> str:
    """Module path and source line of `node`, or its name if the trace kept neither.

    Paths of installed packages start at the package name: `transformers/pytorch_utils.py:119`.
    """
    line = short_paths(source_line(node))
    parts = [part for part in (module_path(node), line) if part]
    return " at ".join(parts) if parts else f"graph node {node.name}"


def nearest(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` with the closest name in `known`; "" if none is close."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 block", "2 blocks", "2 passes"; `many` is the plural if it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"
