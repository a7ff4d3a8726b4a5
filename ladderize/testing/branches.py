"""Branches of random models: MLPs, attention, convolutions, with parts that resemble blocks.

Their adds (of a mask, of rotary halves, of a gated copy) are not residual adds of the model.
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
        kind: "mlp", "gated_mlp", "attention", "conv" or "nested" (with a residual block inside).
        gated: whether it ends in `h + h * sigmoid(W h)`.
        mask: mask of the attention: "none", "causal" (added) or "fused"
            (`scaled_dot_product_attention`).
        rotary: whether queries and keys are rotated, `q * cos + rotate_half(q) * sin`.
        layer_scale: whether a learned vector scales its result.
        out_norm: norm of the result, as in a sandwich norm: a key of `NORMS`.
        own_skip: whether it ends in `u + h(u)`, where `u` is its input, as LAuReL in Gemma 3n; `u`
            must not be the stream itself.
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
    """Self-attention with two heads; `x` is [batch, length, width], width a multiple of 4."""

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
    """A convolution over the sequence, of kernel size 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv1d(width, width, 3, padding=1)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.out(torch.tanh(self.inner(x.transpose(1, 2))))
        return hidden.transpose(1, 2)


class Gated(nn.Module):
    """`h + h * sigmoid(W h)` after another branch: resembles a block inside the branch."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.gate = inner, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.inner(x)
        return hidden + hidden * torch.sigmoid(self.gate(hidden))


class Nested(nn.Module):
    """`down(u + mlp(u))` with `u = up(x)`: an inner residual block with the stream's shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.inner = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(x))
        result: Tensor = self.down(hidden + self.inner(hidden))
        return result


class Scaled(nn.Module):
    """A branch whose result is normalized and, if `has_gain`, scaled by a learned vector."""

    def __init__(self, inner: nn.Module, width: int, norm: str, *, has_gain: bool) -> None:
        super().__init__()
        self.inner, self.norm = inner, make_norm(norm, width)
        self.gain = nn.Parameter(torch.ones(width)) if has_gain else None

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.inner(x))
        return result if self.gain is None else self.gain * result


class OwnSkip(nn.Module):
    """`u + h(u)` around another branch: a skip inside the branch, not a block."""

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
