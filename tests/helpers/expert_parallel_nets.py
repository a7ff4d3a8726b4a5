"""A decoder whose experts are on different ranks, and its eager ladder on one process.

    tokens of this rank ── router ── all_to_all ── experts of this rank ── all_to_all ── sum

Each rank has its own tokens, and all modules except the experts. "capacity" sends each expert
`CAPACITY` tokens of each rank and drops the rest. "exact" first exchanges the counts and sends all
tokens, so sizes depend on values. "dtensor" is "capacity" with DTensors, whose redistribution from
the token dim to the expert dim is the all-to-all.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from helpers.parallel_nets import VOCABULARY, Attention

WIDTH, HEADS, EXPERTS, CAPACITY = 32, 4, 4, 6
Send = Callable[[Tensor, list[int] | None, list[int] | None], Tensor]


def alone(x: Tensor, output: list[int] | None, given: list[int] | None) -> Tensor:  # noqa: ARG001
    """An all-to-all of one rank."""
    return x


def over_ranks(x: Tensor, output: list[int] | None, given: list[int] | None) -> Tensor:
    if torch.is_grad_enabled() and x.is_floating_point():
        return funcol.all_to_all_single_autograd(x, output, given, dist.group.WORLD)
    return funcol.wait_tensor(funcol.all_to_all_single(x, output, given, dist.group.WORLD))


class Experts(nn.Module):
    """Top-1 of `EXPERTS`, plus a shared expert for all tokens.

    Args:
        form: "capacity", "exact" or "dtensor".
        send: `over_ranks`, or `alone` with all experts here.
        num_ranks: number of ranks over which the experts are divided.
    """

    def __init__(self, form: str, send: Send = alone, num_ranks: int = 1) -> None:
        super().__init__()
        self.form, self.send, self.num_ranks = form, send, num_ranks
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.empty(EXPERTS, WIDTH, WIDTH))
        self.down = nn.Parameter(torch.empty(EXPERTS, WIDTH, WIDTH))
        self.shared = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x) + self.routed(x)

    def routed(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        weights = self.gate(tokens).softmax(-1)
        weight, expert = weights.max(-1)
        made: Tensor = getattr(self, self.form)(tokens, expert) * weight.unsqueeze(-1)
        return made.view(x.shape)

    def capacity(self, tokens: Tensor, expert: Tensor) -> Tensor:
        chosen = F.one_hot(expert, EXPERTS)
        place = (chosen.cumsum(0) * chosen).sum(-1) - 1
        fits = place < CAPACITY
        slot = torch.where(fits, expert * CAPACITY + place, EXPERTS * CAPACITY)
        slots = tokens.new_zeros(EXPERTS * CAPACITY + 1, WIDTH).index_copy(0, slot, tokens)
        made = self.redistributed if isinstance(self.up, DTensor) else self.exchanged
        found = F.pad(made(slots[:-1].contiguous()), (0, 0, 0, 1))
        return found[slot] * fits.unsqueeze(-1)

    dtensor = capacity

    def exchanged(self, slots: Tensor) -> Tensor:
        sent = self.send(slots, None, None)
        mine = sent.view(self.num_ranks, -1, CAPACITY, WIDTH).transpose(0, 1).flatten(1, 2)
        made = F.gelu(mine @ self.up) @ self.down
        back = made.unflatten(1, (self.num_ranks, CAPACITY)).transpose(0, 1).reshape(-1, WIDTH)
        return self.send(back.contiguous(), None, None)

    def redistributed(self, slots: Tensor) -> Tensor:
        mesh = self.up.device_mesh
        given = DTensor.from_local(slots.view(EXPERTS, CAPACITY, WIDTH), mesh, [Shard(1)])
        made = F.gelu(given.redistribute(placements=[Shard(0)]) @ self.up) @ self.down
        return made.redistribute(placements=[Shard(1)]).to_local().view(-1, WIDTH)

    def exact(self, tokens: Tensor, expert: Tensor) -> Tensor:
        order = expert.argsort(stable=True)
        counts = F.one_hot(expert, EXPERTS).sum(0)
        arriving = self.send(counts, None, None).view(self.num_ranks, -1)
        given = [sum(part) for part in _rows(counts.tolist(), self.num_ranks)]
        output = arriving.sum(1).tolist()
        for size in (*given, *output):
            torch._check(size >= 0)
        sent = self.send(tokens[order], output, given)
        owner = torch.arange(EXPERTS // self.num_ranks, device=tokens.device)
        of = owner.repeat(self.num_ranks).repeat_interleave(
            arriving.flatten(), output_size=sent.shape[0]
        )
        is_of = F.one_hot(of, EXPERTS // self.num_ranks).to(sent.dtype)
        made = F.gelu(torch.einsum("td,te,edf->tf", sent, is_of, self.up))
        made = torch.einsum("tf,te,efd->td", made, is_of, self.down)
        back = self.send(made.contiguous(), given, output)
        return torch.empty_like(tokens).index_copy(0, order, back)


def _rows(values: list[int], number: int) -> list[list[int]]:
    size = len(values) // number
    return [values[i * size : (i + 1) * size] for i in range(number)]


class ExpertLayer(nn.Module):
    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(WIDTH), Attention(WIDTH, HEADS)
        self.norm2, self.experts = nn.RMSNorm(WIDTH), experts

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.experts(self.norm2(x))


class ExpertNet(nn.Module):
    def __init__(self, layers: int, form: str, send: Send = alone, num_ranks: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(
            ExpertLayer(Experts(form, send, num_ranks)) for _ in range(layers)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        generator = torch.Generator().manual_seed(3)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def net_of_rank(layers: int, form: str, rank: int, num_ranks: int) -> ExpertNet:
    """The model with only the experts of that rank, and the weights of the whole model."""
    net = ExpertNet(layers, form, over_ranks, num_ranks)
    size = EXPERTS // num_ranks
    for layer in net.layers:
        for name in ("up", "down"):
            whole = getattr(layer.experts, name).detach()
            part = whole[rank * size : (rank + 1) * size].clone()
            if form == "dtensor":
                part = DTensor.from_local(part, init_device_mesh("cpu", (num_ranks,)), [Shard(0)])
            setattr(layer.experts, name, nn.Parameter(part))
    return net


def eager_expert_ladder(net: ExpertNet, ids: Tensor) -> Tensor:
    """The hand-written ladder: each block reads the stream one block stale."""
    before = x = net.embedding(ids)
    for layer in net.layers:
        before, x = x, x + layer.attention(layer.norm1(before))
        before, x = x, x + layer.experts(layer.norm2(before))
    return net.head(x)


def eager_farskip(net: ExpertNet, ids: Tensor) -> Tensor:
    """Attention reads without the routed experts before it; experts, without their attention."""
    landed = x = net.embedding(ids)
    for layer in net.layers:
        before, x = x, x + layer.attention(layer.norm1(landed))
        normed = layer.norm2(before)
        landed = x + layer.experts.shared(normed)
        x = landed + layer.experts.routed(normed)
    return net.head(x)
