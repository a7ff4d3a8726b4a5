"""Make a rank's graph slice its parts from the full parameters, as views without copies.

before   linear(x, w_local)                       w_local an input of shape [32, 64]
after    w_local = slice(w, 0, 32, 64)            w an input of shape [64, 64], as Dynamo passes it
         linear(x, w_local)

A part is then always a view of the parameter's present memory, so no call has to check whether it
is outdated. The input is a weight of the model, which CUDA graphs do not copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from operator import is_not
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ladderize.graph.insert import insert_after
from ladderize.passes import PassResult
from ladderize.sharding.placement import Shard, local_indices

aten = torch.ops.aten


@dataclass(frozen=True)
class SliceParameters:
    """Slice the parameters. The result differs between ranks, so this comes after rank comparisons.

    Attributes:
        placements: placements of the inputs to slice, each a contiguous range.
        full: fake values of these inputs before sharding.
        rank: this rank.
        num_ranks: number of ranks.
    """

    placements: Mapping[Node, Shard]
    full: Mapping[Node, Tensor]
    rank: int
    num_ranks: int
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        inputs = gm.graph.find_nodes(op="placeholder")
        for node, placement in self.placements.items():
            (entries,) = local_indices(placement, self.rank, self.num_ranks)
            bounds = (placement.dim, entries.start, entries.stop)
            part = insert_after(gm.graph, inputs[-1], aten.slice.Tensor, (node, *bounds))
            node.replace_all_uses_with(part, partial(is_not, part))
            part.meta["val"] = node.meta["val"]
            node.meta["val"] = self.full[node]
        return PassResult(len(self.placements))
