"""Linears that keep packed words and unpack them at every call, as 4-bit libraries do.

    GptqLinear     qweight int32 [in/8, out]    scales, qzeros of groups, found by g_idx
    PlanesLinear   qweight int32 [in/32*3, out]     three bits in planes
    AwqLinear      qweight int32 [in, out/8]    its eight values in the order 0 2 4 6 1 3 5 7
    NibblesLinear  packed uint8 [out, in/2]     scales and zero points of groups along the inputs
    BytesLinear    weight [out, in]             int8, scales of rows; float8, scales of squares

The first three have buffers but no parameters; their arithmetic is that of the torch fallbacks of
GPTQModel and AutoAWQ.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BITS, PER_WORD = 4, 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _weight(linear: nn.Linear) -> Tensor:
    """[in, out]; any values where there are none yet."""
    weight = linear.weight.detach().T
    return torch.rand(weight.shape) if weight.is_meta else weight


def _grouped(weight: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values of `weight` [in, out], their scales and zero points [groups, out]."""
    num_groups = int(groups.max()) + 1
    rows = [weight[groups == group] for group in range(num_groups)]
    low = torch.stack([row.amin(0) for row in rows])
    high = torch.stack([row.amax(0) for row in rows])
    scales = (high - low) / 15
    zeros = (-low / scales).round()
    values = (weight / scales[groups] + zeros[groups]).round().clamp(0, 15)
    return values.int(), scales, zeros.clamp(0, 15).int()


def _packed(values: Tensor, dim: int) -> Tensor:
    """Eight neighbors along `dim` in each word."""
    words = values.unflatten(dim, (-1, PER_WORD)).movedim(dim + 1, -1)
    return (words << torch.arange(0, 32, BITS)).sum(-1).to(torch.int32)


class GptqLinear(nn.Module):
    """Unpacks words along the inputs, and looks up the scales of each input by group."""

    def __init__(self, linear: nn.Linear, group: int, is_shuffled: bool = False) -> None:
        super().__init__()
        weight = _weight(linear)
        g_idx = torch.arange(weight.shape[0]) // group
        if is_shuffled:  # "act order": by how much an input matters
            g_idx = g_idx[torch.randperm(len(g_idx), generator=torch.Generator().manual_seed(0))]
        values, scales, zeros = _grouped(weight, g_idx)
        self.register_buffer("qweight", _packed(values, 0))
        self.register_buffer("qzeros", _packed(zeros, 1))
        self.register_buffer("scales", scales)
        self.register_buffer("g_idx", g_idx.int())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.register_buffer("shifts", torch.arange(0, 32, BITS).int(), persistent=False)

    @property
    def exact(self) -> Tensor:
        zeros = self.qzeros.unsqueeze(2).expand(-1, -1, PER_WORD)
        zeros = torch.bitwise_right_shift(zeros, self.shifts[None, None]).to(torch.int8)
        zeros = torch.bitwise_and(zeros, 15).reshape(self.scales.shape)
        words = self.qweight.unsqueeze(1).expand(-1, PER_WORD, -1)
        values = torch.bitwise_right_shift(words, self.shifts[None, :, None]).to(torch.int8)
        values = torch.bitwise_and(values, 15)
        values = values.reshape(values.shape[0] * values.shape[1], values.shape[2])
        return self.scales[self.g_idx.long()] * (values - zeros[self.g_idx.long()])

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.scales.shape[1])
        out = torch.matmul(x.reshape(-1, x.shape[-1]), self.exact.to(x.dtype)).reshape(shape)
        if self.bias is not None:
            out.add_(self.bias)
        return out


class PlanesLinear(GptqLinear):
    """Three bits of 32 values in three words: bits 0 and 1 in the first two, bit 2 in the third."""

    PLANES = ((2, 0), (1, 2))

    def __init__(self, linear: nn.Linear, group: int) -> None:
        super().__init__(linear, group)
        weight = _weight(linear)
        values, _, zeros = _grouped(weight, torch.arange(weight.shape[0]) // group)
        self.qweight, self.qzeros = self._pack(values), self._pack(zeros.T).T.contiguous()

    def _pack(self, values: Tensor) -> Tensor:
        blocks = values.unflatten(0, (-1, 32)).long()
        planes = []
        for width, offset in self.PLANES:
            bits = (blocks >> offset & (1 << width) - 1).unflatten(1, (width, -1))
            shifts = torch.arange(0, 32, width)[:, None]
            planes.append((bits << shifts).sum(2))
        return torch.cat(planes, 1).flatten(0, 1).to(torch.int32)

    def _unpacked(self, words: Tensor) -> Tensor:
        blocks = words.long().reshape(-1, 3, words.shape[1])
        values, row = torch.zeros(len(blocks), 32, words.shape[1], dtype=torch.int64), 0
        for width, offset in self.PLANES:
            shifts = torch.arange(32 // width).view(1, 1, -1, 1) * width
            bits = (blocks[:, row : row + width].unsqueeze(2) >> shifts) & (1 << width) - 1
            values |= bits.reshape(values.shape) << offset
            row += width
        return values.reshape(-1, words.shape[1])

    @property
    def exact(self) -> Tensor:
        zeros = self._unpacked(self.qzeros.T.contiguous()).T.reshape(self.scales.shape)
        groups = self.g_idx.long()
        return self.scales[groups] * (self._unpacked(self.qweight) - zeros[groups])


class SpreadLinear(PlanesLinear):
    """Puts values that lie in two words together in place."""

    def _unpacked(self, words: Tensor) -> Tensor:
        values = super()._unpacked(words)
        values[:, 0] = values[:, 0] & 3 | (values[:, 1] << 2) & 4
        return values


class AwqLinear(nn.Module):
    """Unpacks words along the outputs, reorders them, and repeats scales over a group."""

    def __init__(self, linear: nn.Linear, group: int) -> None:
        super().__init__()
        weight = _weight(linear)
        values, scales, zeros = _grouped(weight, torch.arange(weight.shape[0]) // group)
        self.group = group
        self.register_buffer("qweight", self._pack(values))
        self.register_buffer("qzeros", self._pack(zeros))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @staticmethod
    def _pack(values: Tensor) -> Tensor:
        return _packed(values.unflatten(1, (-1, PER_WORD))[..., ORDER].flatten(1), 1)

    @staticmethod
    def _unpacked(words: Tensor) -> Tensor:
        shifts = torch.arange(0, 32, BITS)
        values = torch.bitwise_right_shift(words[:, :, None], shifts[None, None, :]).to(torch.int8)
        values = values.view(values.shape[0], -1)
        places = torch.arange(values.shape[-1], dtype=torch.int32).view(-1, PER_WORD)
        places = places[:, [ORDER.index(i) for i in range(PER_WORD)]].view(-1)
        return torch.bitwise_and(values[:, places], 15)

    @property
    def exact(self) -> Tensor:
        scales = self.scales.repeat_interleave(self.group, dim=0)
        zeros = self._unpacked(self.qzeros).repeat_interleave(self.group, dim=0)
        return (self._unpacked(self.qweight) - zeros) * scales

    def forward(self, x: Tensor) -> Tensor:
        out = torch.matmul(x, self.exact.to(x.dtype))
        return out if self.bias is None else out + self.bias


class NibblesLinear(nn.Module):
    """Splits each byte, and gives the groups a separate dim."""

    def __init__(self, linear: nn.Linear, group: int) -> None:
        super().__init__()
        weight = _weight(linear)
        values, scales, zeros = _grouped(weight, torch.arange(weight.shape[0]) // group)
        low, high = values.T.unflatten(1, (-1, 2)).unbind(2)
        self.group, self.bias = group, linear.bias
        self.register_buffer("packed", (low | high << 4).to(torch.uint8))
        self.scales = nn.Parameter(scales.T.contiguous())
        self.register_buffer("zeros", zeros.T.contiguous())

    @property
    def exact(self) -> Tensor:
        values = torch.stack((self.packed & 15, self.packed >> 4), -1).flatten(1)
        values = values.unflatten(1, (-1, self.group)) - self.zeros.unsqueeze(-1)
        return (values * self.scales.unsqueeze(-1)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.exact, self.bias)


class BytesLinear(nn.Module):
    """Multiplies bytes by scales: one for each output, or one for each square of `block` values."""

    def __init__(self, linear: nn.Linear, block: int = 0) -> None:
        super().__init__()
        weight, self.block, self.bias = linear.weight.detach(), block, linear.bias
        if block:
            squares = weight.unflatten(1, (-1, block)).unflatten(0, (-1, block))
            scales = squares.abs().amax((1, 3)) / 100
        else:
            scales = weight.abs().amax(1, keepdim=True) / 100
        self.register_buffer("scales", scales)
        values = weight / self.repeated
        kept = values.to(torch.float8_e4m3fn) if block else values.round().to(torch.int8)
        self.weight = nn.Parameter(kept, requires_grad=False)

    @property
    def repeated(self) -> Tensor:
        if not self.block:
            return self.scales
        rows = self.scales.repeat_interleave(self.block, 0)
        return rows.repeat_interleave(self.block, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.repeated, self.bias)


def packed(model: nn.Module, make: Callable[[nn.Linear], nn.Module], *names: str) -> nn.Module:
    """Replace the linears of these names in `model` by the results of `make`, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name in names:
                setattr(module, name, make(child))
    return model
