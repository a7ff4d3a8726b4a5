"""Detect a graph that is one layer of a model, compiled separately.

    for layer in model.layers: layer.compile(backend="ladderize")        # regional compilation

The stream enters such a graph as an input and leaves it as an output. A ladder inside it would read
x[0] of each layer fresh, which is not the ladder that was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ladderize import compat
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.streams.block import Stream
from ladderize.streams.context import AnalysisContext

# A graph of one or two blocks is considered a layer if the stream enters and leaves it.
MAX_BLOCKS_OF_A_LAYER = 2


@dataclass(frozen=True)
class Siblings:
    """The compiled module is one of `count` modules of class `kind` in list `path` of `parent`."""

    kind: str
    count: int
    path: str
    parent: str

    def __str__(self) -> str:
        where = f"{self.path!r} of {self.parent}" if self.path else self.parent
        return f"it is one of {self.count} {self.kind} in {where}"


def refuse_single_layers(
    context: AnalysisContext, streams: Sequence[Stream], config: LadderConfig
) -> None:
    """Raise `LadderError` if the graph is a single layer and the options do not allow it.

    Call this on the standard graph, from inside the backend.
    """
    if config.names_a_part:
        return
    siblings = find_siblings(compat.compiled_module())
    for stream in streams:
        if stream.blockers:  # reported instead
            continue
        is_small = len(stream.blocks) <= MAX_BLOCKS_OF_A_LAYER
        if (is_small or siblings) and _passes_through(context, stream):
            raise _refusal(stream, siblings)


def _refusal(stream: Stream, siblings: Siblings | None) -> LadderError:
    count = len(stream.blocks)
    what = f"the stream enters as an input and leaves as an output after {count} blocks"
    blockers = [Blocker.at(stream.blocks[-1].add, what)]
    if siblings:
        blockers.append(Blocker(str(siblings)))
    cure = "compile the whole model, torch.compile(model, backend='ladderize')"
    if count > 1:
        cure += f"; to convert this part alone, set options={{'expect_blocks': {count}}}"
    return LadderError("This graph is one part of a model, compiled separately:", blockers, cure)


def _passes_through(context: AnalysisContext, stream: Stream) -> bool:
    first, last = stream.blocks[0], stream.blocks[-1]
    enters = any(
        value.op == "placeholder" and value not in context.parameters
        for value in context.walk_back(first.anchor)
    )
    (output,) = context.gm.graph.find_nodes(op="output")
    return enters and any(
        last.add in context.walk_back(result)
        for result in output.all_input_nodes
        if context.shape[result] is not None
    )


def find_siblings(module: nn.Module | None) -> Siblings | None:
    """The list that holds `module` with others of its class, in a module that is running now."""
    if module is None:
        return None
    for parent in compat.running_modules():
        for path, container in parent.named_modules():
            like = [
                child
                for child in map(_unwrapped, container.children())
                if type(child) is type(module)
            ]
            is_list = isinstance(container, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
            if is_list and len(like) > 1 and any(child is module for child in like):
                return Siblings(type(module).__name__, len(like), path, type(parent).__name__)
    return None


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrapper of `torch.compile(module)`."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner
