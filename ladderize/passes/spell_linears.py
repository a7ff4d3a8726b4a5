"""Call linears of weights that are made of other tensors as models do, not by their ATen names.

before   aten.linear.default(x, w)      which autograd takes apart: aten.t of w, which w may lack
after    F.linear(x, w)                 which the library of w answers

After `ToAten` and all passes, for a graph whose inputs are such weights (quantized).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule

from ladderize.graph.to_aten import wrapped
from ladderize.passes import PassResult


@dataclass(frozen=True)
class SpellLinears:
    """Linears that read wrapped inputs directly."""

    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        weights = [
            node for node in gm.graph.find_nodes(op="placeholder") if wrapped(node) is not None
        ]
        linears = [
            user
            for weight in weights
            for user in weight.users
            if user.target is torch.ops.aten.linear.default
        ]
        for node in linears:
            node.target = torch.nn.functional.linear
        return PassResult(len(linears))
