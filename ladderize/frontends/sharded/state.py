"""The tensors of a sharded program: a `StateEntry` for each, with its placement.

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
        name: fully qualified name in the model, which identifies its graph input.
        kind: one of `KINDS`. Constants are tensors that tracing found outside of modules; an index
            holds the entries that a rank selects.
        shape: shape of the whole tensor; for an index, that of one rank's tensor.
        dtype: dtype of the tensor.
        placement: placement over the ranks.
        is_persistent: whether a checkpoint must have it.
        requires_grad: whether a parameter requires gradients.
        aliases: other names of the same tensor (tied weights).
        rows: for an index, the values on each rank.
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
        """Bytes of the tensor on each rank."""
        return torch.Size(self.local_shape(num_ranks)).numel() * self.dtype.itemsize

    def read(self, source: Any, rank: int, num_ranks: int, device: torch.device) -> Tensor:
        """Read `rank`'s part of `source`, which is indexed and never read as a whole.

        Args:
            source: tensor of the full shape, or the result of safetensors' `get_slice`.
            rank: rank on the mesh axis.
            num_ranks: size of the mesh axis.
            device: device of the part.
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
    """Bytes of all `entries` on one of `num_ranks` ranks; with None, of the whole model."""
    if num_ranks is None:
        return sum(entry.full_bytes() for entry in entries if entry.kind != "index")
    return sum(entry.local_bytes(num_ranks) for entry in entries)
