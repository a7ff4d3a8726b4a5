"""Run a graph with blended reads twice in parallel: as the standard model and as the ladder.

    standard   x0 ─ b1 ─ x1 ─ b2 …      blends 0, the standard model's weights
    ladder     x0 ─ b1 ─ x1 ─ b2 …      blends 1, weights that may change on the way
                          │
                       `until`          both stop here and can continue

Values are released after their last read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ladderize.passes.blend_reads import blend_inputs
from ladderize.quality.sensitivity.reusing_run import last_reads


class PairedRun:
    """Both runs of one batch, op by op.

    Args:
        gm: graph edited by `BlendReads`.
        inputs: inputs of a call of it.
        standard, ladder: weights of each run, by the inputs that they replace.
    """

    def __init__(
        self,
        gm: GraphModule,
        inputs: Sequence[Any],
        standard: Mapping[Node, Tensor],
        ladder: Mapping[Node, Tensor],
    ) -> None:
        placeholders = gm.graph.find_nodes(op="placeholder")
        given = dict(zip(placeholders, inputs, strict=True))
        fresh = {node: torch.zeros_like(given[node]) for node in blend_inputs(gm)}
        stale = {node: torch.ones_like(given[node]) for node in fresh}
        self._environments = ({**given, **fresh, **standard}, {**given, **stale, **ladder})
        self._interpreter = Interpreter(gm, garbage_collect_values=False)
        self._nodes = [node for node in gm.graph.nodes if node.op != "placeholder"]
        self._dead = last_reads(self._nodes)
        self._position = 0

    def advance(self, until: Node, read: Node) -> tuple[Tensor, Tensor]:
        """Run up to, but not including, the node `until`.

        Returns:
            The values of `read` in the standard model and in the ladder.
        """
        while self._nodes[self._position] is not until:
            for environment in self._environments:
                self._run(environment)
            self._position += 1
        standard, ladder = (environment[read] for environment in self._environments)
        return standard, ladder

    def _run(self, environment: dict[Node, Any]) -> None:
        node = self._nodes[self._position]
        self._interpreter.env = environment
        environment[node] = self._interpreter.run_node(node)
        for dead in self._dead[self._position]:
            del environment[dead]
