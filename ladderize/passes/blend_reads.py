"""Make each converted branch read a blend of the fresh and the stale stream, set at run time.

    before   a2 = add(a1, h1(x0))
    after    r1 = lerp(a1, x0, w1);  a2 = add(a1, h1(r1))         w1 an input: 0 fresh … 1 stale

One graph then covers every set of converted blocks: a weight of 0 or 1 is exactly the standard or
the stale read. Sensitivity measures sets of blocks with it; healing moves from fresh to stale.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ladderize import compat
from ladderize.compat.frames import mark_static
from ladderize.graph import ops
from ladderize.graph.fake_values import KEYS
from ladderize.graph.higher_order import REGION
from ladderize.passes import PassResult
from ladderize.passes.reroute import MovedRead


@dataclass(frozen=True)
class BlendInput:
    """A graph input with the blend weight of one block.

    Attributes:
        block: number of the block.
        dtype, device: dtype and device of the stream that it reads.
        rows: size of the stream's dim 0.
        num_dims: number of dims of the stream.
    """

    block: int
    dtype: torch.dtype
    device: torch.device
    rows: int | torch.SymInt
    num_dims: int

    @classmethod
    def of(cls, block: int, stream: Tensor) -> "BlendInput":
        return cls(block, stream.dtype, stream.device, stream.shape[0], stream.dim())

    def new_weight(self, values: Sequence[float]) -> Tensor:
        """A scalar for one value; for several, `[rows, 1, …]` with equal parts for each value."""
        weights = torch.tensor(values, dtype=self.dtype, device=self.device)
        if len(values) == 1:
            return weights[0]
        repeated = weights.repeat_interleave(int(self.rows) // len(values))
        return repeated.view(-1, *[1] * (self.num_dims - 1))


class Blends:
    """The blend weights of a model's converted blocks, shared by all graphs of the model.

    Blocks are identified by their numbers, as `blocks=` counts them.

    Attributes:
        values: weights of each block, from 0 (fresh) to 1 (stale), one for each equal part of the
            batch. Empty before the first graph is compiled.
    """

    def __init__(self, value: float = 1.0) -> None:
        """
        Args:
            value: initial weight of every block.
        """
        self.values: dict[int, tuple[float, ...]] = {}
        self._default = (value,)
        self._weights: dict[BlendInput, Tensor] = {}

    def fill(self, value: float) -> None:
        """Set the weight of every block to `value`, from 0 (fresh) to 1 (stale)."""
        self._default = (value,)
        self._set(dict.fromkeys(self.values, self._default))

    def choose(self, *sets: Collection[int]) -> None:
        """Make the blocks in a set read stale, and the others fresh.

        Args:
            sets: one set for each equal part of the batch, in the order of rows. A compiled graph
                accepts only one.
        """
        self._set({block: tuple(float(block in each) for each in sets) for block in self.values})

    def _set(self, values: dict[int, tuple[float, ...]]) -> None:
        for blend, weight in self._weights.items():
            if weight.dim() == 0 and len(values[blend.block]) == 1:
                weight.fill_(values[blend.block][0])  # in place: an input of CUDA graphs
            elif values[blend.block] != self.values[blend.block]:
                self._weights[blend] = blend.new_weight(values[blend.block])
        self.values = values

    def feed(self, run: Callable[..., Any], inputs: Sequence[BlendInput]) -> Callable[..., Any]:
        """A callable that calls `run` with the weights appended to its arguments."""
        for blend in inputs:
            values = self.values.setdefault(blend.block, self._default)
            self._weights.setdefault(blend, blend.new_weight(values))

        def call(*given: Any) -> Any:
            return run(*given, *(self._weights[blend] for blend in inputs))

        return call


@dataclass(frozen=True)
class BlendReads:
    """Add one input for each block, after the existing inputs, and blend its reads.

    Attributes:
        moved: rerouted reads, each with the number of its block.
    """

    moved: Sequence[tuple[int, MovedRead]]
    preserves_values: ClassVar[bool] = False

    def __call__(self, gm: GraphModule) -> PassResult:
        for number, move in self.moved:
            weight = self._add_input(gm.graph, number, move)
            with gm.graph.inserting_before(move.readers[0]):
                operands = (move.fresh, move.stale, weight)
                blend = gm.graph.call_function(torch.ops.aten.lerp.Tensor, operands)
            blend.meta = {key: v for key, v in move.fresh.meta.items() if key != REGION}
            for reader in move.readers:
                reader.replace_input_with(move.stale, blend)
        return PassResult(changed=len(self.moved))

    def _add_input(self, graph: Graph, number: int, move: MovedRead) -> Node:
        stream = ops.value(move.fresh)
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            node = graph.placeholder(f"blend_{number}")
        mark_static(node)
        node.meta[_BLEND] = BlendInput.of(number, stream)
        with torch.no_grad(), compat.fake_mode_of([stream]):
            fake = torch.empty((), dtype=stream.dtype, device=stream.device)
        node.meta |= {key: fake for key in KEYS if key in move.fresh.meta}
        return node


def blend_inputs(gm: GraphModule) -> dict[Node, BlendInput]:
    """The inputs that `BlendReads` added, in order."""
    inputs = gm.graph.find_nodes(op="placeholder")
    return {node: node.meta[_BLEND] for node in inputs if _BLEND in node.meta}


_BLEND = "ladderize_blend"
