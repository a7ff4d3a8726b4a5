"""4-bit weights with scales and zero points per group, as libraries make them.

    PackedWeight [out, in]   packed uint8 [out, in/2]   scale, zero [out, in/group]

A stand-in if no such library is installed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


class PackedWeight(torch.Tensor):
    """A weight of `packed`, `scale` and `zero`.

    Args:
        group: number of inputs that share a scale.
        quantizes_inputs: whether its linear rounds the inputs, scaled by the largest in a row.
    """

    @staticmethod
    def __new__(cls, packed, scale, zero, group, quantizes_inputs=False):
        shape = (packed.shape[0], packed.shape[1] * 2)
        return torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=scale.dtype, device=scale.device
        )

    def __init__(self, packed, scale, zero, group, quantizes_inputs=False):
        self.packed, self.scale, self.zero = packed, scale, zero
        self.group, self.quantizes_inputs = group, quantizes_inputs

    @classmethod
    def of(cls, weight, group, quantizes_inputs=False):
        grouped = weight.detach().unflatten(1, (-1, group))
        low, high = grouped.amin(-1), grouped.amax(-1)
        scale = (high - low) / 15
        values = ((grouped - low.unsqueeze(-1)) / scale.unsqueeze(-1)).round().flatten(1)
        values = values.to(torch.uint8)
        return cls(values[:, ::2] | (values[:, 1::2] << 4), scale, low, group, quantizes_inputs)

    def __tensor_flatten__(self):
        return ["packed", "scale", "zero"], (self.group, self.quantizes_inputs)

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["packed"], inner["scale"], inner["zero"], *context)

    def unpacked(self):
        values = torch.stack((self.packed & 15, self.packed >> 4), -1).flatten(1)
        scale, zero = (t.repeat_interleave(self.group, 1) for t in (self.scale, self.zero))
        return values.to(scale.dtype) * scale + zero

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.quantizes_inputs:
            step = x.abs().amax(-1, keepdim=True) / 127
            x = (x / step).round() * step
        return F.linear(x, self.unpacked(), bias)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return args[1].linear(args[0], *args[2:], **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        weight = args[0]
        if not isinstance(weight, PackedWeight):
            raise NotImplementedError(f"{func} of packed weights")
        context = (weight.group, weight.quantizes_inputs)
        inner = (weight.packed, weight.scale, weight.zero)
        if func is aten.slice.Tensor:
            dim, start, end = args[1:4]
            if dim == 0:
                return cls(*(func(t, 0, start, end) for t in inner), *context)
            per = (2, weight.group, weight.group)  # the last group is not whole where it is cut
            ends = zip(inner, per, strict=True)
            return cls(*(func(t, 1, start // n, -(-end // n)) for t, n in ends), *context)
        if func in (aten.clone.default, aten.detach.default):
            return cls(*(func(t, **(kwargs or {})) for t in inner), *context)
        raise NotImplementedError(f"{func} of packed weights")
