"""The models that the command line is pointed at: `MODEL` as text, to a program or its shapes.

model.pt2               what torch.export.save wrote        (compat/archive.py reads it safely)
hf:DIR_OR_CONFIG        a configuration of transformers; weights of DIR, or random (hugging_face.py)
package.module:factory  a function that returns (model, args, kwargs)              (factory.py)
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from ladderize.compat.archive import read_program
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.rewrite import explain_program
from ladderize.frontends.sharded.tracing import export_program, trace
from ladderize.report.report import Report
from ladderize.tools.sources.example_inputs import HUGGING_FACE, InputSizes

__all__ = ["HUGGING_FACE", "InputSizes", "Source", "is_factory", "open_model"]


class Source(Protocol):
    """A model by its name."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def program(self) -> ExportedProgram:
        """As an exported program with its weights."""

    def explain(self, config: LadderConfig) -> Report:
        """What would be done to it; weights are not needed."""


@dataclass(frozen=True)
class File:
    """A `.pt2` file."""

    name: str

    def program(self) -> ExportedProgram:
        return read_program(self.name)

    def explain(self, config: LadderConfig) -> Report:
        return explain_program(self.program(), config)


@dataclass(frozen=True, eq=False)
class Module:
    """A module in memory, with the arguments of one call.

    Attributes:
        has_weights: False: its parameters are on the meta device.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    is_dynamic: bool = False
    has_weights: bool = True

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


def open_model(text: str, sizes: InputSizes | None = None, *, has_weights: bool = True) -> Source:
    """The model called `text`.

    Args:
        text: a path, `hf:DIR_OR_CONFIG` or `module:factory`.
        sizes: of the inputs that are made where `text` has none.
        has_weights: False: only shapes are wanted, no memory for weights is needed.

    Raises:
        LadderError: there is no such model, or it cannot be made.
    """
    sizes = sizes or InputSizes()
    if text.startswith(HUGGING_FACE):
        from ladderize.tools.sources.hugging_face import open_configuration

        model, kwargs = open_configuration(text, sizes, has_weights=has_weights)
        return Module(text, model, (), kwargs, sizes.is_dynamic, has_weights)
    if is_factory(text):
        from ladderize.tools.sources.factory import call_factory

        model, args, kwargs = call_factory(text)
        return Module(text, model, args, kwargs, sizes.is_dynamic)
    if not Path(text).exists():
        raise LadderError(
            f"There is no model called {text}.",
            cure="pass a .pt2 file, hf:DIR_OR_CONFIG, or module:factory",
        )
    return File(text)


def is_factory(text: str) -> bool:
    """Whether `text` is spelled as `package.module:function`."""
    module, colon, function = text.partition(":")
    names = [*module.split("."), function]
    return bool(colon) and all(name.isidentifier() for name in names) and not Path(text).exists()
