"""Branches of random nets: MLPs, attention, convolutions, with what might be taken for a block.

The adds in here (of a mask, of rotary halves, of a gated copy) are no residual adds of the net.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 2


@dataclass(frozen=True)
class BranchSpec:
    """One branch.

    Attributes:
        kind: "mlp", "gated_mlp", "attention", "conv", "nested" (a residual block inside).
        gated: whether it ends in `h + h * sigmoid(W h)`.
        layer_scale: whether a learned vector scales what it ends in.
        out_norm: of the result, as in a sandwich norm: a key of `NORMS`.
        mask: of attention: "none", "causal" (added), "fused" (`scaled_dot_product_attention`).
        rotary: whether queries and keys are rotated, `q * cos + rotate_half(q) * sin`.
        own_skip: whether it ends in `u + h(u)`, of what it reads, as LAuReL in Gemma 3n; `u` must
            not be the stream itself.
    """

    kind: str = "mlp"
    gated: bool = False
    mask: str = "none"
    rotary: bool = False
    layer_scale: bool = False
    out_norm: str = "none"
    own_skip: bool = False


class UpcastRmsNorm(nn.Module):
    """Reads its input twice, each time through a cast to (at least) float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        variance = x.to(wide).pow(2).mean(-1, keepdim=True)
        return self.weight * (x.to(wide) * torch.rsqrt(variance + 1e-6)).to(x.dtype)


NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "layer": nn.LayerNorm,
    "rms": UpcastRmsNorm,
}


def make_norm(kind: str, width: int) -> nn.Module:
    return NORMS[kind](width)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(F.gelu(self.up(x)))
        return hidden


class GatedMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return hidden


class Attention(nn.Module):
    """Self-attention of two heads; `x` is [batch, length, width], width a multiple of 4."""

    def __init__(self, width: int, mask: str, rotary: bool) -> None:
        super().__init__()
        self.mask, self.rotary = mask, rotary
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], HEADS, -1)
        query, key, value = (
            project(x).view(shape).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        if self.rotary:
            query, key = _rotate(query), _rotate(key)
        mixed: Tensor = self.out(self._attend(query, key, value).transpose(1, 2).reshape(x.shape))
        return mixed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.mask == "fused":
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if self.mask == "causal":
            mask = torch.full(scores.shape[-2:], -1e4, dtype=scores.dtype).triu(1)
            scores = scores + mask.expand_as(scores)
        attended: Tensor = scores.softmax(-1) @ value
        return attended


def _rotate(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2]).unsqueeze(-1) / torch.arange(1, half + 1)
    angle = torch.cat((angle, angle), -1)
    rotated = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * angle.cos().to(x.dtype) + rotated * angle.sin().to(x.dtype)


class Convolution(nn.Module):
    """Over the sequence, of width 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv1d(width, width, 3, padding=1)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.out(torch.tanh(self.inner(x.transpose(1, 2))))
        return hidden.transpose(1, 2)


class Gated(nn.Module):
    """`h + h * sigmoid(W h)` behind another branch: looks like a block inside the branch."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.gate = inner, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.inner(x)
        return hidden + hidden * torch.sigmoid(self.gate(hidden))


class Nested(nn.Module):
    """`down(u + mlp(u))` with `u = up(x)`: a residual block of the stream's own shape, inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.inner = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(x))
        result: Tensor = self.down(hidden + self.inner(hidden))
        return result


class Scaled(nn.Module):
    """A branch whose result is normalized and scaled by a learned vector, as asked."""

    def __init__(self, inner: nn.Module, width: int, norm: str, *, has_gain: bool) -> None:
        super().__init__()
        self.inner, self.norm = inner, make_norm(norm, width)
        self.gain = nn.Parameter(torch.ones(width)) if has_gain else None

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.inner(x))
        return result if self.gain is None else self.gain * result


class OwnSkip(nn.Module):
    """`u + h(u)` around another branch: a skip of the branch, no block."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.inner(x)
        return result


KINDS: Mapping[str, Callable[[BranchSpec, int], nn.Module]] = {
    "mlp": lambda _, width: Mlp(width),
    "gated_mlp": lambda _, width: GatedMlp(width),
    "attention": lambda spec, width: Attention(width, spec.mask, spec.rotary),
    "conv": lambda _, width: Convolution(width),
    "nested": lambda _, width: Nested(width),
}


def make_branch(spec: BranchSpec, width: int) -> nn.Module:
    branch = KINDS[spec.kind](spec, width)
    if spec.gated:
        branch = Gated(branch, width)
    if spec.own_skip:
        branch = OwnSkip(branch)
    if spec.layer_scale or spec.out_norm != "none":
        branch = Scaled(branch, width, spec.out_norm, has_gain=spec.layer_scale)
    return branch
