"""`LadderError`: everything that is wrong at once, where it is, and what to do about it."""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node  # not at run time: the command line refuses before it loads torch

_spec = find_spec("torch")
assert _spec is not None and _spec.origin is not None
_TORCH = f"{Path(_spec.origin).parent}{os.sep}"  # and not torchtitan beside it
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
    """A message: `summary`, and each of `blockers` on a line of its own."""
    return "\n".join([summary, *(f"  - {blocker}" for blocker in blockers)])


class LadderError(ValueError):
    """What was asked for cannot be done. Lists every blocker, not only the first.

    Attributes:
        blockers: each thing found wrong, with its place.
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
        """Ranks send it to their parent whole, not as one text."""
        return type(self), (self.summary, self.blockers, self.cure)


class LadderWarning(UserWarning):
    """What was compiled is not all that was asked for.

    The standard graph instead of the ladder, a net that is a ladder already, or a sharded graph in
    which each rank keeps some branches or parameters whole. It lists every place, as errors do.
    """

    def __init__(self, summary: str, blockers: Iterable[Blocker] = ()) -> None:
        super().__init__(_listed(summary, blockers))


class ReportedWarning(LadderWarning):
    """One whose lines are in the report too: who prints the report need not print it."""


_INSTALLED = re.compile(r"(?:^|(?<= at ))/[^()\n]*?/site-packages/")
_WRAPPER = re.compile(r"\._checkpoint_wrapped_module")
"""Of activation checkpointing; parameters are named without it."""


def module_path(node: "Node", stack_key: str = "nn_module_stack") -> str:
    """The path of the innermost module that ran `node` (`model.layers.3.mlp`), "" if unknown.

    In a backward graph `stack_key="fwd_nn_module_stack"` tells whose gradient it is part of.
    """
    stack = node.meta.get(stack_key)
    if not stack:
        return ""
    name = _WRAPPER.sub("", str(next(reversed(stack.values()))[0]))
    return name.removeprefix("L['self']").removeprefix(".")


def source_line(node: "Node") -> str:
    """The user's source line behind `node` as `file:line`, "" if the trace kept none.

    The innermost one that is neither torch's nor the standard library's: Dynamo traces Python's
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
    """`text` with files of installed packages named from the package on."""
    return _INSTALLED.sub("", text)


def describe_origin(node: "Node") -> str:
    """Module path and source line of `node`, as far as the trace knows them.

    Files of installed packages are named from the package on: `transformers/pytorch_utils.py:119`.
    """
    line = short_paths(source_line(node))
    parts = [part for part in (module_path(node), line) if part]
    return " at ".join(parts) if parts else f"graph node {node.name}"


def nearest(name: object, known: Iterable[str]) -> str:
    """The name in `known` that was probably meant, as the end of a message; "" if none is near."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 block", "2 blocks", "2 passes": `many` where an s behind `one` is not the plural."""
    return f"{number} {one if number == 1 else many or one + 's'}"
