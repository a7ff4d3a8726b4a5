"""Gradients of a sharded graph's full parameters: every rank gets the same, complete gradient.

    compiled backward    w.grad on rank 0 = [g0 | 0]      on rank 1 = [0 | g1]
    gathered             w.grad on rank 0 = [g0 | g1]     on rank 1 = [g0 | g1]

The parts of many parameters are gathered in one all-gather after the backward of the graph. Readers
of gradients (an optimizer, gradient clipping, a gradient scaler, the buckets of
DistributedDataParallel) then need not know the mesh, and all ranks take the same step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ladderize.sharding.placement import Shard, local_indices, take_local

_BUCKET_BYTES = 2**26
"""Minimum bytes of a rank's gradients in one all-gather. The received data is held twice."""


@dataclass(frozen=True)
class WholeGradients:
    """Passes parameters through, and completes their gradients in the backward pass.

    Attributes:
        placements: placement of each parameter.
        group: process group of the ranks.
    """

    placements: Sequence[Shard]
    group: dist.ProcessGroup

    def follow(self, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """Views of the parameters; a rank only has to compute its part of their gradients.

        All ranks have to run the backward pass.
        """
        views: Sequence[Tensor] = _Gathering.apply(  # type: ignore[no-untyped-call]
            self, *parameters
        )
        return views

    def gather(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The complete gradients; None for those that are None, which is the same on all ranks."""
        whole: list[Tensor | None] = [None] * len(gradients)
        for bucket in _buckets(gradients):
            pairs = [(gradient, self.placements[i]) for i, gradient in bucket]
            for (i, _), gradient in zip(bucket, self._gather_bucket(pairs), strict=True):
                whole[i] = gradient
        return whole

    def _gather_bucket(self, pairs: Sequence[tuple[Tensor, Shard]]) -> list[Tensor]:
        """The complete gradients of one bucket, all of one dtype."""
        rank, num_ranks = self.group.rank(), self.group.size()
        parts = [take_local(gradient, placement, rank, num_ranks) for gradient, placement in pairs]
        sent = torch.cat([part.reshape(-1) for part in parts])
        received = sent.new_empty(num_ranks * sent.numel())
        dist.all_gather_into_tensor(received, sent, group=self.group)
        whole = [torch.empty_like(gradient) for gradient, _ in pairs]
        for sender, row in enumerate(received.chunk(num_ranks)):
            pieces = torch.split(row, [part.numel() for part in parts])
            for full, (_, placement), part, piece in zip(whole, pairs, parts, pieces, strict=True):
                _put(full, placement, sender, num_ranks, piece.view(part.shape))
        return whole


def _buckets(gradients: Sequence[Tensor | None]) -> Iterator[list[tuple[int, Tensor]]]:
    """Group gradients of one dtype, each with its index, to send them together."""
    open_ones: dict[torch.dtype, list[tuple[int, Tensor]]] = {}
    for i, gradient in enumerate(gradients):
        if gradient is None:
            continue
        bucket = open_ones.setdefault(gradient.dtype, [])
        bucket.append((i, gradient))
        if sum(each.nbytes for _, each in bucket) >= _BUCKET_BYTES:
            yield open_ones.pop(gradient.dtype)
    yield from open_ones.values()


def _put(full: Tensor, placement: Shard, rank: int, num_ranks: int, part: Tensor) -> None:
    """Write `rank`'s part to the ranges that `take_local` reads."""
    ranges = local_indices(placement, rank, num_ranks)
    pieces = torch.split(part, [len(entries) for entries in ranges], placement.dim)
    for entries, piece in zip(ranges, pieces, strict=True):
        full.narrow(placement.dim, entries.start, len(entries)).copy_(piece)


class _Gathering(Function):
    @staticmethod
    def forward(ctx: Any, gradients: WholeGradients, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return None, *ctx.gradients.gather(gradients)
