"""A lowering that cuts graphs, and compares the cut graph with the flat one at every call.

with cutting() as cut:
    torch.compile(net, backend="ladderize", options={"lowering": "aot_eager"})(x)
cut.graphs, cut.differences
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ladderize import compat
from ladderize.backends import LOWERINGS
from ladderize.backends.lowered import Lowered
from ladderize.backends.tensorrt.check_cut import cut_of
from ladderize.backends.tensorrt.cut import CutIslands
from ladderize.backends.tensorrt.islands import is_call, islands_of
from ladderize.frontends.dynamo_graph import copy_graph
from ladderize.graph.collectives import GATHERS, SCATTERS, is_wait
from ladderize.graph.in_flight import channel_of, is_launch
from ladderize.graph.writes import written_operands
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.join_waits import JoinWaits
from ladderize.passes.runner import Log, run_pass


@dataclass
class Cutting:
    """The cut graphs, and the differences of their calls from the flat graphs.

    Attributes:
        lower: lowers each island.
        graphs: all cut graphs.
        calls: inputs of each call.
        differences: largest difference in the outputs and written inputs of each call.
    """

    graphs: list[GraphModule] = field(default_factory=list)
    calls: list[list[Any]] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    def __call__(self, gm: GraphModule, _: Any) -> Callable[..., Any]:
        log = Log()
        run_pass(gm, JoinWaits(), log)
        run_pass(gm, DeferWaits(), log)
        flat = GraphModule(gm, copy_graph(gm))
        run_pass(gm, CutIslands(), log, cut_of(gm))
        self.graphs.append(gm)

        def run(*args: Any) -> Any:
            inputs = copies(args)
            self.calls.append(copies(args))
            expected, found = flat(*inputs), gm(*args)
            self.differences.append(difference([found, args], [expected, inputs]))
            return found

        return compat.boxed(run)


@contextmanager
def cutting() -> Iterator[Cutting]:
    """Make the lowering "aot_eager" cut; its graphs contain writes into inputs, as Inductor's."""
    cut = Cutting()
    trace = aot_autograd(fw_compiler=cut, keep_inference_input_mutations=True)

    def lower_whole(gm: GraphModule, example_inputs: Any, _: Any) -> Lowered:
        return Lowered(trace(gm, example_inputs))

    with patch.dict(LOWERINGS, {"aot_eager": lower_whole}):
        yield cut


def copies(values: Sequence[Any]) -> list[Any]:
    """Copies of inputs, because a graph may write to them."""
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def difference(found: Any, expected: Any) -> float:
    """The largest difference of any tensor in two structures."""
    ours, theirs = (torch.utils._pytree.tree_leaves(values) for values in (found, expected))
    return max(
        float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        for a, b in zip(ours, theirs, strict=True)
        if isinstance(a, Tensor)
    )


def letters(gm: GraphModule) -> str:
    """The cut graph in order: `s` for an island, `w` for a wait, `c` for a write.

    Launches are `l` (all-reduce), `r` (reduce-scatter), `g` (all-gather).
    """
    return "".join(map(_letter, gm.graph.nodes))


def _letter(node: Node) -> str:
    if is_launch(node):
        name = channel_of(node)[0]
        return "r" if name in SCATTERS else "g" if name in GATHERS else "l"
    return "s" if is_call(node) else "w" if is_wait(node) else "c" if written_operands(node) else ""


def without_names(gm: GraphModule) -> tuple[Any, ...]:
    """The code of an island with numbered nodes, equal for equal islands."""
    numbers = {node: str(i) for i, node in enumerate(gm.graph.nodes)}
    return tuple(
        (
            str(node.meta["val"].shape if node.op == "placeholder" else node.target),
            str(map_arg((node.args, node.kwargs), numbers.__getitem__)),
        )
        for node in gm.graph.nodes
    )


def lower_islands(gm: GraphModule, lower: Callable[[str, GraphModule], Any]) -> None:
    """Make `gm` call `lower(name, island)` instead of each of its islands.

    The result of `lower` takes the inputs of the island and returns the tuple of its outputs.
    """
    for name, body in islands_of(gm).items():
        lowered = lower(name, body)
        setattr(gm, name, lowered if isinstance(lowered, nn.Module) else _Called(lowered))


class _Called(nn.Module):
    """A callable as a module, so that a graph can call it by name."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(*args)
