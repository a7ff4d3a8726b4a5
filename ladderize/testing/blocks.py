"""A residual block by specification, as users write it and as the reference computes it.

The spelling tables define how the residual sum is written; the reference does not use them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ladderize.testing.branches import BranchSpec, make_branch, make_norm
from ladderize.testing.reference import ReferenceBlock, identity

# Width of the input that conditions blocks.
CONDITION = 6


@dataclass(frozen=True)
class BlockSpec:
    """One block.

    Attributes:
        branches: branches whose results are summed; two make a parallel block.
        norm: "none", "layer", or "rms" (which upcasts its input twice).
        placement: placement of the norm: "pre" in the branch, "post" after the sum, or "shared"
            before the block, so that the skip carries the normalized value.
        separate_norms: whether each branch of a pre-norm parallel block has its own norm.
        spelling: a key of `SPELLINGS`.
        association: association of a parallel block's sum: "x+(a+m)", "(x+a)+m" or "x+a, m" (the
            first sum comes before the second branch).
        branch_scale, skip_scale: residual multipliers.
        after: function applied to the sum before a post-norm: a key of `AFTER`.
        conditioned: whether a second input of the model scales and shifts what the branches read
            and gates what they return (adaLN of DiT, arXiv 2212.09748).
    """

    branches: tuple[BranchSpec, ...] = (BranchSpec(),)
    norm: str = "none"
    placement: str = "pre"
    separate_norms: bool = False
    spelling: str = "x + h"
    association: str = "x+(a+m)"
    branch_scale: float = 1.0
    skip_scale: float = 1.0
    after: str = "identity"
    conditioned: bool = False


def _iadd(x: Tensor, h: Tensor) -> Tensor:
    x += h
    return x


def _upcast(x: Tensor, h: Tensor) -> Tensor:
    return (x.double() + h.double()).to(x.dtype)


def _flattened(x: Tensor, h: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    return (flat + h.reshape(-1, x.shape[-1])).view(x.shape)


SPELLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x + h": lambda x, h: x + h,
    "h + x": lambda x, h: h + x,
    "torch.add(x, h)": torch.add,
    "x.add(h)": lambda x, h: x.add(h),
    "torch.add(h, x)": lambda x, h: torch.add(h, x),
    "x.double() + h.double()": _upcast,
    "x.reshape(-1, w) + h": _flattened,
    "x += h": _iadd,
    "h += x": lambda x, h: _iadd(h, x),
    "x.add_(h)": lambda x, h: x.add_(h),
}
OVERWRITES_X = frozenset({"x += h", "x.add_(h)"})
WRAPS_THE_SUM = frozenset({"x.double() + h.double()", "x.reshape(-1, w) + h"})

AFTER: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": identity,
    "scale": lambda x: 0.9 * x,
    "dropout": partial(nn.functional.dropout, p=0.0),
    "relu": torch.relu,
    "relu_": lambda x: nn.functional.relu(x, inplace=True),
}


class ResidualBlock(nn.Module):
    """A block as an ordinary module; `reference` returns it as functions."""

    def __init__(self, spec: BlockSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.branches = nn.ModuleList([make_branch(branch, width) for branch in spec.branches])
        separate = spec.separate_norms and spec.placement == "pre"
        self.modulation = nn.Linear(CONDITION, 3 * width) if spec.conditioned else None
        self.norms = nn.ModuleList(
            [make_norm(spec.norm, width) for _ in (spec.branches if separate else (None,))]
        )

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        spec = self.spec
        if spec.placement == "shared":
            x = self.norms[0](x)
        skip = x if spec.skip_scale == 1 else x * spec.skip_scale
        x = AFTER[spec.after](self._add_branches(x, skip, condition))
        return self.norms[0](x) if spec.placement == "post" else x

    def _add_branches(self, x: Tensor, skip: Tensor, condition: Tensor | None) -> Tensor:
        add = SPELLINGS[self.spec.spelling]
        if self.spec.association == "x+a, m" and self.spec.spelling not in OVERWRITES_X:
            for number in range(len(self.branches)):
                skip = add(skip, self._scaled(self._branch(number, x, condition)))
            return skip
        read = self.norms[0](x) if self.spec.placement == "pre" and len(self.norms) == 1 else x
        outputs = [self._branch(number, x, condition, read) for number in range(len(self.branches))]
        if self.spec.association == "x+(a+m)":
            return add(skip, self._scaled(_sum(outputs)))
        for output in outputs:
            skip = add(skip, self._scaled(output))
        return skip

    def _branch(
        self, number: int, x: Tensor, condition: Tensor | None, read: Tensor | None = None
    ) -> Tensor:
        if self.spec.placement == "pre" and (read is None or len(self.norms) > 1):
            read = self.norms[number % len(self.norms)](x)
        return self._modulated(number, x if read is None else read, condition)

    def _modulated(self, number: int, read: Tensor, condition: Tensor | None) -> Tensor:
        output: Tensor
        if self.modulation is None:
            output = self.branches[number](read)
            return output
        scale, shift, gate = self.modulation(condition).chunk(3, -1)
        output = gate * self.branches[number](read * (1 + scale) + shift)
        return output

    def _scaled(self, output: Tensor) -> Tensor:
        return output if self.spec.branch_scale == 1 else self.spec.branch_scale * output

    def reference(self, context: Mapping[str, Tensor]) -> ReferenceBlock:
        """The block as functions; `context["condition"]` is the model's second input."""
        spec, norm = self.spec, self.norms[0]

        def branch(x: Tensor) -> Tensor:
            total = torch.zeros_like(x)
            for number in range(len(self.branches)):
                pre = self.norms[number % len(self.norms)] if spec.placement == "pre" else identity
                output = self._modulated(number, pre(x), context.get("condition"))
                total = total + spec.branch_scale * output
            return total

        def after(x: Tensor) -> Tensor:
            x = AFTER[spec.after](x)
            return norm(x) if spec.placement == "post" else x

        return ReferenceBlock(
            branch,
            before=norm if spec.placement == "shared" else identity,
            skip=lambda x: spec.skip_scale * x,
            after=after,
        )


def _sum(outputs: list[Tensor]) -> Tensor:
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    return total
