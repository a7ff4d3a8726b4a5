"""Sharding of what mixes tokens by other means than softmax: scans, filters, memory that is filled.

Values and gradients of all ranks in lockstep, against the model unsharded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers.sharded import Sharder, shard_module
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, HEAD = 32, 4, 8
TOLERANCE = 1e-4


def filtered(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Each channel of `[batch, length, channels]` alone; the weight goes through other shapes."""
    weight = conv.weight.squeeze(1).unsqueeze(1)
    mixed = F.conv1d(x.transpose(1, 2), weight, conv.bias, padding=2, groups=x.shape[-1])
    return F.silu(mixed[:, :, : x.shape[1]]).transpose(1, 2)


class SelectiveScan(nn.Module):
    """A state for each channel; what goes into it is computed by a second, small product."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.conv = nn.Linear(WIDTH, 96), nn.Conv1d(48, 48, 3, groups=48)
        self.steer, self.step = nn.Linear(48, 4 + 6, bias=False), nn.Linear(4, 48)
        self.decay, self.out = nn.Parameter(torch.rand(48, 3)), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.both(x).chunk(2, -1)
        x = filtered(x, self.conv)
        step, put, take = self.steer(x).split([4, 3, 3], -1)
        step = F.softplus(self.step.weight @ step.transpose(1, 2) + self.step.bias[:, None])
        state, found = x.new_zeros(x.shape[0], 48, 3), []
        for at in range(x.shape[1]):
            decay = torch.exp(-self.decay * step[:, :, at, None])
            state = decay * state + x[:, at, :, None] * put[:, at, None]
            found.append((state @ take[:, at, :, None])[:, :, 0])
        return self.out(torch.stack(found, 1) * F.silu(gate))


class ChunkedScan(nn.Module):
    """States for each head, of heads in groups; a gated norm over the channels of each group."""

    def __init__(self, groups: int = HEADS) -> None:
        super().__init__()
        self.groups, self.parts = groups, [WIDTH, WIDTH + 6 * groups, HEADS]
        self.all, self.gain = nn.Linear(WIDTH, sum(self.parts)), nn.Parameter(torch.rand(WIDTH))
        channels = self.parts[1]
        self.conv = nn.Conv1d(channels, channels, 3, groups=channels)
        self.bias, self.out = nn.Parameter(torch.randn(HEADS)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        gate, x, step = self.all(x).split(self.parts, -1)
        x, put, take = filtered(x, self.conv).split([WIDTH, *[3 * self.groups] * 2], -1)
        x = x.view(batch, length, HEADS, HEAD) * F.softplus(step + self.bias)[..., None]
        put, take = (
            t.view(batch, length, self.groups, 3).repeat_interleave(HEADS // self.groups, dim=2)
            for t in (put, take)
        )
        states = torch.einsum("blhn,blhp->blhpn", put, x)
        first = torch.zeros_like(states[:, :1])
        states = torch.cat([first, states], 1).cumsum(1)[:, :-1] + states
        mixed = torch.einsum("blhn,blhpn->blhp", take, states).reshape(batch, length, -1)
        gated = (mixed * F.silu(gate)).view(batch, length, self.groups, -1)
        normed = gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.out(self.gain * normed.view(batch, length, WIDTH))


class DeltaRule(nn.Module):
    """Rows of a matrix of a head that are overwritten one after another; `zeros_like` is filled."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            t.view(batch, length, HEADS, HEAD).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        system = -(k @ k.mT / HEAD).tril(-1)
        for row in range(1, 3):
            above, known = system[..., :row, :row].clone(), system[..., row, :row].clone()
            system[..., row, :row] = known + (known[..., None] * above).sum(-2)
        mixed, state = torch.zeros_like(v), v.new_zeros(batch, HEADS, HEAD, HEAD)
        for at in range(length):
            state = state + k[:, :, at, :, None] * (system @ v)[:, :, at, None]
            mixed[:, :, at] = (q[:, :, at, None] @ state)[:, :, 0]
        return self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


class LatentKeys(nn.Module):
    """Keys in two parts, one of them for all heads, put together in memory that is filled."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.query = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, HEADS * 12)
        self.up = nn.Linear(8, HEADS * 16)
        self.out = nn.Linear(HEADS * 8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        latent, shared = self.down(x).split([8, 4], -1)
        latent = latent * torch.rsqrt(latent.pow(2).mean(-1, keepdim=True) + 1e-6)
        both = self.up(latent).view(batch, length, HEADS, 16).transpose(1, 2)
        key = both.new_empty(batch, HEADS, length, 12)
        key[..., :8] = both[..., :8]
        key[..., 8:] = shared[:, None].expand(-1, HEADS, -1, -1)
        query = self.query(x).view(batch, length, HEADS, 12).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, both[..., 8:], is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Reshaped(nn.Module):
    """A write into a value under another shape, which a rank's part may have to be copied for."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.up(x).view(x.shape[0], -1, HEADS, HEAD) * 2
        heads.view(-1, HEADS, HEAD)[0] = 1
        return self.down(heads.flatten(2))


class BlockDiagonal(nn.Module):
    """A small matrix for each head, as gates of a recurrence have it."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(HEADS, HEAD, HEAD) / 3)
        self.bias = nn.Parameter(torch.randn(HEADS, 1, HEAD))

    def forward(self, x: Tensor) -> Tensor:
        x = self.x(x)
        heads = x.reshape(-1, HEADS, HEAD).permute(1, 0, 2)
        gate = torch.baddbmm(self.bias, heads, self.weight).permute(1, 0, 2)
        return self.out(x * torch.sigmoid(gate.reshape(x.shape)))


class RepeatedKeys(nn.Module):
    """Key heads once for each query head: one after the other, or all of them twice."""

    def __init__(self, is_tiled: bool) -> None:
        super().__init__()
        self.is_tiled = is_tiled
        self.q, self.kv = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 2 * HEADS, HEAD).transpose(1, 2)
        k, v = (
            t.reshape(batch, length, HEADS, HEAD).transpose(1, 2) for t in self.kv(x).chunk(2, -1)
        )
        if self.is_tiled:  # queries the other way round, so that heads lie together
            q = q.view(batch, HEADS, 2, length, HEAD).transpose(1, 2).flatten(1, 2)
            k, v = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
        else:
            k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        mixed = torch.softmax(q @ k.mT / 3, -1) @ v
        if self.is_tiled:
            mixed = mixed.view(batch, 2, HEADS, length, HEAD).transpose(1, 2).flatten(1, 2)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class NormedInner(nn.Module):
    """A norm over all inner channels in front of the second weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.up(x))
        return self.down(inner * torch.rsqrt(inner.pow(2).mean(-1, keepdim=True) + 1e-6))


class NormedQueries(RepeatedKeys):
    """A norm over all heads of the queries, as one op."""

    def __init__(self) -> None:
        super().__init__(is_tiled=False)
        self.q = nn.Sequential(self.q, nn.RMSNorm(2 * WIDTH))


class RootMeanSquare(nn.Module):
    """A norm that is written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class NormedHeads(nn.Module):
    """Norms over all heads of q and of k, as OLMo 2 has them; two query heads share a key head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (
            nn.Sequential(nn.Linear(WIDTH, width), RootMeanSquare(width))
            for width in (2 * WIDTH, WIDTH)
        )
        self.v, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, HEAD)).transpose(1, 2) for t in self.projected(x))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


class NormsInARow(NormedHeads):
    """The second of the two norms depends on the first."""

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x)
        gate = torch.sigmoid(q.unflatten(-1, (HEADS, 2, HEAD)).mean(-2).flatten(-2))
        return q, self.k[1](self.k[0](x) * gate), self.v(x)


class RareSpellings(nn.Module):
    """Attention by heads, written with the less usual names of ops."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, kv = torch.stack([row.T.T for row in self.q(x)]), self.kv(x)
        q = q.unflatten(-1, (HEADS, HEAD)).swapaxes(1, 2)
        k = kv.narrow(-1, 0, WIDTH).unflatten(-1, (HEADS, HEAD)).moveaxis(1, 2)
        v = kv.narrow(-1, WIDTH, WIDTH).unflatten(-1, (HEADS, HEAD)).swapdims(1, 2)
        k = torch.concat([k[..., :3].flip(-1), k[..., 3:].roll(1, -1)], -1)
        variance, mean = torch.var_mean(v, -1, keepdim=True)
        v = (v - mean) / (variance + 1).sqrt()
        scores = q @ k.mH - (k @ q.adjoint()).median(-1, keepdim=True).values
        scores = scores * (scores > 0).any(-1, keepdim=True) + scores.nansum(-1, keepdim=True)
        mixed = torch.softmax(scores, -1) @ v
        gate = torch.sigmoid(mixed).cumprod(-1) * torch.sigmoid(mixed).prod(-1, keepdim=True)
        mixed = mixed * gate.tile(2).narrow(-1, HEAD, HEAD)
        best = mixed.argmax(-1, keepdim=True) > 3
        mixed = mixed * best + mixed.logcumsumexp(-1)
        return self.out(mixed.swapaxes(1, 2).flatten(2))


class OneBlock(nn.Module):
    """A residual block around a mixer."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer = make()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(F.layer_norm(x, x.shape[-1:]))


@dataclass(frozen=True)
class Mixer:
    """How one is made, and what becomes of it.

    Attributes:
        reductions: in its branch.
        whole: ends of the names of weights that stay whole, over two ranks.
    """

    make: Callable[[], nn.Module]
    reductions: int = 1
    whole: tuple[str, ...] = ()


MIXERS = {
    "selective scan": Mixer(SelectiveScan, reductions=2),
    "chunked scan": Mixer(ChunkedScan),
    "chunked scan, one group": Mixer(lambda: ChunkedScan(1), 2, ("all.weight",)),
    "delta rule": Mixer(DeltaRule),
    "latent keys": Mixer(LatentKeys, whole=("down.weight",)),
    "reshaped": Mixer(Reshaped, 0, ("up.weight", "down.weight")),
    "block diagonal": Mixer(BlockDiagonal),
    "repeat_interleave": Mixer(lambda: RepeatedKeys(False)),
    "repeat": Mixer(lambda: RepeatedKeys(True)),
    "normed inner": Mixer(NormedInner, reductions=2),
    "normed queries": Mixer(NormedQueries, whole=("q.0.weight",)),
    "normed heads": Mixer(NormedHeads, reductions=2),
    "rare spellings": Mixer(RareSpellings),
    "norms in a row": Mixer(NormsInARow, reductions=3),
}
DYNAMIC = {"normed heads"}
FOUR = {"chunked scan, one group", "repeat_interleave", "normed heads"}


@pytest.mark.parametrize(
    ("name", "num_ranks"),
    [
        pytest.param(name, num_ranks, id=f"{name}-{num_ranks}", marks=marks)
        for name in MIXERS
        for num_ranks, marks in ((2, []), (4, [] if name in FOUR else [pytest.mark.deep]))
    ],
)
def test_ranks_equal_one_mixer(name: str, num_ranks: int) -> None:
    mixer, sharder = MIXERS[name], Sharder(num_ranks, execute=True)
    model, is_dynamic = OneBlock(mixer.make).eval(), name in DYNAMIC
    errors = shard_module(sharder, model, torch.randn(2, 5, WIDTH), is_dynamic)
    plan = sharder.plan
    assert plan is not None
    assert plan.num_reductions == mixer.reductions
    kept = {name.removeprefix("mixer.") for whole in plan.whole for name in whole.parameters}
    assert kept == set(mixer.whole)
    assert errors.get("other shape", 0) <= TOLERANCE
    assert max(errors["error"], errors["input gradient"]) <= TOLERANCE
    assert max(errors["gradients"].values()) <= TOLERANCE
    assert len(errors["gradients"]) == num_ranks * len(list(mixer.make().parameters()))
