"""Look at a model without compiling it: its residual map, and its ladder run op by op."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from ladderize import ops
from ladderize.block import Block
from ladderize.config import LadderConfig
from ladderize.dynamo import parameter_names
from ladderize.errors import module_path
from ladderize.passes.reroute import stale_sources
from ladderize.pipeline import ladder


@dataclass(frozen=True)
class BlockRow:
    """One block of the residual map, as text; `fresh` and `stale` number the anchors read."""

    index: int
    layer: int | None
    module: str
    num_ops: int
    num_weights: int
    fresh: int
    stale: int


class Spy:
    """A `torch.compile` backend that rewrites, keeps the residual map and runs op by op."""

    def __init__(self) -> None:
        self.rows: tuple[BlockRow, ...] = ()

    def __call__(self, gm: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        names = parameter_names(gm)
        weights = {node: ops.value(node).numel() for node in names}
        rewritten = ladder(gm, names, LadderConfig())
        rows = []
        for stream, chosen in zip(rewritten.streams, rewritten.chosen, strict=True):
            stale = stale_sources(stream, chosen, staleness=1)
            rows += [
                _row(block, stale.get(block.index, block.index), weights) for block in stream.blocks
            ]
        self.rows = tuple(rows)
        return rewritten.gm


def _row(block: Block, stale: int, weights: dict[Node, int]) -> BlockRow:
    used = {source for node in block.branch for source in node.all_input_nodes}
    return BlockRow(
        index=block.index,
        layer=block.layer,
        module=module_path(block.outputs[0]) or block.module,
        num_ops=len(block.branch),
        num_weights=sum(weights.get(node, 0) for node in used),
        fresh=block.index,
        stale=stale,
    )
