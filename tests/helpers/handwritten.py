"""The hand-written ladder program whose order plain Inductor changes.

Each block is `h_i(x) = down_i(silu(up_i(rms_norm(x))))` with `up_i` split by columns and `down_i`
by rows over the ranks. The reads are stale and every wait is written after the next block:

    x[1] = x[0] + h_0(x[0]);   x[i+1] = x[i] + h_i(x[i-1])
    AR_0 | block 1, AR_1, wait_0 | block 2, AR_2, wait_1 | …
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

NUM_BLOCKS = 8
HIDDEN = 32
INNER = 64
BATCH = 4

Weights = list[tuple[Tensor, Tensor]]
"""(up, down) of each block; up is [inner, hidden] and down is [hidden, inner]."""


def make_weights(num_blocks: int = NUM_BLOCKS, *, seed: int = 0) -> Weights:
    """The full weights of every block, the same on every rank, with activations of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    return [(weight(INNER, HIDDEN), weight(HIDDEN, INNER)) for _ in range(num_blocks)]


def make_input(*, seed: int = 1) -> Tensor:
    return torch.randn(BATCH, HIDDEN, generator=torch.Generator().manual_seed(seed))


def shard_weights(weights: Weights, rank: int, num_ranks: int) -> Weights:
    """This rank's columns of every `up` and rows of every `down` (the inner dim of both)."""
    return [
        (up.chunk(num_ranks, 0)[rank].clone(), down.chunk(num_ranks, 1)[rank].clone())
        for up, down in weights
    ]


def branch(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The branch of a block, or with shards of the weights, this rank's partial sum."""
    return F.linear(F.silu(F.linear(F.rms_norm(x, x.shape[-1:]), up)), down)


def eager_ladder(x: Tensor, weights: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The one-process reference: full weights, no collectives."""
    stale = x
    for up, down in weights:
        stale, x = x, x + branch(stale, up, down)
    return x


def _launch(x: Tensor, group: str) -> Tensor:
    return torch.ops._c10d_functional.all_reduce(x, "sum", group)


def _wait(x: Tensor) -> Tensor:
    return torch.ops._c10d_functional.wait_tensor(x)


class _Copy(torch.autograd.Function):
    """Column-parallel input: forward identity, backward all-reduce."""

    @staticmethod
    def forward(ctx, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _wait(_launch(grad.contiguous(), ctx.group)), None


class _Reduce(torch.autograd.Function):
    """Row-parallel output: forward all-reduce, *not yet waited for*, backward identity."""

    @staticmethod
    def forward(_ctx, x: Tensor, group: str) -> Tensor:
        return _launch(x, group)

    @staticmethod
    def backward(_ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x: Tensor) -> Tensor:
        return _wait(x)

    @staticmethod
    def backward(_ctx, grad: Tensor) -> Tensor:
        return grad


def sharded_ladder(x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], group: str) -> Tensor:
    """One rank's part of the ladder over the shards of its weights."""
    pending = None
    for up, down in weights:
        partial = branch(_Copy.apply(x, group), up, down)
        launched = _Reduce.apply(partial, group)
        if pending is not None:
            x = x + _Wait.apply(pending)
        pending = launched
    assert pending is not None
    return x + _Wait.apply(pending)


def sharded_standard(x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], group: str) -> Tensor:
    """One rank's part of the standard model: every block waits for the one before it."""
    for up, down in weights:
        partial = branch(_Copy.apply(x, group), up, down)
        x = x + _Wait.apply(_Reduce.apply(partial, group))
    return x


def group_name() -> str:
    assert dist.group.WORLD is not None
    return dist.group.WORLD.group_name


@dataclass(frozen=True)
class Outcome:
    """The result of one rank: the largest differences from the eager reference."""

    output_error: float
    grad_error: float


Forward = Callable[[Tensor, Weights, str], Tensor]


def run_rank(forward: Forward, num_blocks: int = NUM_BLOCKS) -> Outcome:
    """Run `forward` over this rank's shards, and compare with the ladder on one process."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    weights = make_weights(num_blocks)
    for pair in weights:
        for weight in pair:
            weight.requires_grad_()
    x = make_input().requires_grad_()
    expected = eager_ladder(x, weights)
    expected.square().mean().backward()
    expected_grads = [x.grad, *(g for pair in _grads(weights, rank, num_ranks) for g in pair)]

    shards = [
        (nn.Parameter(up.detach()), nn.Parameter(down.detach()))
        for up, down in shard_weights(weights, rank, num_ranks)
    ]
    x_local = make_input().requires_grad_()
    output = forward(x_local, shards, group_name())
    output.square().mean().backward()
    grads = [x_local.grad, *(weight.grad for pair in shards for weight in pair)]
    return Outcome(
        output_error=float((output - expected).detach().abs().max()),
        grad_error=max(
            float((grad - want).abs().max())
            for grad, want in zip(grads, expected_grads, strict=True)
        ),
    )


def _grads(weights: Weights, rank: int, num_ranks: int) -> Weights:
    return shard_weights([(up.grad, down.grad) for up, down in weights], rank, num_ranks)
