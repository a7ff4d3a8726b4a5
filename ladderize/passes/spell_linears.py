"""Replace `aten.linear` by `F.linear` for weights that are wrapper subclasses (quantized).

before   aten.linear.default(x, w)      autograd decomposes it; w may not implement aten.t
after    F.linear(x, w)                 the library of w implements it

Runs after `ToAten` and all other passes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule

from ladderize.graph.to_aten import wrapped
from ladderize.passes import PassResult


@dataclass(frozen=True)
class SpellLinears:
    """Rewrite linears that read wrapped inputs directly."""

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
