"""Training steps of the models of parallel_nets.py, sharded or whole, and their difference.

net, whole = shard("dtensor", make_net().double(), mesh), make_net().double()
found = train(net, compiled(net), 10);  wanted = train(whole, partial(eager_ladder, whole), 10)
parameter_error(net, whole, mesh)                       0, up to rounding: the nets are float64
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from helpers.parallel_nets import VOCABULARY

Run = Callable[[Tensor], Tensor]


def compiled(net: nn.Module, **options: Any) -> Any:
    options = {"lowering": "aot_eager", **options}
    return torch.compile(net, backend="ladderize", fullgraph=True, options=options)


def make_batch(step: int = 0, batch: int = 2, length: int = 9) -> tuple[Tensor, Tensor]:
    """Token ids and the next ids, a different batch for each step."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(VOCABULARY, (batch, length), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def loss_of(run: Run, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, targets = batch
    return F.cross_entropy(run(ids).flatten(0, 1), targets.flatten())


def adamw(net: nn.Module) -> AdamW:
    return AdamW(net.parameters(), lr=1e-2)


def train(net: nn.Module, run: Run, num_steps: int) -> list[float]:
    """The losses of AdamW steps on the parameters of `net`, whose logits `run` computes."""
    optimizer, losses = adamw(net), []
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = loss_of(run, make_batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def largest_difference(found: list[float], wanted: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True))


def parameter_error(net: nn.Module, whole: nn.Module, mesh: DeviceMesh) -> float:
    """The largest difference of a parameter from that of `whole`, or from this rank's part."""
    wanted = {name: p.detach() for name, p in whole.named_parameters()}
    errors = []
    for name, parameter in net.named_parameters():
        want, found = wanted[name.replace(".branch", "")], parameter.detach()
        if isinstance(found, DTensor):
            found = found.full_tensor()
        for dim, size in enumerate(found.shape):
            if size != want.shape[dim]:
                want = want.chunk(mesh.size(), dim)[mesh.get_local_rank()]
        errors.append((found - want).abs().max().item())
    return max(errors)
