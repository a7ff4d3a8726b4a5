"""The independent eager ladder: a direct implementation of the recurrence.

    anchor[i] = before_i(x[i])
    x[i+1]    = after_i(skip_i(anchor[i]) + h_i(anchor[max(i - k, start of the segment)]))

for the chosen blocks i; the others read anchor[i]. With FarSkip's connectivity (arXiv 2511.11505)
a block with routed experts reads anchor[i-1], and the block after it reads the stream without them:

    anchor'[i] = before_i(after_{i-1}(skip_{i-1}(anchor[i-1]) + h_{i-1}(…)))    h without routed

The compiler is compared with this module, which uses no graphs and nothing else of the package.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Step = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class ReferenceBlock:
    """One block, as plain functions of one tensor.

    >>> from torch import nn
    >>> norm, mlp = nn.LayerNorm(8), nn.Linear(8, 8)
    >>> pre_norm = ReferenceBlock(lambda x: mlp(norm(x)))
    >>> post_norm = ReferenceBlock(mlp, after=norm)

    Attributes:
        branch: `h_i`, from the anchor that it reads to what it adds; includes a pre-norm.
        before: makes the anchor from the previous block's result (a norm that both skip and branch
            read, a downsampling).
        skip: applied to the anchor on the skip path (a multiplier, a cast).
        after: applied to the sum (a post-norm, a multiplier, a dropout).
        starts_segment: whether this and later blocks cannot read earlier anchors, because the
            shape changes or a mixing op is in between.
        routed: the routed experts of the block, whose result is also added; None without experts.
    """

    branch: Step
    before: Step = identity
    skip: Step = identity
    after: Step = identity
    starts_segment: bool = False
    routed: Step | None = None


def run_ladder(
    x: Tensor,
    blocks: Sequence[ReferenceBlock],
    *,
    chosen: Collection[int] | None = None,
    staleness: int = 1,
    connectivity: str = "ladder",
) -> Tensor:
    """The last value of the stream that starts with `x`.

    >>> import torch
    >>> blocks = [ReferenceBlock(lambda x: 10 * x), ReferenceBlock(lambda x: 100 * x)]
    >>> x = torch.ones(1)
    >>> run_ladder(x, blocks, staleness=0).item(), run_ladder(x, blocks).item()
    (1111.0, 111.0)

    Args:
        x: `x[0]`, of any shape that the first block takes.
        blocks: blocks in order.
        chosen: indices of the blocks that read stale; None for all.
        staleness: number of blocks by which reads are stale; 0 is the standard model, 1 the ladder
            of arXiv 2501.06589, Section 3.
        connectivity: "ladder", or "farskip", whose staleness is 1.
    """
    if connectivity == "farskip":
        return _run_farskip(x, blocks, chosen)
    anchors: list[Tensor] = []
    start = 0
    for i, block in enumerate(blocks):
        if block.starts_segment:
            start = i
        anchors.append(block.before(x))
        is_chosen = chosen is None or i in chosen
        read = anchors[max(i - staleness, start)] if is_chosen else anchors[i]
        x = block.after(block.skip(anchors[i]) + _all_of(block, read))
    return x


def _all_of(block: ReferenceBlock, read: Tensor) -> Tensor:
    added = block.branch(read)
    return added if block.routed is None else added + block.routed(read)


def _run_farskip(
    x: Tensor, blocks: Sequence[ReferenceBlock], chosen: Collection[int] | None
) -> Tensor:
    earlier = without_routed = x  # the previous block's anchor; `x` without its routed experts
    for i, block in enumerate(blocks):
        anchor = read = block.before(x)
        if not block.starts_segment and i and (chosen is None or i in chosen):
            read = block.before(without_routed) if block.routed is None else earlier
        skip, added = block.skip(anchor), block.branch(read)
        without_routed = block.after(skip + added)
        x = without_routed
        if block.routed is not None:
            x = block.after(skip + (added + block.routed(read)))
        earlier = anchor
    return x


@dataclass(frozen=True)
class ReferenceNet:
    """A whole model as `head(run_ladder(entry(*args), blocks))`.

    The callables may (and, for gradients, should) use submodules of the checked model, so that
    both share weights. They must not call its `forward`.

    >>> import torch
    >>> from torch import nn
    >>> embed, mlp, head = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 5)
    >>> net = ReferenceNet([ReferenceBlock(mlp), ReferenceBlock(mlp)], entry=embed, head=head)
    >>> net.run(torch.tensor([[1, 2, 3]]), chosen=[1], staleness=1).shape
    torch.Size([1, 3, 5])

    Attributes:
        blocks: residual blocks in order.
        entry: maps the model's arguments to `x[0]`.
        head: maps the last value of the stream to the model's result.
    """

    blocks: Sequence[ReferenceBlock]
    entry: Callable[..., Tensor] = identity
    head: Callable[[Tensor], Any] = identity

    def run(
        self,
        *args: Any,
        chosen: Collection[int] | None = None,
        staleness: int = 1,
        connectivity: str = "ladder",
        **kwargs: Any,
    ) -> Any:
        """The model's result if the `chosen` blocks (None: all) read stale; see `run_ladder`."""
        x = self.entry(*args, **kwargs)
        return self.head(
            run_ladder(
                x, self.blocks, chosen=chosen, staleness=staleness, connectivity=connectivity
            )
        )
