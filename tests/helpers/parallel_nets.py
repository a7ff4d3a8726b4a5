"""A small decoder, sharded by hand in several ways, and its eager ladder on one process.

net = shard("dtensor", make_net(), group_of_ranks)      a net of this rank, compiled as it is
eager_ladder(make_net(), ids)                           what it must compute as a ladder
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ladderize.graph import parallel_ops

VOCABULARY = 64


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.head_size = width // heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.RMSNorm(width), MLP(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Net(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `[batch, length, VOCABULARY]` of token ids `[batch, length]`."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def make_net(layers: int = 3, width: int = 32, heads: int = 4, inner: int = 48) -> Net:
    """The whole model, the same on every rank."""
    torch.manual_seed(0)
    return Net(layers, width, heads, inner)


def make_ids(batch: int = 2, length: int = 8) -> Tensor:
    return torch.arange(batch * length).reshape(batch, length) * 7 % VOCABULARY


def eager_ladder(net: Net, ids: Tensor, staleness: int = 1) -> Tensor:
    """Logits of the ladder of the unsharded `net`, every block reading `staleness` blocks back."""
    values = [net.embedding(ids)]
    for layer in net.layers:
        for norm, branch in ((layer.norm1, layer.attention), (layer.norm2, layer.mlp)):
            read = values[max(len(values) - 1 - staleness, 0)]
            values.append(values[-1] + branch(norm(read)))
    return net.head(net.norm(values[-1]))


# ---- DTensor ---------------------------------------------------------------------------------


def parallelize(net: Net, mesh: DeviceMesh) -> Net:
    """Column- and row-parallel linears; the stream is a plain tensor, replicated on every rank."""
    plan: dict[str, Any] = {"head": ColwiseParallel(output_layouts=Replicate())}
    for i in range(len(net.layers)):
        plan |= {f"layers.{i}.{name}": ColwiseParallel() for name in COLUMNS}
        plan |= {f"layers.{i}.{name}": RowwiseParallel() for name in ROWS}
    return parallelize_module(net, mesh, plan)


def parallelize_sequence(net: Net, mesh: DeviceMesh) -> Net:
    """The stream is split along the sequence: all-gather before a branch, reduce-scatter after.

    Source: Korthikanti et al., "Reducing Activation Recomputation", Section 4.2.2.
    """
    whole = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    plan: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    for i in range(len(net.layers)):
        plan |= {f"layers.{i}.{name}": SequenceParallel() for name in ("norm1", "norm2")}
        plan |= {f"layers.{i}.{name}": whole for name in ("attention", "mlp")}
        plan |= {f"layers.{i}.{name}": ColwiseParallel() for name in COLUMNS}
        plan |= {f"layers.{i}.{name}": RowwiseParallel(output_layouts=Shard(1)) for name in ROWS}
    return parallelize_module(net, mesh, plan)


COLUMNS = ("attention.q", "attention.k", "attention.v", "mlp.up")
ROWS = ("attention.o", "mlp.down")


# ---- explicit collectives --------------------------------------------------------------------

Reduce = Callable[[Tensor, dist.ProcessGroup], Tensor]


class _CopyInPlace(torch.autograd.Function):
    """Megatron-LM's `_CopyToModelParallelRegion`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _ReduceInPlace(torch.autograd.Function):
    """Megatron-LM's `_ReduceFromModelParallelRegion`, which also works in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _CopyFunctional(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return funcol.all_reduce(grad.contiguous(), "sum", ctx.group), None


class _ReduceFunctional(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return funcol.all_reduce(x, "sum", group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _unchanged(x: Tensor, _: dist.ProcessGroup) -> Tensor:
    return x


def _all_reduce_in_place(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    dist.all_reduce(x, group=group)
    return x


def _all_reduce_functional(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return funcol.all_reduce(x, "sum", group)


def _all_reduce_async(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    work = dist.all_reduce(x, group=group, async_op=True)
    assert work is not None
    work.wait()
    return x


def _all_reduce_nn(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x, group=group)


ENDS: dict[str, tuple[Reduce, Reduce]] = {
    "megatron": (_CopyInPlace.apply, _ReduceInPlace.apply),
    "functions": (_CopyFunctional.apply, _ReduceFunctional.apply),
    "ladderize": (parallel_ops.copy_to_ranks, parallel_ops.reduce_from_ranks),
    "in_place": (_unchanged, _all_reduce_in_place),
    "functional": (_unchanged, _all_reduce_functional),
    "async": (_unchanged, _all_reduce_async),
    "nn": (_unchanged, _all_reduce_nn),
}
"""By name: what stands ahead of a branch, and what after it."""


class _Between(nn.Module):
    """A branch over this rank's shards of its weights, between its two ends."""

    def __init__(self, branch: nn.Module, ends: tuple[Reduce, Reduce], group: Any) -> None:
        super().__init__()
        self.branch, self.ends, self.group = branch, ends, group

    def forward(self, x: Tensor) -> Tensor:
        enter, leave = self.ends
        return leave(self.branch(enter(x, self.group)), self.group)


def shard_by_hand(net: Net, ends: str, group: dist.ProcessGroup) -> Net:
    """Plain parameters with each rank's part of them, and explicit collectives."""
    rank, num_ranks = group.rank(), group.size()
    for layer in net.layers:
        for dim, names in ((0, COLUMNS), (1, ROWS)):
            for name in names:
                linear = layer.get_submodule(name)
                part = linear.weight.detach().chunk(num_ranks, dim)[rank].clone()
                linear.weight = nn.Parameter(part)
        layer.attention = _Between(layer.attention, ENDS[ends], group)
        layer.mlp = _Between(layer.mlp, ENDS[ends], group)
    return net


def shard(way: str, net: Net, mesh: DeviceMesh) -> Net:
    """`net` sharded over the 1-D `mesh`: "dtensor", "sequence" or one of `ENDS`."""
    if way == "dtensor":
        return parallelize(net, mesh)
    if way == "sequence":
        return parallelize_sequence(net, mesh)
    return shard_by_hand(net, way, mesh.get_group())


def gradient_errors(net: Net, whole: Net, mesh: DeviceMesh) -> dict[str, float]:
    """The largest difference of each gradient of `net` from that of `whole` (or its part)."""
    expected = dict(whole.named_parameters())
    errors = {}
    for name, parameter in net.named_parameters():
        want, found = expected[name.replace(".branch", "")].grad, parameter.grad
        assert found is not None and want is not None, name
        if hasattr(found, "full_tensor"):
            found = found.full_tensor()
        for dim in range(found.dim()):
            if found.shape[dim] != want.shape[dim]:
                want = want.chunk(mesh.size(), dim)[mesh.get_local_rank()]
        errors[name] = (found - want).abs().max().item()
    return errors
