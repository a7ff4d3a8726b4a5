"""Open `MODEL` of the command line, as a program or for its shapes only.

model.pt2               written by torch.export.save; read safely by compat/archive.py
hf:DIR_OR_CONFIG        a transformers configuration; weights of DIR, or random (hugging_face.py)
package.module:factory  a function that returns (model, args, kwargs)
"""

import importlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from ladderize.compat.archive import read_program
from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.checkpoints.configurations import read_config
from ladderize.frontends.checkpoints.own_entry import entry_of_configuration, own_entry
from ladderize.frontends.rewrite import explain_program
from ladderize.frontends.sharded.tracing import export_program, trace
from ladderize.report.report import Report
from ladderize.tools.sources.hugging_face import InputSizes, open_configuration, seeded
from ladderize.tools.sources.model_names import (
    find_configuration,
    is_configuration,
    is_factory,
    look_here_first,
    refuse_unknown,
)


@dataclass(frozen=True)
class File:
    """A `.pt2` file."""

    path: str

    entry: ClassVar[LadderEntry | None] = None
    """A program has no configuration, and so no ladder entry."""

    def program(self) -> ExportedProgram:
        """The exported program with its weights."""
        return read_program(self.path)

    def explain(self, config: LadderConfig) -> Report:
        """The report of rewriting it with `config`."""
        return explain_program(self.program(), config)


@dataclass(frozen=True, eq=False)
class Module:
    """A module in memory, with the arguments of one call.

    Attributes:
        has_weights: whether the parameters have values; if not, they are on the meta device.
    """

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    is_dynamic: bool = False
    has_weights: bool = True

    @property
    def entry(self) -> LadderEntry | None:
        """The ladder entry of the model's config.json, if any."""
        return own_entry(self.model)

    def program(self) -> ExportedProgram:
        how = export_program if self.has_weights else trace
        return how(self.model, self.args, self.kwargs, self._dynamic_shapes())

    def explain(self, config: LadderConfig) -> Report:
        if not self.has_weights:
            return explain_program(self.program(), config)
        from ladderize.frontends.explain import explain_call

        return explain_call(self.model, self.args, self.kwargs, config)

    def _dynamic_shapes(self) -> Any:
        if not self.is_dynamic:
            return None
        shapes = ShapesCollection()  # type: ignore[no-untyped-call]
        for leaf in pytree.tree_leaves((self.args, self.kwargs)):
            if isinstance(leaf, Tensor) and leaf.dim():
                dims = 1 if leaf.is_floating_point() else min(2, leaf.dim())
                shapes[leaf] = dict.fromkeys(range(dims), Dim.AUTO)
        return shapes.dynamic_shapes(self.model, self.args, self.kwargs)  # type: ignore[no-untyped-call]


def open_model(
    text: str, sizes: InputSizes | None = None, *, has_weights: bool = True
) -> File | Module:
    """Open the model called `text`.

    Args:
        text: a path, `hf:DIR_OR_CONFIG` or `module:factory`.
        sizes: sizes of the example inputs of an `hf:` model.
        has_weights: if False, an `hf:` model has only shapes and takes no memory for weights.

    Raises:
        LadderError: the model does not exist or cannot be made.
    """
    refuse_unknown(text)
    sizes = sizes or InputSizes()
    if is_configuration(text):
        model, kwargs = open_configuration(text, sizes, has_weights=has_weights)
        return Module(model, (), kwargs, sizes.is_dynamic, has_weights)
    if is_factory(text):
        model, args, kwargs = _call_factory(text)
        return Module(model, args, kwargs, sizes.is_dynamic)
    return File(text)


def entry_called(text: str) -> LadderEntry | None:
    """The ladder entry in the config.json of the `hf:` model called `text`, if any.

    Raises:
        LadderError: the model does not exist, or its entry is invalid.
    """
    if not is_configuration(text):
        return None
    return entry_of_configuration(read_config(find_configuration(text).path))


def _call_factory(text: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Call the factory `text`. Its module is looked up in the current folder first.

    Raises:
        LadderError: the factory does not exist, raises, or returns something else.
    """
    module_name, _, function_name = text.partition(":")
    look_here_first()
    seeded()
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        made = function()
    except Exception as error:  # a user's module may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise LadderError(
            f"{text} could not be called:", [Blocker(f"{type(error).__name__}: {error}", place)]
        ) from error
    return _checked(text, made)


def _checked(text: str, made: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    model, *rest = made if isinstance(made, tuple) else (made,)
    args = rest.pop(0) if rest and isinstance(rest[0], tuple | list) else ()
    kwargs = rest.pop(0) if rest and isinstance(rest[0], Mapping) else {}
    if rest or not isinstance(model, nn.Module):
        kinds = ", ".join(type(part).__name__ for part in (model, *rest))
        raise LadderError(f"{text} returned ({kinds}).", cure="let it return (model, args, kwargs)")
    return model, tuple(args), dict(kwargs)
