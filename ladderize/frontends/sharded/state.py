"""What a sharded program holds besides its graph: a `StateEntry` for each tensor, and its part.

name                          kind       full shape      placement                  2 ranks
model.layers.0.mlp.up.weight  parameter  [48, 32]        sharded on dim 0 as 48     [24, 32]
model.rotary.inv_freq         buffer     [4]             replicated                 [4]
rank_index_0                  index      [2]             every rank has its own     [2]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ladderize.sharding.placement import Placement, Replicate, Shard, local_indices, local_shape

KINDS = ("parameter", "buffer", "constant", "index")


@dataclass(frozen=True)
class StateEntry:
    """One tensor that a sharded program owns.

    Attributes:
        name: fully qualified, as in the model; the node that reads it is found by it.
        kind: of `KINDS`. Constants are tensors that tracing found outside of the modules, an index
            says which entries a rank selects.
        shape: of the whole tensor (of an index: of one rank's).
        dtype: of its elements.
        placement: how it lies over the ranks.
        is_persistent: whether a checkpoint must have it.
        requires_grad: of a parameter.
        aliases: other names of the same tensor (tied weights).
        rows: of an index: what each rank selects.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    placement: Placement = Replicate()  # noqa: RUF009  # frozen
    is_persistent: bool = True
    requires_grad: bool = False
    aliases: tuple[str, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def local_shape(self, num_ranks: int) -> list[int]:
        return local_shape(self.shape, self.placement, num_ranks)

    def full_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def local_bytes(self, num_ranks: int) -> int:
        """Bytes that each rank holds of it."""
        return torch.Size(self.local_shape(num_ranks)).numel() * self.dtype.itemsize

    def read(self, source: Any, rank: int, num_ranks: int, device: torch.device) -> Tensor:
        """`rank`'s part of `source`, which is indexed and never read whole.

        Args:
            source: a tensor of the full shape, or what safetensors' `get_slice` returns.
            rank: of `num_ranks`.
            num_ranks: the size of the mesh axis.
            device: where the part goes.
        """
        shape = self.local_shape(num_ranks)
        local = torch.empty(shape, dtype=self.dtype, device=device)
        if not isinstance(self.placement, Shard):
            with torch.no_grad():
                return local.copy_(source[...])
        dim, start = self.placement.dim, 0
        for part in local_indices(self.placement, rank, num_ranks):
            index = (slice(None),) * dim + (slice(part.start, part.stop),)
            with torch.no_grad():
                local.narrow(dim, start, len(part)).copy_(source[index])
            start += len(part)
        return local


def total_bytes(entries: Sequence[StateEntry], num_ranks: int | None = None) -> int:
    """Bytes of all `entries` on one of `num_ranks` ranks; None: of the whole model."""
    if num_ranks is None:
        return sum(entry.full_bytes() for entry in entries if entry.kind != "index")
    return sum(entry.local_bytes(num_ranks) for entry in entries)
